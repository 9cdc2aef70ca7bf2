"""Score checkpoints/shapes on cases that it has never seen, through the runtime and through diffusers.

    python checkpoints/shapes/evaluate.py --bundle engines/shapes-tasks [--tasks controlnet mix] [--sheets .] [--json]

What is right is read off the pictures by a classifier (`recipe/classifier.py`) and by pixels; see `scores/`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from recipe import classifier
from scores import controlnet, img2img, inpaint, mix, text2img
from scores.painters import SIDE, Diffusers, Painter, Pictures, Run, Runtime, to_images
from scores.sheet import contact_sheet

HERE = Path(__file__).parent
BATCH = 10
STEPS = {"DDPM": 50, "DDIM": 25}
SHADE = (128, 128, 128)


@dataclass(frozen=True)
class Task:
    """How the cases of a task are painted, scored and shown; case i has seed i.

    `paint` paints some of the cases: (n, H, W, 3), or (n, several, H, W, 3) where a case is painted in several ways;
    `score` takes the pictures of all, (n, [several,] 3, H, W) in -1..1; `shown` is what stands left of each case's
    pictures in a contact sheet of `layout` tiles, if there is one.
    """

    prompts: list[str]
    paint: Callable[[Painter, slice, Run], Pictures]
    score: Callable[[Tensor], text2img.Rows]
    shown: list[list[Image.Image]]
    layout: tuple[int, int]
    sheet: str | None


def from_text(judge: classifier.Classifier) -> Task:
    """300 prompts."""
    prompts, scenes = text2img.unseen_prompts()
    return Task(
        prompts,
        lambda painter, some, run: painter.text2img(prompts[some], run),
        lambda pictures: text2img.score(judge, pictures, scenes),
        [[] for _ in prompts],
        (8, 4),
        "contact-sheet.png",
    )


def from_hints(judge: classifier.Classifier) -> Task:
    """200 prompts with depth maps."""
    cases = controlnet.cases()
    prompts, hints = cases.prompts, cases.hints
    return Task(
        prompts,
        lambda painter, some, run: painter.controlnet(prompts[some], hints[some], run),
        lambda pictures: controlnet.score(judge, pictures, cases),
        [[hint] for hint in hints],
        (4, 4),
        "contact-sheet-controlnet.png",
    )


def repainted(judge: classifier.Classifier) -> Task:
    """200 pictures with masks and prompts."""
    movq = VQModel.from_pretrained(HERE / "inpaint" / "movq")
    return _inpainting(lambda cases, pictures: inpaint.score(judge, movq, pictures, cases), overlay=False)


def overlaid(judge: classifier.Classifier) -> Task:
    """The same with the pictures' own pixels put back where the masks are black."""
    return _inpainting(lambda cases, pictures: inpaint.score_overlay(judge, pictures, cases), overlay=True)


def _inpainting(score: Callable[[inpaint.Cases, Tensor], text2img.Rows], *, overlay: bool) -> Task:
    cases = inpaint.cases()
    prompts, images, masks = cases.prompts, cases.images, cases.mask_images()
    shade = Image.new("RGB", images[0].size, SHADE)
    return Task(
        prompts,
        lambda painter, some, run: painter.inpaint(prompts[some], images[some], masks[some], run, overlay=overlay),
        lambda pictures: score(cases, pictures),
        [[image, Image.composite(shade, image, mask)] for image, mask in zip(images, masks, strict=True)],
        (3, 5),
        None if overlay else "contact-sheet-inpaint.png",
    )


def mixed(judge: classifier.Classifier) -> Task:
    """200 pairs of prompts or of drawings, with three pairs of weights each."""
    cases = mix.cases()
    white = Image.new("RGB", (SIDE, SIDE), "white")
    return Task(
        cases.prompts,
        lambda painter, some, run: np.stack([painter.mix(cases.pairs[some], w, run) for w in mix.WEIGHTS], axis=1),
        lambda pictures: mix.score(judge, pictures, cases),
        [[white if isinstance(part, str) else part for part in pair] for pair in cases.pairs],
        (2, 5),
        "contact-sheet-mix.png",
    )


