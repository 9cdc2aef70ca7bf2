"""Prompts that the checkpoint has never seen, and how their pictures are scored."""

import random

import torch
from torch import Tensor

from recipe import captions, classifier, drawing, loop

PROMPTS, HELD_OUT_PROMPTS = 300, 60
SHAPE, COLOUR, BACKGROUND = range(3)

Rows = dict[str, dict[str, float]]
"""Scores by column, for each group of cases; the group "all" has all of them."""


def unseen_prompts() -> tuple[list[str], Tensor]:
    """The prompts and the scenes (n, 5) that they describe; the first are of combinations kept out of training."""
    generator = loop.generator_for("prompts", 0)
    scenes = torch.cat(
        [
            drawing.sample_scenes(HELD_OUT_PROMPTS, generator, drawing.HELD_OUT_SCENES),
            drawing.sample_scenes(PROMPTS - HELD_OUT_PROMPTS, generator),
        ]
    )
    return describe(scenes), scenes


def scenes_to_ask_for(count: int, held_out: int, generator: torch.Generator) -> Tensor:
    """Scenes (count, 5); the last `held_out` are of combinations kept out of training."""
    return torch.cat(
        [
            drawing.sample_scenes(count - held_out, generator),
            drawing.sample_scenes(held_out, generator, drawing.HELD_OUT_SCENES),
        ]
    )


def other_colours(scenes: Tensor, generator: torch.Generator, count: int = 1) -> Tensor:
    """Different colours (n, count) that are neither the figure's nor the background's of scenes (n, 5)."""
    preference = torch.rand(len(scenes), len(drawing.COLOURS), generator=generator)
    return preference.scatter(1, scenes[:, COLOUR : BACKGROUND + 1], -1.0).topk(count).indices


def describe(scenes: Tensor) -> list[str]:
    """A prompt of each scene (n, 5), in wordings that no caption of the training has."""
    rng = random.Random(loop.SEED)
    return [captions.caption(tuple(scene), rng, captions.UNSEEN_TEMPLATES) for scene in scenes.tolist()]


def score(judge: classifier.Classifier, pictures: Tensor, scenes: Tensor) -> Rows:
    """Percent of pictures that are right in each attribute, in everything, and in everything of held-out scenes."""
    right = classifier.classify(judge, pictures) == scenes
    whole = right.all(1)
    shares = dict(zip(drawing.ATTRIBUTES, map(percent, right.T), strict=True))
    return {"all": shares | {"everything": percent(whole), "held out": percent(whole[:HELD_OUT_PROMPTS])}}


def percent(right: Tensor) -> float:
    """Percent of the bools `right` (n,) that are true."""
    return round(100 * right.double().mean().item(), 1)
