"""Masks for inpainting: from pixels to latents, and grown as the inpainting UNet was trained to see them."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats

_GROWTH = ((-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1))
"""Where a hole spreads to, in rows and columns. The two anti-diagonal neighbours are left out, as in diffusers."""


def to_latents(mask: Floats, downscale: int) -> Floats:
    """The mask (B, 1, H, W) at latent size (B, 1, H/downscale, W/downscale), by nearest neighbour as torch picks it.

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
