"""Quality against steps and time, on checkpoints/shapes: fewer steps for the same picture.

    python benchmarks/steps.py engines/shapes           # quality; other jobs may run beside it
    python benchmarks/steps.py engines/shapes --time    # seconds alone, in a minute, on an idle machine

paints prompts of the model card with every sampler and number of steps, and compares with 500 steps of DDIM from the
same noise: whether the classifier reads everything that was asked for, and how far the pixels are. Every run is kept in
reports/steps.json as soon as it is done, and one that is there is not made again. steps.md and steps.png are made of
that file; the section "Conclusion" of steps.md is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, NullLocator
from numpy.typing import NDArray
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SHAPES = HERE.parent / "checkpoints" / "shapes"
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime"), str(SHAPES)]

from kandinsky22 import Pipeline  # noqa: E402
from kandinsky22 import machine as this_machine  # noqa: E402
from kandinsky22.arrays import Embeddings  # noqa: E402
from kandinsky22.request.resolve import guided_parts  # noqa: E402
from kandinsky22.schedulers import configs  # noqa: E402
from recipe import classifier  # noqa: E402
from scores import text2img  # noqa: E402
from store import JsonStore  # noqa: E402

Interval = tuple[float, float]
Run = tuple[str, int, Interval]
"""A sampler, its steps, and the share of them that is guided, from and to."""
Row = Mapping[str, Any]
Pictures = NDArray[np.float32]

SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpm++": "DPM-Solver++ (2M)",
    "dpm++ karras": "DPM-Solver++ (2M), Karras' levels",
}
STEPS = (4, 6, 8, 10, 15, 20, 25, 50)
ALWAYS, NEVER = (0.0, 1.0), (0.0, 0.0)
INTERVALS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0), NEVER)
INTERVAL_STEPS = 20
REFERENCE: Run = ("ddim", 500, ALWAYS)
DEFAULT: Run = ("ddpm", 50, ALWAYS)
RUNS: tuple[Run, ...] = (
    REFERENCE,
    *((sampler, steps, ALWAYS) for steps in STEPS for sampler in SAMPLERS),
    *(("dpm++", INTERVAL_STEPS, interval) for interval in INTERVALS),
)
GUIDANCE = 4.0
BATCH = 16
TIMED_STEPS, TIMED_CALLS = 20, 5
LOWEST_SHOWN = 80
CONCLUSION = "## Conclusion\n"


def main() -> None:
    """Paint what is missing, or measure seconds; write the report."""
    options = _options()
    options.reports.mkdir(parents=True, exist_ok=True)
    # fp32: the rounding of bf16 would be a floor under the distances.
    with Pipeline.load(options.bundle, options.backend, precision="fp32", threads=options.threads) as pipe:
        settings = {"bundle": pipe.bundle.manifest.name, "backend": options.backend, "prompts": options.prompts}
        store = Store(options.reports, settings)
        if options.time:
            store.data["seconds"] = measure_seconds(pipe) | machine(options.threads)
            store.save()
        else:
            paint_missing(pipe, store)
    write(store.data, options.reports)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", type=Path)
    add("--time", action="store_true", help="measure seconds alone; quality stays as it is")
    add("--prompts", type=int, default=60, help="how many of the card's 300 (%(default)s)")
    add("--backend", default="onnxruntime", help="in fp32 (%(default)s)")
    add("--threads", type=int, help="processor threads; the backend's choice without it")
    add("--reports", type=Path, default=HERE / "reports", help="folder of the report (%(default)s)")
    return parser.parse_args()


class Store(JsonStore):
    """The report's numbers in steps.json, and the reference's pictures beside it, for runs after a stop."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(folder / "steps.json", {"settings": settings, "seconds": {}, "runs": []})
        self._pictures = folder / "steps-reference.tmp"
        if self.data["settings"] != settings:
            raise SystemExit(
                f"{self.path} was made with {self.data['settings']}, not {settings}; remove it, or choose another "
                "--reports."
            )

    def has(self, run: Run) -> bool:
        """Whether a run is done."""
        return find(self.data["runs"], run) is not None

    def add(self, run: Run, found: Row) -> None:
        """Keep what a run gave, in place of an earlier one."""
        runs = [row for row in self.data["runs"] if _key(row) != run] + [{**_row(run), **found}]
        order = {run: place for place, run in enumerate(RUNS)}
        self.data["runs"] = sorted(runs, key=lambda row: order.get(_key(row), len(order)))
        self.save()

    def reference(self) -> Pictures | None:
        """The reference's pictures, where they are those of its row."""
        if not self.has(REFERENCE) or not self._pictures.exists():
            return None
        with self._pictures.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))

    def keep_reference(self, pictures: Pictures) -> None:
        """Keep them, before the row that says that they are there."""
        with self._pictures.open("wb") as file:
            np.save(file, pictures)


