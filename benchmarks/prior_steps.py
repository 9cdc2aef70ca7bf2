"""What fewer steps of the prior cost in quality, on checkpoints/shapes: a table in Markdown on stdout.

    python -m benchmarks.prior_steps engines/shapes

computes embeddings of the model card's prompts with every scheduler of the prior and number of steps, each prompt with
two seeds, and tells how near they are to many steps of DPM-Solver++ from the same noise (mean cosine), how far the two
of one prompt are apart (root mean square, as a share of their length), and how many pictures of the first seed the
classifier reads as asked. All are painted by the same decoder with the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.command import one_sentence
from benchmarks.runs import GUIDANCE
from benchmarks.shapes import FOLDER, classifier, text2img
from kandinsky22 import Pipeline
from kandinsky22.arrays import Embeddings, Floats

SEEDS = 2
"""Embeddings of each prompt, and pictures of the first alone."""
EMBED_BATCH, PAINT_BATCH = 100, 15


class Run(NamedTuple):
    """A scheduler of the prior, and its steps."""

    scheduler: str
    steps: int


REFERENCE = Run("DPM++", 200)
RUNS = (
    *(Run("UnCLIP", steps) for steps in (25, 12, 8)),
    *(Run(name, steps) for steps in (2, 3, 4, 5, 6, 8, 10, 15, 25) for name in ("DDIM", "DPM++")),
)


@one_sentence()
def main() -> None:
    """Embed, paint, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=300, help="how many of the card's 300 (%(default)s)")
    parser.add_argument("--backend", default="onnxruntime", help="in fp32 (%(default)s)")
    parser.add_argument("--threads", type=int, help="processor threads; the backend's choice without it")
    options = parser.parse_args()
    with Pipeline.load(options.bundle, options.backend, precision="fp32", threads=options.threads) as pipe:
        for line in table(pipe, options.prompts):
            print(line, flush=True)


def table(pipe: Pipeline, prompts: int) -> Iterator[str]:
    """Lines of the table for so many prompts, spread over the card's."""
    every, scenes = text2img.unseen_prompts()
    chosen = [place * len(every) // prompts for place in range(prompts)]
    texts = [every[place] for place in chosen]
    judge = classifier.load(FOLDER / "classifier.safetensors")
    reference = embed(pipe, texts, REFERENCE)
    near = f"cosine to {REFERENCE.steps} of {REFERENCE.scheduler}"
    yield f"| scheduler | steps | {near} | two seeds apart | everything right |"
    yield "| --- | --- | --- | --- | --- |"
    for run in tqdm((*RUNS, REFERENCE), unit="run"):
        embeds = reference if run == REFERENCE else embed(pipe, texts, run)
        right = text2img.score(judge, paint(pipe, embeds), scenes[chosen])["all"]["everything"]
        like = cosine(embeds.image_embeds, reference.image_embeds)
        yield f"| {run.scheduler} | {run.steps} | {like:.4f} | {apart(embeds):.2f} | {right:.1f} % |"


def embed(pipe: Pipeline, texts: Sequence[str], run: Run) -> Embeddings:
    """Embeddings of `SEEDS` pictures of each text; every run begins with the same noise."""
    return pipe.embed(
        texts,
        seed=0,
        num_images_per_prompt=SEEDS,
        prior_scheduler=run.scheduler,
        prior_num_inference_steps=run.steps,
        batch_size=EMBED_BATCH,
    )


def paint(pipe: Pipeline, embeds: Embeddings) -> torch.Tensor:
    """Pictures (n, 3, H, W) in -1..1 of the first seed of each prompt."""
    first = Embeddings(embeds.image_embeds[::SEEDS], embeds.negative_image_embeds[::SEEDS])
    out = pipe(
        image_embeds=first,
        seed=0,
        num_inference_steps=12,
        scheduler="DPM++ Karras",
        guidance_scale=GUIDANCE,
        output_type="np",
        batch_size=PAINT_BATCH,
    )
    return torch.from_numpy(np.asarray(out.images)).permute(0, 3, 1, 2) * 2 - 1


def cosine(one: Floats, other: Floats) -> float:
    """The mean cosine between rows."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / lengths).mean())


def apart(embeds: Embeddings) -> float:
    """The distance between the two embeddings of a prompt, root mean square over all, as a share of their length."""
    rows = embeds.image_embeds
    squares = np.square(rows[::SEEDS] - rows[1::SEEDS]).sum(axis=1)
    return float(np.sqrt(squares.mean() / np.square(rows).sum(axis=1).mean()))


if __name__ == "__main__":
    main()
