"""What leads a decoder beside embeddings: a picture to begin with, a mask, a depth hint, encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    """What leads n pictures beside their embeddings: float32 arrays with one entry a picture.

    noise: (n, C, h, w), the caller's, in place of the noise that the run draws first.
    known: (n, C, h, w), clean latents of a picture.
    start: (2,); the run begins from start[0]·known + start[1]·noise. None: from noise.
    mask: (n, 1, h, w), 1 where `known` is kept.
    paste: (steps, 2); after step i, paste[i, 0]·known + paste[i, 1]·noise is pasted where the mask is 1.
    hint_latents: (n, C, h, w), an encoded depth map.
    """

    noise: Floats | None = None
    known: Floats | None = None
    start: Floats | None = None
    mask: Floats | None = None
    paste: Floats | None = None
    hint_latents: Floats | None = None

    def part(self, of: slice) -> Conditions:
        """The conditions of some of the pictures."""
        arrays = {name: getattr(self, name) for name in ("noise", "known", "mask", "hint_latents")}
        return dataclasses.replace(self, **{name: a[of] for name, a in arrays.items() if a is not None})

    def latents(self, noise: Floats) -> Floats:
        """Latents (n, C, h, w) that the run begins with: `noise`, or a picture's latents mixed with it."""
        if self.start is None or self.known is None:
            return noise
        latents: Floats = self.start[0] * self.known + self.start[1] * noise
        return latents

    def feeds(self, noise: Floats) -> dict[str, Floats]:
        """Inputs of the step graph that text to image lacks; `noise` is the noise that the run began with."""
        if self.mask is not None and self.known is not None:
            return {"mask": self.mask, "known": self.known, "known_noise": noise}
        return {} if self.hint_latents is None else {"hint_latents": self.hint_latents}

    def pasted(self, latents: Floats) -> Floats:
        """The last `latents` with what is known pasted clean, as diffusers pastes it once more after its loop.

        The last step has done so already: this undoes what a callback put there.
        """
        if self.mask is None or self.known is None:
            return latents
        pasted: Floats = self.mask * self.known + (1 - self.mask) * latents
        return pasted


def encode(run: Run, sampling: Sampling, pictures: int) -> Conditions:
    """The decoder's inputs, resized to the size of the pictures, encoded, and repeated to one entry a picture."""
    inputs, schedule, downscale = sampling.inputs, sampling.schedule, run.bundle.manifest.downscale
    height, width = (side * downscale for side in sampling.shape[1:])
    known = mask = paste = hint_latents = None
    if isinstance(inputs.images, list):
        pixels = np.stack([reading.resized_picture(image, height, width) for image in inputs.images])
        known = _spread(movq.to_latents(run, pixels), pictures)
    elif inputs.images is not None:
        known = _spread(inputs.images, pictures)
    if inputs.masks is not None:
        mask = _spread(latent_masks(inputs.masks, sampling.shape, downscale), pictures)
        # What is known is noised to the next timestep, and not at all after the last.
        paste = np.concatenate([schedule.scales[1:], np.array([[1, 0]], np.float32)])
    if inputs.hints is not None:
        hints = np.stack([reading.resized_depth(hint, height, width) for hint in inputs.hints])
        hint_latents = _spread(movq.encode_hints(run, hints), pictures)
    start = None if inputs.strength is None else schedule.scales[0]
    return Conditions(sampling.noise, known, start, mask, paste, hint_latents)


def overlaid(inputs: Inputs, pixels: Floats, of: range, count: int) -> Floats:
    """Painted `pixels` (n, H, W, 3) in 0..1 with the task's images put back where its masks are black.

    `pixels` are the pictures `of` a call for `count`. Grey mixes in proportion, as in diffusers'
    `VaeImageProcessor.apply_overlay` for masks and images of one size; diffusers rounds on the way, so that grey may
    differ in the last bits.
    """
    if not isinstance(inputs.images, list) or inputs.masks is None:
        raise TypeError("Only inpainting has images and masks to overlay.")
    height, width = pixels.shape[1:3]
    images = np.stack([reading.resized_picture(image, height, width) for image in _of(inputs.images, of, count)])
    painted = np.stack([mask.whiteness(height, width) for mask in _of(inputs.masks, of, count)])
    return pixels * painted + images * (1 - painted)


def _of(given: Sequence[_T], of: range, count: int) -> list[_T]:
    """Inputs of the pictures `of` a call for `count`, one each; a single input serves all."""
    if len(given) == 1:
        return list(given)
    return [given[place * len(given) // count] for place in of]


def _spread(values: Array, pictures: int) -> Floats:
    """Values repeated to one entry a picture; pictures of one prompt follow each other."""
    return np.repeat(values, pictures // len(values), axis=0)