def _row(run: Run) -> dict[str, Any]:
    return {"sampler": run[0], "steps": run[1], "interval": list(run[2])}


def _key(row: Row) -> Run:
    low, high = row["interval"]
    return row["sampler"], row["steps"], (low, high)


def find(rows: Sequence[Row], run: Run) -> Row | None:
    """The row of a run."""
    return next((row for row in rows if _key(row) == run), None)


def evaluations(run: Run) -> tuple[int, int]:
    """Steps of a run with and without guidance; the former evaluate the UNet twice a picture."""
    parts = guided_parts(run[1], GUIDANCE, run[2])
    guided = sum(part.stop - part.start for part, is_guided in parts if is_guided)
    return guided, run[1] - guided


# Quality


def paint_missing(pipe: Pipeline, store: Store) -> None:
    """Paint and score the runs that `store` lacks."""
    if all(map(store.has, RUNS)):
        return  # the embeddings alone take a while
    every, scenes = text2img.unseen_prompts()
    count = store.data["settings"]["prompts"]
    # Spread evenly: the first ones are all of combinations that were kept out of training.
    chosen = [place * len(every) // count for place in range(count)]
    judge = classifier.load(SHAPES / "classifier.safetensors")
    embeds = pipe.embed([every[place] for place in chosen], seed=0, batch_size=BATCH)

    def score(pictures: Pictures) -> dict[str, float]:
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        scores = text2img.score(judge, signed, scenes[chosen])["all"]
        del scores["held out"]  # the first 60 of all 300, not of these
        return scores

    run_missing(store, lambda run: paint(pipe, embeds, run), score)


def run_missing(store: Store, painted: Callable[[Run], Pictures], score: Callable[[Pictures], Row]) -> None:
    """Call `painted` for each run that is not there, and keep its scores and its distance to the reference."""
    reference = store.reference()
    missing = [run for run in RUNS if not store.has(run)]
    if missing and reference is None:
        missing = [REFERENCE, *(run for run in missing if run != REFERENCE)]
    bar = tqdm(missing, unit="run", dynamic_ncols=True)
    for run in bar:
        bar.set_description(f"{run[0]} {run[1]}")
        pictures = painted(run)
        if run == REFERENCE:
            store.keep_reference(pictures)
            reference = pictures
        store.add(run, {"distance": distance(pictures, reference), "scores": score(pictures)})


def paint(pipe: Pipeline, embeds: Embeddings, run: Run) -> Pictures:
    """Pictures (n, H, W, 3) in 0..1; every run begins with the same embeddings and the same noise."""
    sampler, steps, interval = run
    out = pipe(
        image_embeds=embeds,
        seed=0,
        num_inference_steps=steps,
        scheduler=scheduler(pipe, sampler),
        guidance_scale=GUIDANCE,
        guidance_interval=interval,
        output_type="np",
        batch_size=BATCH,
    )
    return np.asarray(out.images)


def scheduler(pipe: Pipeline, sampler: str) -> dict[str, Any]:
    """The config of one of `SAMPLERS`, made of the checkpoint's own."""
    return configs.switch(pipe.bundle.manifest.schedulers["decoder"], sampler)


def distance(pictures: Pictures, reference: Pictures) -> float:
    """Root mean square of the difference of all pixels, of 255."""
    return 255 * float(np.sqrt(np.square(pictures - reference, dtype=np.float64).mean()))


# Seconds


def measure_seconds(pipe: Pipeline) -> dict[str, Any]:
    """Medians of warm calls, a picture each: seconds a step by sampler, and seconds of all but the UNet.

    Samplers take turns, so that what slows the machine down slows all of them.
    """
    cases = [(sampler, interval) for sampler in SAMPLERS for interval in (ALWAYS, NEVER)]
    steps: dict[tuple[str, Interval], list[float]] = {case: [] for case in cases}
    rest: list[float] = []
    prompt = text2img.unseen_prompts()[0][0]
    for call in tqdm(range(1 + TIMED_CALLS), unit="turn"):
        for sampler, interval in cases:
            timings = pipe(
                prompt,
                seed=0,
                num_inference_steps=TIMED_STEPS,
                scheduler=scheduler(pipe, sampler),
                guidance_scale=GUIDANCE,
                guidance_interval=interval,
            ).timings
            if call > 0:  # the first ones load
                steps[sampler, interval].append(timings["decoder_step"] / TIMED_STEPS)
                rest.append(timings["total"] - timings["decoder_step"])
    medians = {case: statistics.median(found) for case, found in steps.items()}
    return {
        "rest": statistics.median(rest),
        "steps": {name: {"guided": medians[name, ALWAYS], "unguided": medians[name, NEVER]} for name in SAMPLERS},
    }


def machine(threads: int | None) -> dict[str, Any]:
    """What seconds belong to."""
    name = this_machine.processor().name
    return {"processor": f"{name}, {threads or this_machine.cores()} threads", "date": time.strftime("%Y-%m-%d")}


def seconds_of(row: Row, seconds: Mapping[str, Any]) -> float:
    """Seconds of one picture, from the prompt to the pixels, put together from the medians."""
    guided, unguided = evaluations(_key(row))
    step = seconds["steps"][row["sampler"]]
    return float(seconds["rest"] + guided * step["guided"] + unguided * step["unguided"])


# The report


def everything(row: Row) -> float:
    """Percent of pictures of which the classifier reads everything right."""
    return float(row["scores"]["everything"])


def write(data: Mapping[str, Any], folder: Path) -> None:
    """steps.md and steps.png of what is there."""
    path = folder / "steps.md"
    conclusion = path.read_text().partition(CONCLUSION)[2].strip() if path.exists() else ""
    rows, seconds = data["runs"], data["seconds"]
    count = data["settings"]["prompts"]
    full = [row for row in rows if _key(row)[2] == ALWAYS]
    base = ("dpm++", INTERVAL_STEPS, ALWAYS)
    partly = [row for row in rows if _key(row) == base or _key(row)[2] != ALWAYS]
    parts = [
        f"# Quality against steps: checkpoints/shapes, {count} unseen prompts",
        _about(data["settings"], seconds),
        f"![Quality against {'steps and seconds' if seconds else 'steps'}](steps.png)",
        _table(full, seconds),
        f"## Guidance on an interval of the {INTERVAL_STEPS} steps of {SAMPLERS['dpm++']}",
        _table(partly, seconds, intervals=True),
        CONCLUSION + "\n" + (conclusion or "None yet."),
    ]
    path.write_text("\n\n".join(parts) + "\n")
    plot(full, seconds, folder / "steps.png")


def _about(settings: Row, seconds: Row) -> str:
    backend, count = settings["backend"], settings["prompts"]
    text = (
        f"128x128, {backend} in fp32, guidance {GUIDANCE:g}; every run has the same embeddings and first noise. "
        '"Everything right" is the share of pictures in which the classifier of the model card reads shape, colour, '
        f"background, size and position as asked; with {count} pictures, differences of a few percent are chance. "
        "Distance: root mean square of the difference to 500 steps of DDIM, of 255. DDPM adds noise of its own at "
        "every step, so that it comes to another picture, not a worse one. Karras' levels are `use_karras_sigmas` in "
        "the scheduler's config; the others are evenly spaced, as the checkpoint's config has them. A guided step "
        "evaluates the UNet twice."
    )
    if not seconds:
        how = "Seconds are not measured yet: `python benchmarks/steps.py engines/shapes --time` adds them."
    else:
        how = (
            f"Seconds a picture, from the prompt on, are {seconds['rest']:.2f} s for all but the UNet and the steps at "
            f"their median of {TIMED_CALLS} warm calls of {TIMED_STEPS} steps, one picture at once: "
            f"{seconds['processor']}, {seconds['date']}."
        )
    return f"{text}\n\n{how} Made by `python benchmarks/steps.py engines/shapes`."


def _table(rows: Sequence[Row], seconds: Row, *, intervals: bool = False) -> str:
    header = ["sampler", "steps", "UNet evaluations", "everything right", "distance"]
    header += ["seconds a picture"] * bool(seconds)
    header[2:2] = ["guided steps"] * intervals
    header[4:4] = ["saved"] * intervals
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        guided, unguided = evaluations(_key(row))
        whole = 2 * (guided + unguided)
        cells = [SAMPLERS[row["sampler"]], row["steps"], whole - unguided]
        cells += [f"{everything(row):.1f} %", f"{row['distance']:.2f}"]
        cells += [f"{seconds_of(row, seconds):.2f}"] if seconds else []
        cells[2:2] = [_interval_words(_key(row)[2])] if intervals else []
        cells[4:4] = [f"{unguided / whole:.0%}"] if intervals else []
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _interval_words(interval: Interval) -> str:
    if interval in (ALWAYS, NEVER):
        return "all" if interval == ALWAYS else "none"
    return f"{interval[0]:.0%} to {interval[1]:.0%}"


def plot(rows: Sequence[Row], seconds: Row, path: Path) -> None:
    """Scores above, distances below; against steps and, where they are measured, seconds."""
    against: list[tuple[str, Callable[[Row], float]]] = [("steps", lambda row: float(row["steps"]))]
    if seconds:
        against.append(("seconds a picture", lambda row: seconds_of(row, seconds)))
    size = (5.5 * len(against), 7.5)
    figure, axes = pyplot.subplots(2, len(against), figsize=size, layout="constrained", squeeze=False, sharey="row")
    shown = [row for row in rows if _key(row) != REFERENCE]
    for column, (label, of) in enumerate(against):
        _lines(axes[0][column], shown, of, everything)
        _lines(axes[1][column], shown, of, lambda row: float(row["distance"]))
        for axis in axes[:, column]:
            axis.set(xlabel=label)
            if label == "steps":
                axis.set(xscale="log")
                axis.set_xticks(STEPS, labels=[str(steps) for steps in STEPS])
                axis.xaxis.set_minor_locator(NullLocator())
    # A sampler that fails altogether would press all others together at the top; the table has its numbers.
    lowest = max(min(map(everything, shown), default=0), LOWEST_SHOWN)
    axes[0][0].set(ylabel=f"everything right, % (above {lowest:.0f})", ylim=(lowest - 1, 101))
    axes[1][0].set(ylabel="distance to 500 steps of DDIM, of 255", yscale="log")
    axes[1][0].yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    axes[0][0].legend(loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _lines(axis: Axes, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    """A line a sampler, and a horizontal one through the default."""
    for sampler, name in SAMPLERS.items():
        points = [row for row in rows if row["sampler"] == sampler]
        axis.plot([x(row) for row in points], [y(row) for row in points], marker="o", markersize=4, label=name)
    default = find(rows, DEFAULT)
    if default is not None:
        axis.axhline(y(default), color="grey", linestyle="--", linewidth=1, label="50 steps of DDPM, the default")
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
