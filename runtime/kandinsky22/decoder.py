"""Image embeddings to latents (the diffusion UNet), and latents to pixels (MoVQ, arXiv:2209.09002)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
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
    on_step: OnStep | None = None,
) -> Floats:
    """Latents (n, C, h, w) of n pictures, where `shape` is (C, h, w), as KandinskyV22Pipeline computes them.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below. Raises InputError as
    `quantile_ranks` does.
    """
    ranks, rank_weight = quantile_ranks(stages.bundle.manifest, table, shape)

    def draw() -> Floats:
        return np.stack([generator.randn(shape) for generator in generators])

    latents = draw()
    nothing = np.zeros_like(latents)
    branches = (
        [embeddings.negative_image_embeds, embeddings.image_embeds] if guidance_scale > 1 else [embeddings.image_embeds]
    )
    with stages.use("decoder_step") as decoder_step:
        state = decoder_step.loop(
            {"latents": latents, "x0_before": nothing},
            {
                "timestep": table.timesteps.astype(np.float32)[:, None],
                "row": table.rows,
                "noise": [draw() if noisy else nothing for noisy in table.noisy],
            },
            {
                "image_embeds": np.stack(branches),
                "guidance": guidance_weights(guidance_scale),
                "limits": table.limits.array,
                "ranks": ranks,
                "rank_weight": rank_weight,
            },
            on_step,
        )
    return state["latents"]


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
