"""Latents to pixels and back (MoVQ, arXiv:2209.09002)."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats
from kandinsky22.batching import runs
from kandinsky22.components import Components


def to_pixels(components: Components, latents: Floats) -> Floats:
    """Pictures (n, H, W, 3) float32 in 0..1 from latents (n, C, h, w), without quantising them to MoVQ's codes."""
    return _through(components, "movq_decoder", "latents", "image", latents)


def to_latents(components: Components, pictures: Floats) -> Floats:
    """Latents (n, C, h, w) of pictures (n, H, W, 3) float32 in 0..1, not quantised."""
    return _through(components, "movq_encoder", "image", "latents", pictures)


def encode_hints(components: Components, hints: Floats) -> Floats:
    """What a ControlNet sees of depth maps (n, H, W, 3) float32 in 0..1: (n, C, h, w). It is the same in every step."""
    return _through(components, "hint_encoder", "hint", "hint_latents", hints)


def _through(components: Components, component: str, source: str, result: str, values: Floats) -> Floats:
    """`values` through a component between pixels and latents, as many at once as `PIXELS_AT_ONCE` lets."""
    pixels = values[0].size // 3  # of a picture
    if source == "latents":
        pixels = values[0, 0].size * components.bundle.manifest.downscale**2
    parts = np.array_split(values, runs(len(values), pixels))
    with components.use(component) as loaded:
        return np.concatenate([loaded.run({source: part})[result] for part in parts])
