"""Latents to pixels and back (MoVQ, arXiv:2209.09002)."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats
from kandinsky22.batching import runs
from kandinsky22.bundle.manifest import Role
from kandinsky22.components import Run, finite


def to_pixels(run: Run, latents: Floats) -> Floats:
    """Pictures (n, H, W, 3) float32 in 0..1 from latents (n, C, h, w), without quantising them to MoVQ's codes."""
    return _through(run, Role.MOVQ_DECODER, "latents", "image", latents)


def to_latents(run: Run, pictures: Floats) -> Floats:
    """Latents (n, C, h, w) of pictures (n, H, W, 3) float32 in 0..1, not quantised."""
    return _through(run, Role.MOVQ_ENCODER, "image", "latents", pictures)


def encode_hints(run: Run, hints: Floats) -> Floats:
    """Hint latents (n, C, h, w) of depth maps (n, H, W, 3) float32 in 0..1; a ControlNet sees them in every step."""
    return _through(run, Role.HINT_ENCODER, "hint", "hint_latents", hints)


def _through(run: Run, role: Role, source: str, result: str, values: Floats) -> Floats:
    """Values run through a component between pixels and latents, at most `PIXELS_AT_ONCE` pixels in one run."""
    pixels = values[0].size // 3  # of a picture
    if source == "latents":
        pixels = values[0, 0].size * run.bundle.manifest.downscale**2
    parts = np.array_split(values, runs(len(values), pixels))
    name = run.bundle.manifest.name_of(role)
    with run.use(name) as loaded:
        return finite(name, np.concatenate([loaded.run({source: part})[result] for part in parts]))
