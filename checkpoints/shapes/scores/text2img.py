"""Prompts that the checkpoint has never seen, and how their pictures are scored."""

import random

import torch
from torch import Tensor

from recipe import captions, classifier, drawing, loop

PROMPTS, HELD_OUT_PROMPTS = 300, 60

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
