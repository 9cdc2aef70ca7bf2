"""How alike two pictures are: against scikit-image, closed forms, and NumPy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kandinsky22.errors import InputError
from kandinsky22.measure import likeness

SIZES = [(11, 11), (12, 31), (64, 64), (128, 200)]


def pairs(size: tuple[int, int]) -> dict[str, tuple[Any, Any]]:
    draw = np.random.default_rng(size[0])
    noise = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    slopes = np.stack([np.add.outer(np.arange(size[0]), k * np.arange(size[1])) for k in (1, 2, 3)], -1) % 256
    smooth = slopes.astype(np.uint8)
    near = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    shifted = np.roll(smooth, 1, axis=1)
    black = np.zeros((*size, 3), np.uint8)
    one = black.copy()
    one[0, 0, 2] = 1
    return {
        "noise": (noise, draw.integers(0, 256, noise.shape, dtype=np.uint8)),
        "near": (smooth, near),
        "shifted": (smooth, shifted),
        "one bit": (black, one),
        "black and white": (black, 255 - black),
        "one channel": (noise, np.stack([noise[..., 0], noise[..., 1], near[..., 2]], -1)),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["noise", "near", "shifted", "one bit", "black and white", "one channel"])
def test_psnr_and_ssim_are_those_of_scikit_image(kind: str, size: tuple[int, int]) -> None:
    first, second = pairs(size)[kind]
    expected = structural_similarity(
        first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
    )
    assert likeness.ssim(first, second) == pytest.approx(expected, abs=1e-12)
    assert likeness.psnr(first, second) == pytest.approx(
        peak_signal_noise_ratio(first, second, data_range=255), abs=1e-9
    )


def test_psnr_is_its_closed_form() -> None:
    first = np.full((64, 64, 3), 100, np.uint8)
    assert likeness.psnr(first, first + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))
    assert likeness.psnr(np.zeros_like(first), np.full_like(first, 255)) == 0


def test_equal_pictures_are_infinitely_alike() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert likeness.psnr(picture, picture.copy()) == math.inf
    assert likeness.ssim(picture, picture.copy()) == 1


def test_which_picture_is_first_does_not_matter() -> None:
    first, second = pairs((64, 64))["near"]
    assert likeness.psnr(first, second) == likeness.psnr(second, first)
    assert likeness.ssim(first, second) == pytest.approx(likeness.ssim(second, first), abs=1e-15)


def test_the_cosine_is_that_of_float64() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((2, 1280)).astype(np.float32)
    wide = x.astype(np.longdouble), y.astype(np.longdouble)
    expected = (wide[0] * wide[1]).sum() / np.sqrt((wide[0] ** 2).sum() * (wide[1] ** 2).sum())
    assert likeness.cosine(x, y) == pytest.approx(float(expected), abs=1e-15)
    assert likeness.cosine(x, 3 * x) == pytest.approx(1, abs=1e-7)
    assert likeness.cosine(x, -x) == -1
    assert likeness.cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == 0
    assert -1 <= likeness.cosine(x, x) <= 1


def test_what_cannot_be_compared_is_one_sentence() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    for other, reason in (
        (np.zeros((64, 65, 3), np.uint8), "expected one shape"),
        (np.zeros((64, 64, 3), np.float32), "expected (H, W, 3) uint8"),
        (np.zeros((64, 64), np.uint8), "expected (H, W, 3) uint8"),
        (np.zeros((64, 64, 4), np.uint8), "expected (H, W, 3) uint8"),
    ):
        for measure in (likeness.psnr, likeness.ssim):
            with pytest.raises(InputError) as refused:
                measure(picture, other)
            assert reason in str(refused.value)
    with pytest.raises(InputError, match="are 64x10; expected sides of 11 pixels or more"):
        likeness.ssim(picture[:10], picture[:10])
    with pytest.raises(InputError, match="has no direction"):
        likeness.cosine(np.zeros(6), np.ones(6))
