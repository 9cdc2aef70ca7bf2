"""Masks for inpainting: resized, at latent size, and grown as the inpainting UNet was trained to see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kandinsky22.arrays import Floats

_GROWTH = ((-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1))
"""Rows and columns that a hole spreads to. Two diagonal neighbours are left out, as in diffusers."""
WHITE = 128
"""The darkest grey, of 255, that is repainted."""


@dataclass(frozen=True)
class Mask:
    """A mask as its user gave it: white is repainted.

    diffusers' inpainting resizes a PIL mask as it resizes the picture. It takes an array as being of the size that is
    asked for, whatever the picture's, and picks pixels of it (nearest neighbour) when it has another size.
    """

    picture: PIL.Image.Image
    """The mask, L or RGB."""
    from_array: bool
    """Whether it was given as an array."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as given."""
        return self.picture.size

    @property
    def is_empty(self) -> bool:
        """Whether nothing is white enough to be repainted."""
        return not (np.asarray(self.picture.convert("L")) >= WHITE).any()

    def kept(self, height: int, width: int) -> Floats:
        """The mask (1, height, width) float32 as inpainting takes it: 1 is kept, 0 is repainted."""
        return (self._resized(height, width) < WHITE).astype(np.float32)[None]

    def whiteness(self, height: int, width: int) -> Floats:
        """How white the mask is, (height, width, 1) float32 in 0..1: grey is between."""
        return self._resized(height, width).astype(np.float32)[..., None] / np.float32(255)

    def _resized(self, height: int, width: int) -> NDArray[np.uint8]:
        if self.from_array:
            grey = np.asarray(self.picture.convert("L"))
            return grey[np.ix_(_nearest(grey.shape[0], height), _nearest(grey.shape[1], width))]
        return np.asarray(self.picture.resize((width, height), PIL.Image.Resampling.LANCZOS).convert("L"))


def _nearest(given: int, wanted: int) -> NDArray[np.int64]:
    """Places (wanted,) among `given` that torch's `interpolate` picks with mode "nearest", as it rounds them.

    Every eighth of 8·n places is the place that it picks for n: so a mask is the same at latent size.
    """
    step = np.float32(given) / np.float32(wanted)
    return np.minimum((np.arange(wanted, dtype=np.float32) * step).astype(np.int64), given - 1)


def to_latents(mask: Floats, downscale: int) -> Floats:
    """Masks (B, 1, H, W) at latent size (B, 1, H/downscale, W/downscale), by nearest neighbour as torch picks it.

    H and W are multiples of `downscale`: torch then takes the upper left pixel of every block.
    """
    return mask[:, :, ::downscale, ::downscale]


def prepare_mask(mask: Floats) -> Floats:
    """Grow the holes of a mask by one place, as diffusers' `prepare_mask` does pixel by pixel.

    Args:
        mask: float32 (B, 1, h, w): 1 is kept, anything else is a hole and is repainted. It is not changed.

    Returns:
        float32 (B, 1, h, w): 0 where one of the six neighbours of `_GROWTH` points at it from a hole, else `mask`.
    """
    holes = mask != 1
    reached = np.zeros_like(holes)
    height, width = mask.shape[-2:]
    for down, right in _GROWTH:
        source = holes[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        reached[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] |= source
    prepared: Floats = mask * ~reached
    return prepared
