"""What a decoder is led by beside embeddings: a picture to begin with, a mask, a depth hint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kandinsky22.arrays import Floats


@dataclass(frozen=True)
class Conditions:
    """What n pictures are led by beside their embeddings, float32; an array holds one entry a picture.

    `component` is the step's name in the bundle. `noise` (n, C, h, w) replaces what would be drawn at first. `known`
    (n, C, h, w) are clean latents of a picture: with `start` (2,) the run begins from them, start[0]·known +
    start[1]·noise; with `mask` (n, 1, h, w), 1 for what is kept, and `paste` (steps, 2) they are pasted, noised alike,
    after every step. `hint_latents` (n, C, h, w) are an encoded depth map.
    """

    component: str = "decoder_step"
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
        """What the run begins with: `noise` (n, C, h, w), or a picture's latents with so much of it."""
        if self.start is None or self.known is None:
            return noise
        latents: Floats = self.start[0] * self.known + self.start[1] * noise
        return latents

    def feeds(self, noise: Floats) -> dict[str, Floats]:
        """Inputs of the step that it has beyond a plain `decoder_step`; `noise` is what the run began with."""
        if self.mask is not None and self.known is not None:
            return {"mask": self.mask, "known": self.known, "known_noise": noise}
        return {} if self.hint_latents is None else {"hint_latents": self.hint_latents}