def changed(judge: classifier.Classifier) -> Task:
    """200 pictures with prompts, at five strengths each."""
    cases = img2img.cases()
    prompts, images = cases.prompts, cases.images
    movq = VQModel.from_pretrained(HERE / "decoder" / "movq")
    return Task(
        prompts,
        lambda painter, some, run: np.stack(
            [painter.img2img(prompts[some], images[some], strength, run) for strength in img2img.STRENGTHS], axis=1
        ),
        lambda pictures: img2img.score(judge, movq, pictures, cases),
        [[image] for image in images],
        (2, 5),
        "contact-sheet-img2img.png",
    )


TASKS = {
    "text2img": from_text,
    "controlnet": from_hints,
    "inpaint": repainted,
    "overlay": overlaid,
    "mix": mixed,
    "img2img": changed,
}


def paint_all(task: Task, painter: Painter, scheduler: str, steps: int, name: str) -> Tensor:
    """Pictures (n, [several,] 3, H, W) in -1..1 of all cases."""
    seeds = list(range(len(task.prompts)))
    batches = [slice(start, start + BATCH) for start in range(0, len(seeds), BATCH)]
    parts = [
        task.paint(painter, some, Run(seeds[some], scheduler, steps))
        for some in tqdm(batches, desc=f"{name} {scheduler} {steps}")
    ]
    return torch.from_numpy(np.concatenate(parts)).movedim(-1, -3) * 2 - 1


def show(task: Task, pictures: Tensor, path: Path) -> None:
    """Write the task's contact sheet."""
    painted = (to_images((several + 1) / 2) for several in pictures.reshape(len(pictures), -1, 3, SIDE, SIDE))
    tiles = [[*shown, *several] for shown, several in zip(task.shown, painted, strict=True)]
    contact_sheet(tiles, task.prompts, *task.layout, path)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, help="an exported bundle of this checkpoint (without it: diffusers alone)"
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="(all)")
    parser.add_argument("--schedulers", nargs="+", choices=STEPS, default=list(STEPS), help="(all)")
    parser.add_argument("--no-diffusers", action="store_true", help="score the runtime alone")
    parser.add_argument("--sheets", type=Path, help="write a contact sheet of each task's first run into this folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    painters: dict[str, Painter] = {}
    if options.bundle:
        painters["kandinsky22"] = Runtime(options.bundle, options.backend)
    if not options.no_diffusers:
        painters["diffusers"] = Diffusers(HERE)
    judge = classifier.load(HERE / "classifier.safetensors")
    tables = {}
    for name in options.tasks:
        task = TASKS[name](judge)
        tables[name] = score(task, painters, options.schedulers, options.sheets)
    tables["classifier"] = {"on drawings": {"everything": round(100 * classifier.accuracy(judge), 1)}}
    print(json.dumps(tables, indent=2) if options.json else "\n\n".join(map(as_markdown, tables.values())))


def score(task: Task, painters: dict[str, Painter], schedulers: list[str], sheets: Path | None) -> text2img.Rows:
    """The scores of every run of every painter."""
    table = {}
    for scheduler in schedulers:
        steps = STEPS[scheduler]
        for name, painter in painters.items():
            started = time.perf_counter()
            pictures = paint_all(task, painter, scheduler, steps, name)
            seconds = round((time.perf_counter() - started) / len(task.prompts), 3)
            if sheets and task.sheet and not table:
                show(task, pictures, sheets / task.sheet)
            for group, row in task.score(pictures).items():
                label = f"{name} {scheduler} {steps}" + ("" if group == "all" else f", {group}")
                table[label] = row | {"seconds a picture": seconds}
    return table


def as_markdown(table: text2img.Rows) -> str:
    """A table of scores in Markdown; every run has the same columns."""
    columns = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row[c]) for c in columns) + " |" for name, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
