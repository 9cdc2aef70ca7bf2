"""Score checkpoints/shapes on cases that it has never seen, through the runtime and through diffusers.

    python checkpoints/shapes/evaluate.py --bundle engines/shapes [--tasks controlnet inpaint] [--sheets .] [--json]

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
from scores import controlnet, inpaint, text2img
from scores.painters import Diffusers, Painter, Pictures, Runtime, to_images
from scores.sheet import contact_sheet

HERE = Path(__file__).parent
BATCH = 10
RUNS = (("DDPM", 50), ("DDIM", 25))
SHADE = (128, 128, 128)


@dataclass(frozen=True)
class Task:
    """How the cases of a task are painted, scored and shown; case i has seed i.

    `paint` takes a painter, which of the cases, a scheduler's name and its steps; `score` takes all pictures
    (n, 3, H, W) in -1..1; `shown` is what stands left of each picture in a contact sheet of `layout` tiles.
    """

    prompts: list[str]
    paint: Callable[[Painter, slice, str, int], Pictures]
    score: Callable[[Tensor], text2img.Rows]
    shown: list[list[Image.Image]]
    layout: tuple[int, int]
    sheet: str


def from_text(judge: classifier.Classifier) -> Task:
    """300 prompts."""
    prompts, scenes = text2img.unseen_prompts()
    return Task(
        prompts,
        lambda painter, some, *how: painter.text2img(prompts[some], _seeds(prompts, some), *how),
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
        lambda painter, some, *how: painter.controlnet(prompts[some], hints[some], _seeds(prompts, some), *how),
        lambda pictures: controlnet.score(judge, pictures, cases),
        [[hint] for hint in hints],
        (4, 4),
        "contact-sheet-controlnet.png",
    )


def repainted(judge: classifier.Classifier) -> Task:
    """200 pictures with masks and prompts."""
    cases = inpaint.cases()
    prompts, images, masks = cases.prompts, cases.images, cases.mask_images()
    movq = VQModel.from_pretrained(HERE / "inpaint" / "movq")
    shade = Image.new("RGB", images[0].size, SHADE)
    return Task(
        prompts,
        lambda painter, some, *how: painter.inpaint(
            prompts[some], images[some], masks[some], _seeds(prompts, some), *how
        ),
        lambda pictures: inpaint.score(judge, movq, pictures, cases),
        [[image, Image.composite(shade, image, mask)] for image, mask in zip(images, masks, strict=True)],
        (3, 5),
        "contact-sheet-inpaint.png",
    )


TASKS = {"text2img": from_text, "controlnet": from_hints, "inpaint": repainted}


def _seeds(prompts: list[str], some: slice) -> list[int]:
    return list(range(len(prompts)))[some]


def paint_all(task: Task, painter: Painter, scheduler: str, steps: int, name: str) -> Tensor:
    """Pictures (n, 3, H, W) in -1..1 of all cases."""
    starts = tqdm(range(0, len(task.prompts), BATCH), desc=f"{name} {scheduler} {steps}")
    parts = [task.paint(painter, slice(start, start + BATCH), scheduler, steps) for start in starts]
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2) * 2 - 1


def show(task: Task, pictures: Tensor, folder: Path) -> None:
    """Write the task's contact sheet."""
    tiles = [[*shown, painted] for shown, painted in zip(task.shown, to_images((pictures + 1) / 2), strict=True)]
    contact_sheet(tiles, task.prompts, *task.layout, folder / task.sheet)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, help="an exported bundle of this checkpoint (without it: diffusers alone)"
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["text2img"])
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
        tables[name] = score(task, painters, options.sheets)
    tables["classifier"] = {"on drawings": {"everything": round(100 * classifier.accuracy(judge), 1)}}
    print(json.dumps(tables, indent=2) if options.json else "\n\n".join(map(as_markdown, tables.values())))


def score(task: Task, painters: dict[str, Painter], sheets: Path | None) -> text2img.Rows:
    """The scores of every run of every painter."""
    table = {}
    for scheduler, steps in RUNS:
        for name, painter in painters.items():
            started = time.perf_counter()
            pictures = paint_all(task, painter, scheduler, steps, name)
            seconds = round((time.perf_counter() - started) / len(task.prompts), 3)
            if sheets and not table:
                show(task, pictures, sheets)
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
