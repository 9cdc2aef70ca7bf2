"""A request and a manifest to a job: everything that is decided before anything is loaded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kandinsky22.bundle.manifest import Manifest
from kandinsky22.errors import InputError
from kandinsky22.schedulers.schedule import Schedule


def latent_size(height: int, width: int, downscale: int) -> tuple[int, int]:
    """Latent height and width of a picture: each side rounds up to a multiple of downscale², as in diffusers."""
    block = downscale**2
    return -(-height // block) * downscale, -(-width // block) * downscale


def quantile_ranks(
    manifest: Manifest, table: Schedule, shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where dynamic thresholding finds its quantile in latents of `shape` (C, h, w): see `Thresholding.ranks`.

    Raises InputError where that is further down than the bundle's graphs look.
    """
    ranks, weight = table.thresholding.ranks(math.prod(shape))
    if ranks.max() >= manifest.limits["ranks"]:
        raise InputError(
            f"Dynamic thresholding at this size ranks {ranks.max() + 1} values, the bundle was exported for "
            f"{manifest.limits['ranks']}; ask for a smaller picture, or export with a larger --max-size."
        )
    return ranks, weight
