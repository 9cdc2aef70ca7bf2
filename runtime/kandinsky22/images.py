"""Pictures: arrays to PIL, and files that remember how they were made."""

from __future__ import annotations

import numpy as np
import PIL.Image

from kandinsky22.arrays import Floats


def to_pil(pixels: Floats) -> list[PIL.Image.Image]:
    """PIL pictures from float32 (n, H, W, 3) in 0..1, rounded to 8 bits as diffusers rounds them."""
    return [PIL.Image.fromarray(picture) for picture in (pixels * 255).round().astype(np.uint8)]
