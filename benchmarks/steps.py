"""Quality against steps and time, on checkpoints/shapes: fewer steps for the same picture.

    python -m benchmarks.steps engines/shapes           # quality; other jobs may run beside it
    python -m benchmarks.steps engines/shapes --time    # seconds alone, in a minute, on an idle machine

paints prompts of the model card with every sampler and number of steps, and compares with 500 steps of DDIM from the
same noise: whether the classifier reads everything that was asked for, and how far the pixels are. Every run is kept in
reports/steps.json as soon as it is done, and one that is there is not made again. steps.md and steps.png are made of
that file; the section "Conclusion" of steps.md is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import steps_report
from benchmarks.command import REPORTS, one_sentence
from benchmarks.runs import (
    ALWAYS,
    GUIDANCE,
    NEVER,
    REFERENCE,
    RUNS,
    SAMPLERS,
    TIMED_CALLS,
    TIMED_STEPS,
    Interval,
    Pictures,
    Row,
    Run,
    RunMeasurements,
)
from benchmarks.shapes import FOLDER, classifier, text2img
from kandinsky22 import Pipeline
from kandinsky22 import machine as this_machine
from kandinsky22.arrays import Embeddings
from kandinsky22.bundle.manifest import Role
from kandinsky22.schedulers import configs

BATCH = 16


@one_sentence()
def main() -> None:
    """Paint what is missing, or measure seconds; write the report."""
    options = _options()
    options.reports.mkdir(parents=True, exist_ok=True)
    # fp32: the rounding of bf16 would be a floor under the distances.
    with Pipeline.load(options.bundle, options.backend, precision="fp32", threads=options.threads) as pipe:
        settings = {"bundle": pipe.bundle.manifest.name, "backend": options.backend, "prompts": options.prompts}
        found = RunMeasurements(options.reports, settings)
        if options.time:
            found.data["seconds"] = measure_seconds(pipe) | machine(options.threads)
            found.save()
        else:
            paint_missing(pipe, found)
    steps_report.write(found.data, options.reports)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", type=Path)
    add("--time", action="store_true", help="measure seconds alone; quality stays as it is")
    add("--prompts", type=int, default=60, help="how many of the card's 300 (%(default)s)")
    add("--backend", default="onnxruntime", help="in fp32 (%(default)s)")
    add("--threads", type=int, help="processor threads; the backend's choice without it")
    add("--reports", type=Path, default=REPORTS, help="folder of the report (%(default)s)")
    return parser.parse_args()


def paint_missing(pipe: Pipeline, found: RunMeasurements) -> None:
    """Paint and score the runs that `found` lacks."""
    if all(map(found.has, RUNS)):
        return  # the embeddings alone take a while
    every, scenes = text2img.unseen_prompts()
    count = found.data["settings"]["prompts"]
    # Spread evenly: the first ones are all of combinations that were kept out of training.
    chosen = [place * len(every) // count for place in range(count)]
    judge = classifier.load(FOLDER / "classifier.safetensors")
    embeds = pipe.embed([every[place] for place in chosen], seed=0, batch_size=BATCH)

    def score(pictures: Pictures) -> dict[str, float]:
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        scores = text2img.score(judge, signed, scenes[chosen])["all"]
        del scores["held out"]  # the first 60 of all 300, not of these
        return scores

    run_missing(found, lambda run: paint(pipe, embeds, run), score)


def run_missing(found: RunMeasurements, painted: Callable[[Run], Pictures], score: Callable[[Pictures], Row]) -> None:
    """Call `painted` for each run that is not there, and keep its scores and its distance to the reference."""
    reference = found.reference()
    missing = [run for run in RUNS if not found.has(run)]
    if missing and reference is None:
        missing = [REFERENCE, *(run for run in missing if run != REFERENCE)]
    bar = tqdm(missing, unit="run", dynamic_ncols=True)
    for run in bar:
        bar.set_description(f"{run[0]} {run[1]}")
        pictures = painted(run)
        if reference is None or run == REFERENCE:
            found.keep_reference(pictures)
            reference = pictures
        found.add(run, {"distance": distance(pictures, reference), "scores": score(pictures)})


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
    decoder = pipe.bundle.manifest.name_of(Role.DECODER)
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
                steps[sampler, interval].append(timings[decoder] / TIMED_STEPS)
                rest.append(timings["total"] - timings[decoder])
    medians = {case: statistics.median(found) for case, found in steps.items()}
    return {
        "rest": statistics.median(rest),
        "steps": {name: {"guided": medians[name, ALWAYS], "unguided": medians[name, NEVER]} for name in SAMPLERS},
    }


def machine(threads: int | None) -> dict[str, Any]:
    """What seconds belong to."""
    name = this_machine.processor().name
    return {"processor": f"{name}, {threads or this_machine.cores()} threads", "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    main()
