"""What leads a decoder beside embeddings: a picture to begin with, a mask, a depth hint, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kandinsky22.arrays import Array, Floats
from kandinsky22.components import Run
from kandinsky22.images import reading
from kandinsky22.request.job import Sampling
from kandinsky22.request.tasks import Inputs, latent_masks
from kandinsky22.sampling import movq

_T = TypeVar("_T")


@dataclass(frozen=True)
class Conditions:
    """What leads a picture beside its embeddings: float32 arrays, each None where it has none.

    noise: (C, h, w), the caller's, in place of the noise that the run draws first.
    known: (C, h, w), clean latents of a picture.
    mask: (1, h, w), 1 where `known` is kept.
    hint_latents: (C, h, w), an encoded depth map.
    """

    noise: Floats | None = None
    known: Floats | None = None
    mask: Floats | None = None
    hint_latents: Floats | None = None


def stacked(each: Sequence[Conditions]) -> Conditions:
    """The conditions of n pictures, which have the same, as arrays (n, …) of their own."""

    def stack(arrays: Sequence[Floats | None]) -> Floats | None:
        found = [array for array in arrays if array is not None]
        return np.stack(found) if found else None

    return Conditions(
        stack([one.noise for one in each]),
        stack([one.known for one in each]),
        stack([one.mask for one in each]),
        stack([one.hint_latents for one in each]),
    )


def encode(run: Run, sampling: Sampling, places: Sequence[int], count: int) -> dict[int, Conditions]:
    """The inputs of the pictures at `places` of a call for `count`, resized to the size of the pictures and encoded.

    What serves several pictures is encoded once, and they share the array.
    """
    inputs, downscale = sampling.inputs, run.bundle.manifest.downscale
    height, width = (side * downscale for side in sampling.shape[1:])
    nothing = [None] * len(places)
    known: Sequence[Floats | None] = nothing
    mask: Sequence[Floats | None] = nothing
    hints: Sequence[Floats | None] = nothing
    if isinstance(inputs.images, list):
        images = _of(inputs.images, places, count)
        known = _once(
            lambda some: movq.to_latents(
                run, np.stack([reading.resized_picture(each, height, width) for each in some])
            ),
            images,
        )
    elif inputs.images is not None:
        known = [*_of(list(inputs.images), places, count)]
    if inputs.masks is not None:
        mask = _once(lambda some: latent_masks(some, sampling.shape, downscale), _of(inputs.masks, places, count))
    if inputs.hints is not None:
        hints = _once(
            lambda some: movq.encode_hints(
                run, np.stack([reading.resized_depth(each, height, width) for each in some])
            ),
            _of(inputs.hints, places, count),
        )
    noise = nothing if sampling.noise is None else [sampling.noise[place] for place in places]
    arrays = zip(noise, known, mask, hints, strict=True)
    return {place: Conditions(*found) for place, found in zip(places, arrays, strict=True)}


def pasted(latents: Floats, mask: Array | None, known: Array | None) -> Floats:
    """The last latents (n, C, h, w) with what is known pasted clean, as diffusers pastes it once more after its loop.

    The last step has done so already: this undoes what a callback put there.
    """
    if mask is None or known is None:
        return latents
    whole: Floats = mask * known + (1 - mask) * latents
    return whole


def overlaid(inputs: Inputs, pixels: Floats, places: Sequence[int], count: int) -> Floats:
    """Painted `pixels` (n, H, W, 3) in 0..1 with the task's images put back where its masks are black.

    `pixels` are the pictures at `places` of a call for `count`. Grey mixes in proportion, as in diffusers'
    `VaeImageProcessor.apply_overlay` for masks and images of one size; diffusers rounds on the way, so that grey may
    differ in the last bits.
    """
    if not isinstance(inputs.images, list) or inputs.masks is None:
        raise TypeError("Only inpainting has images and masks to overlay.")
    height, width = pixels.shape[1:3]
    originals = _once(
        lambda some: np.stack([reading.resized_picture(each, height, width) for each in some]),
        _of(inputs.images, places, count),
    )
    painted = _once(
        lambda some: np.stack([each.whiteness(height, width) for each in some]), _of(inputs.masks, places, count)
    )
    white: Floats = np.stack(painted)
    overlay: Floats = pixels * white + np.stack(originals) * (1 - white)
    return overlay


def _of(given: Sequence[_T], places: Sequence[int], count: int) -> list[_T]:
    """The input of each picture at `places` of a call for `count`; pictures of one prompt follow each other."""
    return [given[place * len(given) // count] for place in places]


def _once(make: Callable[[Sequence[_T]], Array], values: Sequence[_T]) -> list[Floats]:
    """What `make` gives for some values, a row each; values that are one object are given once."""
    different = {id(value): value for value in values}
    made = {key: row.copy() for key, row in zip(different, make(list(different.values())), strict=True)}
    return [made[id(value)] for value in values]
