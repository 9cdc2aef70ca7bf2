"""The linear map from latents to RGB: previews of unfinished pictures without a second network, see docs/bundle.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kandinsky22.errors import ExportError
from kandinsky22_export.dead_leaves import dead_leaves

PICTURES = 16
SIDE = 8
"""Latents a side of each picture. Many small pictures have more colours than few large ones, for the same work."""


def fit_preview(movq: Any) -> dict[str, NDArray[np.float32]]:
    """`preview_weight` (C, 3) and `preview_bias` (3,) of a whole MoVQ in float32: latents to RGB in 0..1.

    Of all affine maps, the one with the least squares between it and MoVQ's own decodings, averaged over the pixels of
    each latent. Latents are those of synthetic pictures: MoVQ's encoder makes the kind that the decoder's UNet has
    learned, which random numbers are not. Raises ExportError where MoVQ gives numbers that are not finite.
    """
    latents, colours = (np.concatenate(rows).astype(np.float64) for rows in zip(*_samples(movq), strict=True))
    if not (np.isfinite(latents).all() and np.isfinite(colours).all()):
        raise ExportError(
            "The checkpoint's MoVQ gives numbers that are not finite (NaN or infinity) for ordinary pictures; "
            "its weights are damaged: get them again."
        )
    solved = np.linalg.lstsq(np.column_stack([latents, np.ones(len(latents))]), colours, rcond=None)[0]
    return {"preview_weight": solved[:-1].astype(np.float32), "preview_bias": solved[-1].astype(np.float32)}


@torch.no_grad()
def _samples(movq: Any) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Latents (h*w, C) of each picture, and the colours (h*w, 3) of their decodings; one at a time, for the memory."""
    downscale = 2 ** (len(movq.config.block_out_channels) - 1)
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(PICTURES):
        picture = torch.from_numpy(dead_leaves(SIDE * downscale, generator)).float()
        latents = movq.encode(picture.permute(2, 0, 1)[None] * 2 - 1, return_dict=False)[0]
        decoded = movq.decode(latents, force_not_quantize=True, return_dict=False)[0]
        pixels = (decoded * 0.5 + 0.5).clamp(0, 1)
        samples.append((_rows(latents), _rows(functional.avg_pool2d(pixels, downscale))))
    return samples


def _rows(values: Tensor) -> NDArray[np.float32]:
    """(1, C, h, w) -> (h*w, C)."""
    rows: NDArray[np.float32] = values[0].flatten(1).T.numpy()
    return rows
