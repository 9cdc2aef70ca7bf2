"""Image embeddings to latents (the diffusion UNet), and latents to pixels (MoVQ, arXiv:2209.09002)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import OnStep
from kandinsky22.bundle import Manifest, runs
from kandinsky22.errors import InputError
from kandinsky22.noise import Generator
from kandinsky22.prior import Embeddings, guidance_weights
from kandinsky22.schedulers import Table
from kandinsky22.stages import Stages


def latent_size(height: int, width: int, downscale: int) -> tuple[int, int]:
    """Latent height and width of a picture: each side rounds up to a multiple of downscale², as in diffusers."""
    block = downscale**2
    return -(-height // block) * downscale, -(-width // block) * downscale


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


def sample(
    stages: Stages,
    table: Table,
    embeddings: Embeddings,
    generators: Sequence[Generator],
    shape: tuple[int, int, int],
    *,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    conditions: Conditions = Conditions(),
    on_step: OnStep | None = None,
) -> Floats:
    """Latents (n, C, h, w) of n pictures, where `shape` is (C, h, w), as diffusers' Kandinsky 2.2 decoders do it.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below, and outside of
    `guidance_interval`, a share of the steps (arXiv:2404.07724). Raises InputError as `quantile_ranks` does.
    """
    ranks, rank_weight = quantile_ranks(stages.bundle.manifest, table, shape)

    def draw() -> Floats:
        return np.stack([generator.randn(shape) for generator in generators])

    noise = draw() if conditions.noise is None else conditions.noise
    latents = conditions.latents(noise)
    nothing = np.zeros_like(latents)
    per_step = table.per_step(draw, nothing)
    if conditions.paste is not None:
        per_step["known_scales"] = list(conditions.paste)
    state: dict[str, Array] = {"latents": latents, "x0_before": nothing}
    with stages.use(conditions.component) as decoder_step:
        for part, guided in guided_parts(len(table.rows), guidance_scale, guidance_interval):
            towards, away = embeddings.image_embeds, embeddings.negative_image_embeds
            state = decoder_step.loop(
                state,
                {name: rows[part] for name, rows in per_step.items()},
                {
                    **conditions.feeds(noise),
                    "image_embeds": np.stack([away, towards] if guided else [towards]),
                    "guidance": guidance_weights(guidance_scale if guided else 1.0),
                    "limits": table.limits.array,
                    "ranks": ranks,
                    "rank_weight": rank_weight,
                },
                counted_from(part.start, on_step),
            )
    return state["latents"]


def guided_parts(steps: int, scale: float, interval: tuple[float, float]) -> list[tuple[slice, bool]]:
    """The runs of steps that are guided or not, in order: step i is where interval[0] <= i / steps < interval[1]."""
    guided = [scale > 1 and interval[0] <= step / steps < interval[1] for step in range(steps)]
    starts = [step for step in range(steps) if step == 0 or guided[step] != guided[step - 1]]
    return [(slice(a, b), guided[a]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]


def counted_from(start: int, on_step: OnStep | None) -> OnStep | None:
    """`on_step` for a part of a run: its steps are counted from `start`."""
    if on_step is None or start == 0:
        return on_step
    return lambda step, state: on_step(start + step, state)


def quantile_ranks(
    manifest: Manifest, table: Table, shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where dynamic thresholding finds its quantile in latents of `shape` (C, h, w): see `Limits.ranks`.

    Raises InputError where that is further down than the bundle's graphs look.
    """
    ranks, weight = table.limits.ranks(math.prod(shape))
    if ranks.max() >= manifest.limits["ranks"]:
        raise InputError(
            f"Dynamic thresholding at this size ranks {ranks.max() + 1} values, the bundle was exported for "
            f"{manifest.limits['ranks']}; ask for a smaller picture, or export with a larger --max-size."
        )
    return ranks, weight


def to_pixels(stages: Stages, latents: Floats) -> Floats:
    """Pictures (n, H, W, 3) float32 in 0..1 from latents (n, C, h, w), without quantising them to MoVQ's codes."""
    return _through(stages, "movq_decoder", "latents", "image", latents)


def to_latents(stages: Stages, pictures: Floats) -> Floats:
    """Latents (n, C, h, w) of pictures (n, H, W, 3) float32 in 0..1, not quantised."""
    return _through(stages, "movq_encoder", "image", "latents", pictures)


def encode_hints(stages: Stages, hints: Floats) -> Floats:
    """What a ControlNet sees of depth maps (n, H, W, 3) float32 in 0..1: (n, C, h, w). It is the same in every step."""
    return _through(stages, "hint_encoder", "hint", "hint_latents", hints)


def _through(stages: Stages, component: str, source: str, result: str, values: Floats) -> Floats:
    """`values` through a component between pixels and latents, as many at once as `PIXELS_AT_ONCE` lets."""
    pixels = values[0].size // 3  # of a picture
    if source == "latents":
        pixels = values[0, 0].size * stages.bundle.manifest.downscale**2
    parts = np.array_split(values, runs(len(values), pixels))
    with stages.use(component) as loaded:
        return np.concatenate([loaded.run({source: part})[result] for part in parts])
