"""Does a mix of two prompts, or of two drawings, show the one that has all the weight?"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from recipe import classifier, drawing, loop
from scores.painters import Part, to_images
from scores.text2img import BACKGROUND, COLOUR, Rows, describe, other_colours, percent, scenes_to_ask_for

CASES, TEXT_CASES, HELD_OUT_CASES = 200, 100, 40

WEIGHTS = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
ENDS = (0, 2)
"""Which weights leave one of the two; what is between them is for the eye alone."""


@dataclass(frozen=True)
class Cases:
    """`pairs` are what is mixed, and `scenes` int64 (n, 2, 5) what they show; `drawings` (n, 2) show it too."""

    prompts: list[str]
    pairs: list[tuple[Part, Part]]
    scenes: Tensor
    drawings: list[tuple[Image.Image, Image.Image]]


def cases() -> Cases:
    """Two scenes each, alike but for one colour: the figure's in even cases, the background's in odd ones.

    The first TEXT_CASES are prompts, the others drawings. Some scenes at the end were kept out of training.
    """
    generator = loop.generator_for("score of mixing", 0)
    first = scenes_to_ask_for(CASES, HELD_OUT_CASES, generator)
    differs = _differing()
    second = first.scatter(1, differs, other_colours(first, generator))
    wobbles = drawing.sample_wobbles(CASES, generator)
    drawn = [to_images(drawing.draw(scenes, wobbles) * 0.5 + 0.5) for scenes in (first, second)]
    texts, drawings = (list(zip(*both, strict=True)) for both in (map(describe, (first, second)), drawn))
    return Cases(
        [f"{a} + {b}" for a, b in texts],
        [*texts[:TEXT_CASES], *drawings[TEXT_CASES:]],
        torch.stack([first, second], dim=1),
        drawings,
    )


def score(judge: classifier.Classifier, pictures: Tensor, cases: Cases) -> Rows:
    """Percent of pictures (n, weights, 3, H, W) that show, of the scene that has all the weight, what differs; and all.

    "both colours" are those of figure and background, "everything" is all five attributes.
    """
    right = torch.stack(
        [classifier.classify(judge, pictures[:, end]) == cases.scenes[:, side] for side, end in enumerate(ENDS)], dim=1
    )
    differing = right.gather(2, _differing()[:, None].expand(-1, len(ENDS), -1))[..., 0]
    texts = (torch.arange(CASES) < TEXT_CASES)[:, None].expand(-1, len(ENDS))
    sides = torch.arange(len(ENDS)).expand(CASES, -1)
    groups = {"all": sides >= 0}
    for kind, chosen in {"texts": texts, "drawings": ~texts}.items():
        groups |= {f"{kind} 1:0": chosen & (sides == 0), f"{kind} 0:1": chosen & (sides == 1)}
    return {
        name: {
            "differing colour": percent(differing[chosen]),
            "both colours": percent(right[chosen][:, COLOUR : BACKGROUND + 1].all(1)),
            "everything": percent(right[chosen].all(1)),
        }
        for name, chosen in groups.items()
    }


def _differing() -> Tensor:
    """Which attribute the two scenes of each case differ in, (n, 1)."""
    return torch.tensor([COLOUR, BACKGROUND]).repeat(CASES // 2)[:, None]
