"""Does image to image go from the picture to the prompt as its strength grows?"""

from dataclasses import dataclass

import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor

from recipe import classifier, drawing, loop, movq
from scores.painters import to_images
from scores.text2img import BACKGROUND, COLOUR, Rows, describe, other_colours, percent, scenes_to_ask_for

CASES, HELD_OUT_CASES = 200, 40
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Cases:
    """`before` int64 (n, 5) is what the `images` show, and `scenes` what the prompts ask for; `drawn` is in -1..1."""

    prompts: list[str]
    scenes: Tensor
    before: Tensor
    drawn: Tensor
    images: list[Image.Image]


def cases() -> Cases:
    """Fresh drawings, and prompts for the same figure in another colour on another ground. The last are held out."""
    generator = loop.generator_for("score of image to image", 0)
    asked = scenes_to_ask_for(CASES, HELD_OUT_CASES, generator)
    before = asked.clone()
    before[:, COLOUR : BACKGROUND + 1] = other_colours(asked, generator, 2)
    drawn = drawing.draw(before, drawing.sample_wobbles(CASES, generator))
    return Cases(describe(asked), asked, before, drawn, to_images(drawn * 0.5 + 0.5))


def score(judge: classifier.Classifier, model: VQModel, pictures: Tensor, cases: Cases) -> Rows:
    """For each strength, of pictures (n, strengths, 3, H, W): how far from the input, and what the classifier reads.

    The distance is the root mean square over all pixels, of 255, to the input's round trip through MoVQ; "further" is
    the percent of pictures that are further away than with the strength before.
    """
    trip = movq.decode(model, movq.encode(model, cases.drawn)).clamp(-1, 1)
    distances = (pictures - trip[:, None]).square().mean((2, 3, 4)).sqrt() * 127.5
    further = distances.diff(prepend=torch.zeros(CASES, 1)) > 0
    rows: Rows = {}
    for i, strength in enumerate(STRENGTHS):
        seen = classifier.classify(judge, pictures[:, i])
        asked, before = ((seen == scenes)[:, COLOUR : BACKGROUND + 1].all(1) for scenes in (cases.scenes, cases.before))
        right = seen == cases.scenes
        rows[f"strength {strength}"] = {
            "distance": round(distances[:, i].mean().item(), 1),
            "further": percent(further[:, i]),
            "input's colours": percent(before),
            "prompt's colour": percent(right[:, COLOUR]),
            "prompt's background": percent(right[:, BACKGROUND]),
            "both": percent(asked),
            "same figure": percent(right[:, [0, 3, 4]].all(1)),
        }
    return rows
