"""Pictures made ready for CLIP's image encoder, against transformers."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from transformers import CLIPImageProcessor

from kandinsky22.bundle.manifest import ImageProcessor
from kandinsky22.conditioning import image_encoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (50, 65), (65, 50), (333, 127), (64, 900), (31, 30), (640, 480)])
@pytest.mark.parametrize(("shortest", "crop"), [(64, 64), (72, 64), (37, 37)])
def test_pixel_values_are_those_of_transformers(size: tuple[int, int], shortest: int, crop: int) -> None:
    picture = PIL.Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8))
    record = ImageProcessor(shortest, crop, MEAN, STD, "bicubic")
    processor = CLIPImageProcessor(size={"shortest_edge": shortest}, crop_size=crop)
    (expected,) = processor(picture, return_tensors="np").pixel_values
    ours = image_encoder.pixel_values(picture, record)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
