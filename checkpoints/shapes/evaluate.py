"""Score 300 prompts that the checkpoint has never seen, through the runtime and through diffusers.

    python checkpoints/shapes/evaluate.py --bundle engines/shapes [--sheet contact-sheet.png] [--json]

A prompt counts as right in an attribute where the classifier sees in the picture what the prompt says.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, KandinskyV22Pipeline, KandinskyV22PriorPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from kandinsky22 import Pipeline
from recipe import captions, classifier, drawing, loop

HERE = Path(__file__).parent
PROMPTS, HELD_OUT_PROMPTS = 300, 60
BATCH = 10
RUNS = (("DDPM", 50), ("DDIM", 25))
SHEET = (8, 4)

Painter = Callable[[list[str], list[int], str, int], NDArray[np.float32]]
"""Prompts, their seeds, a scheduler's name and its steps to pictures (n, H, W, 3) with values 0..1."""


def unseen_prompts() -> tuple[list[str], Tensor]:
    """The prompts and the scenes (n, 5) that they describe; the first are of combinations kept out of training."""
    generator = loop.generator_for("prompts", 0)
    scenes = torch.cat(
        [
            drawing.sample_scenes(HELD_OUT_PROMPTS, generator, drawing.HELD_OUT_SCENES),
            drawing.sample_scenes(PROMPTS - HELD_OUT_PROMPTS, generator),
        ]
    )
    rng = random.Random(loop.SEED)
    return [captions.caption(tuple(s), rng, captions.UNSEEN_TEMPLATES) for s in scenes.tolist()], scenes


def with_runtime(bundle: Path, backend: str) -> Painter:
    """Paint with kandinsky22."""

    pipe = Pipeline.load(bundle, backend)

    def paint(prompts: list[str], seeds: list[int], scheduler: str, steps: int) -> NDArray[np.float32]:
        side = drawing.PICTURE_SIZE
        out = pipe(
            prompts,
            height=side,
            width=side,
            seed=seeds,
            scheduler=scheduler,
            num_inference_steps=steps,
            output_type="np",
        )
        return np.asarray(out.images)

    return paint


def with_diffusers() -> Painter:
    """Paint with diffusers' own pipelines, in float32."""
    prior = KandinskyV22PriorPipeline.from_pretrained(HERE / "prior")
    decoder = KandinskyV22Pipeline.from_pretrained(HERE / "decoder")
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    config = dict(decoder.scheduler.config)
    ddpm = DDPMScheduler.from_config(config)
    del config["variance_type"]  # DDIM has no learned variance, and fails in diffusers where its config says so
    schedulers = {"DDPM": ddpm, "DDIM": DDIMScheduler.from_config(config)}

    def paint(prompts: list[str], seeds: list[int], scheduler: str, steps: int) -> NDArray[np.float32]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        decoder.scheduler = schedulers[scheduler]
        embeds, negative = prior(prompts, generator=generators, return_dict=False)
        side = drawing.PICTURE_SIZE
        return decoder(
            image_embeds=embeds,
            negative_image_embeds=negative,
            height=side,
            width=side,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
        ).images

    return paint


def paint_all(paint: Painter, prompts: list[str], scheduler: str, steps: int, name: str) -> Tensor:
    """Pictures (n, 3, H, W) in -1..1 of all prompts; prompt i has seed i."""
    parts = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=f"{name} {scheduler} {steps}"):
        some = prompts[start : start + BATCH]
        parts.append(paint(some, list(range(start, start + len(some))), scheduler, steps))
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2) * 2 - 1


def score(judge: classifier.Classifier, pictures: Tensor, scenes: Tensor) -> dict[str, float]:
    """Percent of pictures that are right in each attribute, in everything, and in everything of held-out scenes."""
    right = classifier.classify(judge, pictures) == scenes
    whole = right.all(1).float()
    shares = dict(zip(drawing.ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
    shares |= {"everything": whole.mean().item(), "held out": whole[:HELD_OUT_PROMPTS].mean().item()}
    return {name: round(100 * share, 1) for name, share in shares.items()}


def contact_sheet(pictures: Tensor, prompts: list[str], path: Path) -> None:
    """Some of the pictures, evenly chosen, with their prompts below."""
    columns, rows = SHEET
    side, text = drawing.PICTURE_SIZE, 56
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + text)), "white")
    pen = ImageDraw.Draw(sheet)
    chosen = np.linspace(0, len(prompts) - 1, columns * rows).astype(int)
    for place, index in enumerate(chosen):
        x, y = place % columns * (side + 8), place // columns * (side + text)
        pixels = ((pictures[index].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        sheet.paste(Image.fromarray(pixels), (x + 4, y))
        pen.multiline_text((x + 4, y + side + 2), "\n".join(_wrap(prompts[index])), "black", font_size=10)
    sheet.save(path, optimize=True)


def _wrap(text: str, width: int = 25) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
    yield line


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, help="an exported bundle of this checkpoint (without it: diffusers alone)"
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--no-diffusers", action="store_true", help="score the runtime alone")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first run here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    painters: dict[str, Painter] = {}
    if options.bundle:
        painters["kandinsky22"] = with_runtime(options.bundle, options.backend)
    if not options.no_diffusers:
        painters["diffusers"] = with_diffusers()
    judge = classifier.load(HERE / "classifier.safetensors")
    prompts, scenes = unseen_prompts()
    table = {"classifier on drawings": {"everything": round(100 * classifier.accuracy(judge), 1)}}
    for scheduler, steps in RUNS:
        for name, paint in painters.items():
            started = time.perf_counter()
            pictures = paint_all(paint, prompts, scheduler, steps, name)
            seconds = round((time.perf_counter() - started) / len(prompts), 3)
            table[f"{name} {scheduler} {steps}"] = score(judge, pictures, scenes) | {"seconds a picture": seconds}
            if options.sheet and len(table) == 2:
                contact_sheet(pictures, prompts, options.sheet)
    print(json.dumps(table, indent=2) if options.json else as_markdown(table))


def as_markdown(table: dict[str, dict[str, float]]) -> str:
    """The table of scores in Markdown."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    order = [*drawing.ATTRIBUTES, "everything", "held out", "seconds a picture"]
    columns.sort(key=order.index)
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for name, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
