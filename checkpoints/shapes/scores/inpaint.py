"""Does the inpainting UNet paint what the prompt asks for inside the mask, and leave the rest alone?"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor

from recipe import classifier, drawing, loop, movq
from recipe.inpaint import keep_mask
from scores.painters import to_images
from scores.text2img import BACKGROUND, COLOUR, SHAPE, Rows, describe, other_colours, percent, scenes_to_ask_for

CASES, HELD_OUT_CASES = 200, 40
CELL = 8
BOX_MARGIN = 10

KINDS = ("box recoloured", "figure recoloured", "box replaced", "background recoloured")
"""What is masked and what the prompt changes of it; case i is of kind i % 4."""
REPLACED_KIND, BACKGROUND_KIND = 2, 3


@dataclass(frozen=True)
class Cases:
    """`masks` bool (n, H, W), true where to repaint; `scenes` int64 (n, 5) is what the whole picture should show.

    `asked` (n, 3, H, W), -1..1, are drawings of these scenes that differ from the images in nothing else.
    """

    prompts: list[str]
    scenes: Tensor
    images: list[Image.Image]
    masks: Tensor
    asked: Tensor

    def mask_images(self) -> list[Image.Image]:
        """The masks as pictures, white where to repaint."""
        return [Image.fromarray(mask.byte().numpy() * 255) for mask in self.masks]


def cases() -> Cases:
    """Fresh drawings and prompts that differ from them in what the mask covers. The last ask for held-out scenes.

    A box reaches BOX_MARGIN pixels beyond the figure, or to the border. A replaced figure has another shape and colour;
    a recoloured one or its background has another colour only.
    """
    generator = loop.generator_for("score of inpainting", 0)
    asked = scenes_to_ask_for(CASES, HELD_OUT_CASES, generator)
    kinds = torch.arange(CASES) % len(KINDS)
    another_colour = other_colours(asked, generator)[:, 0]
    shift = torch.randint(1, len(drawing.SHAPES), (CASES,), generator=generator)
    another_shape = (asked[:, SHAPE] + shift) % len(drawing.SHAPES)
    before = asked.clone()
    before[:, SHAPE] = torch.where(kinds == REPLACED_KIND, another_shape, asked[:, SHAPE])
    before[:, COLOUR] = torch.where(kinds == BACKGROUND_KIND, asked[:, COLOUR], another_colour)
    before[:, BACKGROUND] = torch.where(kinds == BACKGROUND_KIND, another_colour, asked[:, BACKGROUND])
    wobbles = drawing.sample_wobbles(CASES, generator)
    figures = drawing.edge_distances(before, wobbles) < 0
    boxes = torch.stack([_box(figure) for figure in figures])
    masks = torch.stack([boxes, figures, boxes, ~figures])[kinds, torch.arange(CASES)]
    images = to_images(drawing.draw(before, wobbles) * 0.5 + 0.5)
    return Cases(describe(asked), asked, images, masks, drawing.draw(asked, wobbles))


def _box(figure: Tensor) -> Tensor:
    """The rectangle around a figure, bool (H, W), with its margin."""
    filled = torch.zeros_like(figure)
    (top, left), (bottom, right) = figure.nonzero().amin(0), figure.nonzero().amax(0)
    rows = slice(max(0, int(top) - BOX_MARGIN), int(bottom) + 1 + BOX_MARGIN)
    filled[rows, max(0, int(left) - BOX_MARGIN) : int(right) + 1 + BOX_MARGIN] = True
    return filled


def score(judge: classifier.Classifier, model: VQModel, pictures: Tensor, cases: Cases) -> Rows:
    """Percent of pictures with the asked colour, and the PSNR (dB) of what should have stayed, for each kind of case.

    The PSNR is taken over the unmasked pixels, and over the 8x8 cells that the pipeline keeps (it repaints whole cells,
    and neighbours). It is that of encoding and decoding alone, of the painted picture, and of an ideal painter's: the
    asked drawing's own latents pasted into the kept ones. The ideal falls short of the round trip because MoVQ looks
    beyond a cell, so that kept latents know what was masked, and kept cells are decoded in view of what is new.
    """
    originals = _pixels(cases.images)
    keep = keep_mask(cases.masks[:, ::CELL, ::CELL])
    known = movq.encode(model, originals)
    pasted = keep * known + (1 - keep) * movq.encode(model, cases.asked)
    rivals = {"round trip": movq.decode(model, known), "ideal": movq.decode(model, pasted), "painted": pictures}
    kept = keep[:, 0].bool().repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    areas = {"unmasked": ~cases.masks, "kept cells": kept}
    noise = {
        f"{area}: {rival}": _psnr(result.clamp(-1, 1), originals, where)
        for area, where in areas.items()
        for rival, result in rivals.items()
    }
    rows = _read(judge, pictures, cases)
    for name, chosen in _groups().items():
        # A small figure may leave no cell to keep, and then has no PSNR.
        rows[name] |= {column: round(values[chosen].nanmean().item(), 2) for column, values in noise.items()}
    return rows


def score_overlay(judge: classifier.Classifier, pictures: Tensor, cases: Cases) -> Rows:
    """Percent of pictures with the asked colour, and the largest change of an unmasked pixel, of 255."""
    change = ((pictures - _pixels(cases.images)) * 127.5).abs().amax(1) * ~cases.masks
    rows = _read(judge, pictures, cases)
    for name, chosen in _groups().items():
        rows[name]["unmasked: largest change"] = round(change[chosen].max().item(), 2)
    return rows


def _groups() -> dict[str, Tensor]:
    """Which cases are of each kind, bool (n,)."""
    kinds = torch.arange(CASES) % len(KINDS)
    return {"all": kinds >= 0, **{kind: kinds == i for i, kind in enumerate(KINDS)}}


def _read(judge: classifier.Classifier, pictures: Tensor, cases: Cases) -> Rows:
    """What the classifier says of the colour that was asked for, and of everything."""
    right = classifier.classify(judge, pictures) == cases.scenes
    groups = _groups()
    asked = torch.where(groups[KINDS[BACKGROUND_KIND]], right[:, BACKGROUND], right[:, COLOUR])
    return {
        name: {"asked colour": percent(asked[chosen]), "everything": percent(right[chosen].all(1))}
        for name, chosen in groups.items()
    }


def _pixels(images: list[Image.Image]) -> Tensor:
    """Pictures (n, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def _psnr(pictures: Tensor, originals: Tensor, area: Tensor) -> Tensor:
    """PSNR (dB, of the range -1..1) of each picture within its area, bool (n, H, W)."""
    square = ((pictures - originals).square().mean(1) * area).sum((1, 2)) / area.sum((1, 2))
    return 10 * torch.log10(4 / square)
