"""Captions of scenes in varied wording; every caption names all five attributes."""

import random
from collections.abc import Sequence

from recipe import drawing

SYNONYMS = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "centre": ("in the middle", "in the centre", "in the center", "at the center"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "near the top", "in the upper part"),
    "bottom": ("at the bottom", "near the bottom", "in the lower part"),
}
TEMPLATES = (
    "{a} {size} {colour} {shape} {position} of {bg} {background} background",
    "{a} {size} {colour} {shape} {position} on {bg} {background} background",
    "{a} {size} {colour} {shape} on {bg} {background} background, {position}",
    "{size} {colour} {shape} {position}, {background} background",
    "{bg} {background} background with {a} {size} {colour} {shape} {position}",
    "on {bg} {background} background, {a} {size} {colour} {shape} {position}",
    "a picture of {a} {size} {colour} {shape} {position}, {background} background",
    "a drawing of {a} {size} {colour} {shape} on {background}, {position}",
    "{a} {colour} {shape}, {size}, {position}, on {bg} {background} background",
    "the {shape} is {colour} and {size} and {position}, the background is {background}",
    "{position}, {a} {size} {colour} {shape}; {background} background",
    "{colour} {shape} on {background}, {size}, {position}",
)

# Never trained on: with these, a prompt is new even where its combination is not.
UNSEEN_TEMPLATES = (
    "{a} {size} {colour} {shape} {position} with {bg} {background} background",
    "{background} background, {a} {size} {colour} {shape} {position}",
    "a drawing of {a} {size} {colour} {shape} {position} on {bg} {background} background",
    "{size} {colour} {shape} on {bg} {background} background, {position}",
)


def caption(scene: tuple[int, ...], rng: random.Random, templates: Sequence[str] = TEMPLATES) -> str:
    """A caption of a scene (five class numbers in the order of `drawing.ATTRIBUTES`), wording drawn from `rng`."""
    names = [values[index] for values, index in zip(drawing.ATTRIBUTES.values(), scene, strict=True)]
    shape, colour, background, size, position = (rng.choice(SYNONYMS.get(name, (name,))) for name in names)
    text = rng.choice(templates).format(
        shape=shape,
        colour=colour,
        background=background,
        size=size,
        position=position,
        a=_article(size),
        bg=_article(background),
    )
    return text + rng.choice(("", "", "."))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
