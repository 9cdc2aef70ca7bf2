"""What the runtime asks about a checkpoint: the manifest's `geometry` and `limits`."""

from __future__ import annotations

import math
from typing import Any

from kandinsky22.bundle.manifest import Geometry, Limits
from kandinsky22.schedulers import schedule
from kandinsky22_export.architectures.kandinsky_2_2 import UNETS
from kandinsky22_export.checkpoints import Checkpoint


def geometry_of(checkpoint: Checkpoint) -> Geometry:
    """What the runtime asks about shapes."""
    geometry: dict[str, Any] = {}
    networks = checkpoint.networks
    if "prior" in networks:
        geometry["embedding_dim"] = networks["prior"].config["embedding_dim"]
    if "image_encoder" in networks:
        geometry["image_size"] = networks["image_encoder"].config["image_size"]
    if "movq" in networks:
        movq = networks["movq"].config
        geometry["latent_channels"] = movq["latent_channels"]
        geometry["downscale"] = 2 ** (len(movq["block_out_channels"]) - 1)
    unet = next((networks[name].config for name in UNETS.values() if name in networks), None)
    if unet is not None:  # the others are like it in this
        geometry["embedding_dim"] = unet["encoder_hid_dim"]
        geometry["learned_variance"] = unet["out_channels"] == 2 * geometry["latent_channels"]
        geometry["default_size"] = _trained_size(unet.get("sample_size"), geometry["downscale"])
    return Geometry(**geometry)


def _trained_size(latents: Any, downscale: int) -> int:
    """Pixels a side of the pictures that a UNet was trained at; 512, as published, where its config is silent."""
    return latents * downscale if isinstance(latents, int) else 512


def limits_of(checkpoint: Checkpoint, max_size: int) -> Limits:
    """`max_size`, and how many of the largest |x0| its dynamic thresholding needs (None without a decoder)."""
    geometry = geometry_of(checkpoint)
    if geometry.downscale is None or geometry.latent_channels is None:
        return Limits(max_size)
    side = math.ceil(max_size / geometry.downscale**2) * geometry.downscale
    values = geometry.latent_channels * side**2
    samplers = [checkpoint.schedulers[purpose] for purpose in UNETS if purpose in checkpoint.schedulers]
    ratio = min(sampler.get("dynamic_thresholding_ratio", 0.995) for sampler in samplers)
    return Limits(max_size, schedule.ranks_needed(ratio, values))
