"""What steps without their network cost in quality, on checkpoints/shapes: a table in Markdown on stdout.

    python -m benchmarks.skipping engines/shapes  # exported with --shallow

paints prompts of the model card with and without skipped steps, from the same embeddings and noise, and tells how often
the UNet is called, how far the pixels are from the same run without skipping and from 500 steps of DDIM (root mean
square, of 255), and how many pictures the classifier reads as asked. Rivals with as many calls are among the runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.command import one_sentence
from benchmarks.runs import GUIDANCE, Pictures
from benchmarks.shapes import FOLDER, classifier, text2img
from benchmarks.steps import distance, scheduler
from kandinsky22 import Pipeline, Request
from kandinsky22.arrays import Embeddings
from kandinsky22.checks import NO_SKIP

BATCH = 15


class Run(NamedTuple):
    """A sampler, its steps, and what is skipped of them."""

    sampler: str
    steps: int
    skip: str = NO_SKIP


REFERENCE = Run("ddim", 500)
SKIPS = (NO_SKIP, "forecast:2", "forecast:3", "forecast:4", "shallow:2", "shallow:3", "shallow:5")
RUNS = (
    *(Run("ddim", steps, skip) for steps in (20, 50) for skip in SKIPS),
    *(Run("ddim", steps) for steps in (13, 28)),
    *(Run("ddpm", 50, skip) for skip in (*SKIPS[:3], "shallow:3")),
    *(Run("dpm++ karras", 20, skip) for skip in (*SKIPS[:3], "shallow:2")),
    Run("dpm++ karras", 13),
)


@one_sentence()
def main() -> None:
    """Paint, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=30, help="how many of the card's 300 (%(default)s)")
    parser.add_argument("--backend", default="onnxruntime", help="in fp32 (%(default)s)")
    parser.add_argument("--threads", type=int, help="processor threads; the backend's choice without it")
    options = parser.parse_args()
    with Pipeline.load(options.bundle, options.backend, precision="fp32", threads=options.threads) as pipe:
        print("\n".join(table(pipe, options.prompts)))


def table(pipe: Pipeline, prompts: int) -> Iterator[str]:
    """Lines of the table for so many prompts, spread over the card's."""
    every, scenes = text2img.unseen_prompts()
    chosen = [place * len(every) // prompts for place in range(prompts)]
    judge = classifier.load(FOLDER / "classifier.safetensors")
    embeds = pipe.embed([every[place] for place in chosen], seed=0, batch_size=BATCH)
    reference = paint(pipe, embeds, REFERENCE)
    yield "| sampler | steps | skip | calls of the UNet | to the run without | to 500 of DDIM | everything right |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    whole: dict[tuple[str, int], Pictures] = {}
    for run in tqdm(RUNS, unit="run"):
        pictures = paint(pipe, embeds, run)
        whole.setdefault((run.sampler, run.steps), pictures)
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        right = text2img.score(judge, signed, scenes[chosen])["all"]["everything"]
        own, far = (distance(pictures, other) for other in (whole[run.sampler, run.steps], reference))
        yield (
            f"| {run.sampler} | {run.steps} | {run.skip} | {calls(pipe, run)} | {own:.2f} | {far:.2f} | {right:.1f} % |"
        )


def paint(pipe: Pipeline, embeds: Embeddings, run: Run) -> Pictures:
    """Pictures (n, H, W, 3) in 0..1; every run begins with the same embeddings and the same noise."""
    out = pipe(
        image_embeds=embeds,
        seed=0,
        num_inference_steps=run.steps,
        scheduler=scheduler(pipe, run.sampler),
        skip=run.skip,
        guidance_scale=GUIDANCE,
        output_type="np",
        batch_size=BATCH,
    )
    return np.asarray(out.images)


def calls(pipe: Pipeline, run: Run) -> int:
    """How often the UNet is called for a batch."""
    request = Request.of("text2img", prompt="", num_inference_steps=run.steps, skip=run.skip, guidance_scale=GUIDANCE)
    sampling = pipe.resolve(request).sampling
    return run.steps - len(sampling.skip.steps if sampling and sampling.skip else ())


if __name__ == "__main__":
    main()
