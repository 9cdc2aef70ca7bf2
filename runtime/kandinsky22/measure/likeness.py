"""How alike two pictures are, in numbers: what was measured of them, by NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array
from kandinsky22.errors import InputError

Pixels = NDArray[np.uint8]
"""A picture (H, W, 3)."""
Plane = NDArray[np.float64]

LARGEST = 255
"""Of a pixel."""
RADIUS, SIGMA = 5, 1.5
"""Of the Gaussian window of `ssim`, in pixels: 11 by 11."""
K1, K2 = 0.01, 0.03
"""What keeps `ssim` from dividing by zero, as shares of `LARGEST`."""


def psnr(first: Pixels, second: Pixels) -> float:
    """The peak signal-to-noise ratio in dB, of all channels together; infinite for pictures that are equal.

    Raises InputError where they are no pictures (H, W, 3) uint8 of one size.
    """
    _require_pictures(first, second)
    error = np.mean(np.square(first.astype(np.float64) - second))
    return 10 * math.log10(LARGEST**2 / error) if error else math.inf


def ssim(first: Pixels, second: Pixels) -> float:
    """The structural similarity of Wang et al., 2004 (10.1109/TIP.2003.819861), at most 1: the mean over channels.

    The window is the paper's: Gaussian, 11 by 11 pixels, only where it lies within the picture.

    Raises InputError as `psnr` does, and where a side is smaller than the window.
    """
    _require_pictures(first, second)
    if min(first.shape[:2]) <= 2 * RADIUS:
        raise InputError(
            f"The pictures are {first.shape[1]}x{first.shape[0]}; expected sides of {2 * RADIUS + 1} pixels or more."
        )
    return float(np.mean([_ssim_of_channel(first[..., each], second[..., each]) for each in range(first.shape[2])]))


def cosine(first: Array, second: Array) -> float:
    """The cosine of the angle between two vectors, -1 to 1. Raises InputError where one of them is zero."""
    x, y = (np.asarray(each, np.float64).ravel() for each in (first, second))
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    if not lengths:
        raise InputError("The embedding of a picture is zero, so that it has no direction to compare.")
    return float(np.clip(x @ y / lengths, -1, 1))


def _ssim_of_channel(first: Pixels, second: Pixels) -> float:
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x) - mean_x**2 + _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (K1 * LARGEST) ** 2, (K2 * LARGEST) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variances + c2)))


def _smooth(plane: Plane) -> Plane:
    """Means of a plane (H, W) by the window, (H - 10, W - 10): where the window is within it."""
    weights = np.exp(-0.5 * np.square(np.arange(-RADIUS, RADIUS + 1) / SIGMA))
    weights /= weights.sum()
    for _ in range(2):  # along one axis, then along the other
        places = len(plane) - 2 * RADIUS
        plane = sum(weight * plane[start : start + places] for start, weight in enumerate(weights)).T
    return plane


def _require_pictures(first: Pixels, second: Pixels) -> None:
    for each in (first, second):
        if each.dtype != np.uint8 or each.ndim != 3 or each.shape[2] != 3 or not each.size:
            raise InputError(f"A picture has shape {each.shape} and type {each.dtype}; expected (H, W, 3) uint8.")
    if first.shape != second.shape:
        raise InputError(f"The pictures have the shapes {first.shape} and {second.shape}; expected one shape.")
