"""Image embeddings to latents (the diffusion UNet), and latents to pixels (MoVQ, arXiv:2209.09002)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import OnStep
from kandinsky22.bundle import Manifest
from kandinsky22.errors import InputError
from kandinsky22.noise import Generator
from kandinsky22.prior import Embeddings, guidance_weights
from kandinsky22.schedulers import Table
from kandinsky22.stages import Stages

PIXELS_AT_ONCE = 1 << 20
"""Pictures are decoded one by one from this size on: MoVQ's memory grows with the batch, its speed does not."""


def latent_size(height: int, width: int, downscale: int) -> tuple[int, int]:
    """Latent height and width of a picture: each side rounds up to a multiple of downscale², as in diffusers."""
    block = downscale**2
    return -(-height // block) * downscale, -(-width // block) * downscale


def sample(
    stages: Stages,
    table: Table,
    embeddings: Embeddings,
    generators: Sequence[Generator],
    shape: tuple[int, int, int],
    *,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    on_step: OnStep | None = None,
) -> Floats:
    """Latents (n, C, h, w) of n pictures, where `shape` is (C, h, w), as KandinskyV22Pipeline computes them.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below, and outside of
    `guidance_interval`, a share of the steps (arXiv:2404.07724). Raises InputError as `quantile_ranks` does.
    """
    ranks, rank_weight = quantile_ranks(stages.bundle.manifest, table, shape)

    def draw() -> Floats:
        return np.stack([generator.randn(shape) for generator in generators])

    latents = draw()
    nothing = np.zeros_like(latents)
    per_step: dict[str, Sequence[Array]] = {
        "timestep": list(table.timesteps.astype(np.float32)[:, None]),
        "row": list(table.rows),
        "noise": [draw() if noisy else nothing for noisy in table.noisy],
    }
    state: dict[str, Array] = {"latents": latents, "x0_before": nothing}
    with stages.use("decoder_step") as decoder_step:
        for part, guided in guided_parts(len(table.rows), guidance_scale, guidance_interval):
            towards, away = embeddings.image_embeds, embeddings.negative_image_embeds
            state = decoder_step.loop(
                state,
                {name: rows[part] for name, rows in per_step.items()},
                {
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
    downscale = stages.bundle.manifest.geometry["downscale"]
    at_once = max(1, PIXELS_AT_ONCE // (latents[0, 0].size * downscale**2))
    with stages.use("movq_decoder") as movq_decoder:
        pictures = [
            movq_decoder.run({"latents": latents[start : start + at_once]})["image"]
            for start in range(0, len(latents), at_once)
        ]
    return np.concatenate(pictures)
