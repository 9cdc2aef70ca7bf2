"""Does the depth ControlNet paint the figure where the hint has it, in the colours that the prompt names?"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from recipe import classifier, drawing, loop
from scores.painters import to_images
from scores.text2img import Rows, describe, percent, scenes_to_ask_for

CASES, CONTRARY_CASES, HELD_OUT_CASES = 200, 100, 40


@dataclass(frozen=True)
class Cases:
    """`hints` are depth maps of figures (bool (n, H, W)); `scenes` int64 (n, 5) is what the prompts say.

    The prompts of the first CONTRARY_CASES name another shape, size and position than the hint has.
    """

    prompts: list[str]
    scenes: Tensor
    hints: list[Image.Image]
    figures: Tensor


def cases() -> Cases:
    """Hints of fresh drawings; at the end are combinations that were kept out of training."""
    generator = loop.generator_for("score of the controlnet", 0)
    scenes = scenes_to_ask_for(CASES, HELD_OUT_CASES, generator)
    wobbles = drawing.sample_wobbles(CASES, generator)
    said = scenes.clone()
    for attribute in (0, 3, 4):
        values = len(list(drawing.ATTRIBUTES.values())[attribute])
        shift = torch.randint(1, values, (CONTRARY_CASES,), generator=generator)
        said[:CONTRARY_CASES, attribute] = (said[:CONTRARY_CASES, attribute] + shift) % values
    figures = drawing.edge_distances(scenes, wobbles) < 0
    return Cases(describe(said), said, to_images(drawing.draw_depth(scenes, wobbles)), figures)


def painted_figures(pictures: Tensor, scenes: Tensor) -> Tensor:
    """Figures in pictures (n, 3, H, W) in -1..1, bool (n, H, W): nearer to the figure's asked colour than the ground's.

    The boundary is half way between the two palette colours, which is where a clean edge covers half a pixel. The two
    nearest colours of the palette are 79 apart (of 255) and wobble by 12 at most, so flat areas are never in doubt.
    Colours that were not asked for count against the picture.
    """
    figure, ground = (drawing.RGB[scenes[:, i]][:, :, None, None] / 127.5 - 1 for i in (1, 2))
    return (pictures - figure).square().sum(1) < (pictures - ground).square().sum(1)


def score(judge: classifier.Classifier, pictures: Tensor, cases: Cases) -> Rows:
    """Intersection over union of painted and hinted figures, and percent of pictures in the prompt's colours."""
    painted = painted_figures(pictures, cases.scenes)
    overlap = (painted & cases.figures).sum((1, 2)) / (painted | cases.figures).sum((1, 2))
    right = (classifier.classify(judge, pictures) == cases.scenes)[:, 1:3]
    contrary = torch.arange(CASES) < CONTRARY_CASES
    rows = {"all": contrary | ~contrary, "prompt agrees": ~contrary, "prompt disagrees": contrary}
    return {
        name: {
            "mean IoU": round(overlap[chosen].mean().item(), 3),
            "worst IoU": round(overlap[chosen].min().item(), 3),
            "colour": percent(right[chosen, 0]),
            "background": percent(right[chosen, 1]),
            "both colours": percent(right[chosen].all(1)),
        }
        for name, chosen in rows.items()
    }
