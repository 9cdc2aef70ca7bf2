"""Previews: small pictures of latents, by the bundle's linear map to RGB instead of MoVQ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import PIL.Image

from kandinsky22 import checks
from kandinsky22.arrays import Floats
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.reading import export_command
from kandinsky22.errors import BundleError, InputError, shown
from kandinsky22.images import reading
from kandinsky22.images.writing import to_pil


@dataclass(frozen=True)
class LatentsToRgb:
    """RGB in 0..1 of each latent pixel: `weight` (C, 3) and `bias` (3,), float32. `largest`: pixels a side at most."""

    weight: Floats
    bias: Floats
    largest: int

    def pictures(self, latents: object, size: tuple[int, int] | None = None) -> list[PIL.Image.Image]:
        """Pictures of latents (n, C, h, w), w x h pixels each, or resized to `size` (width, height).

        Raises InputError where either is something else.
        """
        channels = len(self.weight)
        values = reading.floats("latents", latents, f"(n, {channels}, h, w)")
        if values.ndim != 4 or values.shape[1] != channels or 0 in values.shape:
            raise InputError(
                f"latents have shape {values.shape}; expected (n, {channels}, h, w), as callbacks are given them."
            )
        wanted = None if size is None else self._checked(size)
        # In float64, where no finite latents overflow.
        pixels = np.clip(values.transpose(0, 2, 3, 1).astype(np.float64) @ self.weight + self.bias, 0, 1)
        small = to_pil(pixels.astype(np.float32))
        return small if wanted is None else [each.resize(wanted, PIL.Image.Resampling.BICUBIC) for each in small]

    def _checked(self, size: object) -> tuple[int, int]:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise InputError(f"size is {shown(size)}; expected width and height in pixels, such as (512, 512).")
        width, height = (
            checks.side(f"the {name} in size", each, self.largest)
            for name, each in zip(("width", "height"), size, strict=True)
        )
        return width, height


def latents_to_rgb(bundle: Bundle) -> LatentsToRgb:
    """The map of a bundle. Raises BundleError where it has none."""
    constants, manifest = bundle.constants(), bundle.manifest
    weight, bias = constants.get("preview_weight"), constants.get("preview_bias")
    if weight is None or bias is None:
        again = export_command(dataclasses.asdict(manifest), bundle.path)
        raise BundleError(
            f"The bundle {bundle.path} has no map from latents to colours for previews: it was exported without "
            f"movq_decoder, or by an older version; export it again: {again}"
        )
    return LatentsToRgb(weight, bias, manifest.limits.max_size)
