"""Pictures to CLIP's image embeddings: what transformers' CLIPImageProcessor does, then the image encoder."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import PIL.Image

from kandinsky22.arrays import Floats
from kandinsky22.bundle.manifest import ImageProcessor, Role
from kandinsky22.components import Run, finite


def encode(run: Run, pictures: Iterable[PIL.Image.Image]) -> Floats:
    """Image embeddings (n, E) float32 of n RGB pictures, one at a time: they are few, and the encoder is large."""
    record = run.bundle.manifest.image_processor
    name = run.bundle.manifest.name_of(Role.IMAGE_ENCODER)
    with run.use(name) as image_encoder:
        assert record is not None  # as the manifest says where it has an image encoder
        embeds = [
            image_encoder.run({"pixel_values": pixel_values(picture, record)[None]})["image_embeds"]
            for picture in pictures
        ]
    return finite(name, np.concatenate(embeds))


def pixel_values(picture: PIL.Image.Image, record: ImageProcessor) -> Floats:
    """The image encoder's input (3, S, S) float32 from an RGB picture, as CLIPImageProcessor's Pillow backend makes it.

    The shorter side is resized to `record.size` (bicubic, 8 bits), the middle of `record.crop` pixels a side is
    cut out, and the channels are normalised by `record.mean` and `record.std` (of values 0..1).
    """
    resample = PIL.Image.Resampling[record.resample.upper()]
    fitted = picture.resize(_fitted_size(picture.size, record.size), resample)
    side = record.crop
    left, top = (fitted.width - side) // 2, (fitted.height - side) // 2
    cut = np.asarray(fitted.crop((left, top, left + side, top + side)))
    values = (cut.astype(np.float64) / 255).astype(np.float32)
    mean, std = (np.array(each, np.float32) for each in (record.mean, record.std))
    normalised: Floats = np.divide(values - mean, std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _fitted_size(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Width and height with the shorter side at `shortest` pixels; the other is rounded down, as in transformers."""
    width, height = size
    longest = int(shortest * max(size) / min(size))
    return (shortest, longest) if width <= height else (longest, shortest)
