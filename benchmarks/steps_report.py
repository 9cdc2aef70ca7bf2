"""The report of quality against steps: steps.md and steps.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, NullLocator

from benchmarks.runs import (
    ALWAYS,
    DEFAULT,
    GUIDANCE,
    INTERVAL_STEPS,
    NEVER,
    REFERENCE,
    SAMPLERS,
    STEPS,
    TIMED_CALLS,
    TIMED_STEPS,
    Interval,
    Row,
    evaluations,
    find,
    key_of,
)
from kandinsky22.files import read_regular
from kandinsky22.schema import MOST_BYTES

LOWEST_SHOWN = 80
CONCLUSION = "## Conclusion\n"


def seconds_of(row: Row, seconds: Mapping[str, Any]) -> float:
    """Seconds of one picture, from the prompt to the pixels, put together from the medians."""
    guided, unguided = evaluations(key_of(row))
    step = seconds["steps"][row["sampler"]]
    return float(seconds["rest"] + guided * step["guided"] + unguided * step["unguided"])


def everything(row: Row) -> float:
    """Percent of pictures of which the classifier reads everything right."""
    return float(row["scores"]["everything"])


def write(data: Mapping[str, Any], folder: Path) -> None:
    """steps.md and steps.png of what is there."""
    path = folder / "steps.md"
    before = read_regular(path, MOST_BYTES).decode() if path.exists() else ""
    conclusion = before.partition(CONCLUSION)[2].strip()
    rows, seconds = data["runs"], data["seconds"]
    count = data["settings"]["prompts"]
    full = [row for row in rows if key_of(row)[2] == ALWAYS]
    base = ("dpm++", INTERVAL_STEPS, ALWAYS)
    partly = [row for row in rows if key_of(row) == base or key_of(row)[2] != ALWAYS]
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
        how = "Seconds are not measured yet: `python -m benchmarks.steps engines/shapes --time` adds them."
    else:
        how = (
            f"Seconds a picture, from the prompt on, are {seconds['rest']:.2f} s for all but the UNet and the steps at "
            f"their median of {TIMED_CALLS} warm calls of {TIMED_STEPS} steps, one picture at once: "
            f"{seconds['processor']}, {seconds['date']}."
        )
    return f"{text}\n\n{how} Made by `python -m benchmarks.steps engines/shapes`."


def _table(rows: Sequence[Row], seconds: Row, *, intervals: bool = False) -> str:
    header = ["sampler", "steps", "UNet evaluations", "everything right", "distance"]
    header += ["seconds a picture"] * bool(seconds)
    header[2:2] = ["guided steps"] * intervals
    header[4:4] = ["saved"] * intervals
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        guided, unguided = evaluations(key_of(row))
        whole = 2 * (guided + unguided)
        cells = [SAMPLERS[row["sampler"]], row["steps"], whole - unguided]
        cells += [f"{everything(row):.1f} %", f"{row['distance']:.2f}"]
        cells += [f"{seconds_of(row, seconds):.2f}"] if seconds else []
        cells[2:2] = [_interval_words(key_of(row)[2])] if intervals else []
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
    shown = [row for row in rows if key_of(row) != REFERENCE]
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
