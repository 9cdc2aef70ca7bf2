"""Does the inpainting UNet paint what the prompt asks for inside the mask, and leave the rest alone?"""

from dataclasses import dataclass

import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor

from recipe import classifier, drawing, loop, movq
from recipe.inpaint import keep_mask
from scores.painters import SIDE, to_images
from scores.text2img import describe, percent

CASES, HELD_OUT_CASES = 200, 40
CELL = 8
BOX_MARGIN = 10
SHAPE, COLOUR, BACKGROUND, SIZE = range(4)

KINDS = ("box recoloured", "figure recoloured", "box replaced", "background recoloured")
"""What is masked and what the prompt changes of it; case i is of kind i % 4."""


@dataclass(frozen=True)
class Cases:
    """`masks` bool (n, H, W), true where to repaint; `scenes` int64 (n, 5) is what the whole picture should show."""

    prompts: list[str]
    scenes: Tensor
    images: list[Image.Image]
    masks: Tensor

    def mask_images(self) -> list[Image.Image]:
        """The masks as pictures, white where to repaint."""
        return [Image.fromarray(mask.byte().numpy() * 255) for mask in self.masks]


def cases() -> Cases:
    """Fresh drawings and prompts that differ from them in what the mask covers. The last ask for held-out scenes.

    A box reaches BOX_MARGIN pixels beyond the figure, or to the border. A replaced figure has another shape and colour;
    a recoloured one or its background has another colour only.
    """
    generator = loop.generator_for("score of inpainting", 0)
    asked = torch.cat(
        [
            drawing.sample_scenes(CASES - HELD_OUT_CASES, generator),
            drawing.sample_scenes(HELD_OUT_CASES, generator, drawing.HELD_OUT_SCENES),
        ]
    )
    kinds = torch.arange(CASES) % len(KINDS)
    preference = torch.rand(CASES, len(drawing.COLOURS), generator=generator)
    another_colour = preference.scatter(1, asked[:, COLOUR : BACKGROUND + 1], -1.0).argmax(1)
    shift = torch.randint(1, len(drawing.SHAPES), (CASES,), generator=generator)
    another_shape = (asked[:, SHAPE] + shift) % len(drawing.SHAPES)
    before = asked.clone()
    before[:, SHAPE] = torch.where(kinds == 2, another_shape, asked[:, SHAPE])
    before[:, COLOUR] = torch.where(kinds == 3, asked[:, COLOUR], another_colour)
    before[:, BACKGROUND] = torch.where(kinds == 3, another_colour, asked[:, BACKGROUND])
    wobbles = drawing.sample_wobbles(CASES, generator)
    figures = drawing.edge_distances(before, wobbles) < 0
    boxes = torch.stack([_box(figure) for figure in figures])
    masks = torch.stack([boxes, figures, boxes, ~figures])[kinds, torch.arange(CASES)]
    return Cases(describe(asked), asked, to_images(drawing.draw(before, wobbles) * 0.5 + 0.5), masks)


def _box(figure: Tensor) -> Tensor:
    """The rectangle around a figure, bool (H, W), with its margin."""
    filled = torch.zeros_like(figure)
    (top, left), (bottom, right) = figure.nonzero().amin(0), figure.nonzero().amax(0)
    rows = slice(max(0, int(top) - BOX_MARGIN), int(bottom) + 1 + BOX_MARGIN)
    filled[rows, max(0, int(left) - BOX_MARGIN) : int(right) + 1 + BOX_MARGIN] = True
    return filled


def score(judge: classifier.Classifier, model: VQModel, pictures: Tensor, cases: Cases) -> dict[str, float]:
    """Percent of pictures with the asked colour, and the unmasked area's PSNR (dB), painted and after MoVQ alone.

    "kept cells" are those 8x8 cells that the pipeline itself keeps: it repaints whole cells, and their neighbours.
    """
    right = classifier.classify(judge, pictures) == cases.scenes
    kinds = torch.arange(CASES) % len(KINDS)
    asked = torch.where(kinds == 3, right[:, BACKGROUND], right[:, COLOUR])
    originals = torch.stack([_pixels(image) for image in cases.images])
    round_trip = movq.decode(model, movq.encode(model, originals)).clamp(-1, 1)
    keep = keep_mask(cases.masks[:, ::CELL, ::CELL])[:, 0].bool()
    kept = keep.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    shares = {"asked colour": percent(asked)}
    shares |= {name: percent(asked[kinds == i]) for i, name in enumerate(KINDS)}
    shares |= {"everything": percent(right.all(1))}
    for name, area in (("unmasked", ~cases.masks), ("kept cells", kept)):
        alone, painted = (_psnr(some, originals, area) for some in (round_trip, pictures))
        there = area.any(2).any(1)
        shares[f"{name}: round trip"] = round(alone[there].mean().item(), 2)
        shares[f"{name}: painted"] = round(painted[there].mean().item(), 2)
    return shares


def _pixels(image: Image.Image) -> Tensor:
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3).permute(2, 0, 1) / 127.5
        - 1
    )


def _psnr(pictures: Tensor, originals: Tensor, area: Tensor) -> Tensor:
    """PSNR (dB, of the range -1..1) of each picture within its area, bool (n, H, W)."""
    square = ((pictures - originals).square().mean(1) * area).sum((1, 2)) / area.sum((1, 2))
    return 10 * torch.log10(4 / square)
