"""Ranges of activations, from what real runs show of them: how often each magnitude was there, and the best scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array
from kandinsky22_export.quantise.formats import NumberFormat

_DROPPED = 17
"""Bits of a float32 that bins leave out: what stays are 8 of the exponent and 6 of the fraction, 1.6 % a bin."""

_EDGES = np.arange(1 << (31 - _DROPPED), dtype=np.uint32) << np.uint32(_DROPPED)
_FINITE = int(np.float32(np.inf).view(np.uint32)) >> _DROPPED
_CENTRES = _EDGES[:_FINITE].view(np.float32).astype(np.float64) * (1 + 2.0**-7)
"""The middle of each bin."""

CLIPPED = np.geomspace(1.0, 0.05, 60)
"""Shares of the largest magnitude that are tried as the end of the range."""


class Magnitudes:
    """How often each magnitude was seen in a tensor."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_FINITE, np.int64)
        self.largest = 0.0

    def add(self, values: Array) -> None:
        """Count the numbers of an array, which are finite."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        bits = (flat.view(np.uint32) & np.uint32(0x7FFFFFFF)) >> np.uint32(_DROPPED)
        self.counts += np.bincount(bits, minlength=_FINITE)
        self.largest = max(self.largest, float(np.abs(flat).max(initial=0.0)))


def packed(seen: Mapping[str, Magnitudes]) -> dict[str, Array]:
    """Magnitudes of several tensors as a few arrays, without the bins that are empty."""
    bins = [np.flatnonzero(each.counts) for each in seen.values()]
    counts = [each.counts[found] for each, found in zip(seen.values(), bins, strict=True)]
    nothing = np.zeros(0, np.int64)
    return {
        "names": np.array(list(seen)),
        "sizes": np.array([len(found) for found in bins], np.int64),
        "bins": np.concatenate([nothing, *bins]),
        "counts": np.concatenate([nothing, *counts]),
        "largest": np.array([each.largest for each in seen.values()], np.float64),
    }


def unpacked(arrays: Mapping[str, Array]) -> dict[str, Magnitudes]:
    """The magnitudes that `packed` made arrays of."""
    found, begin = {}, 0
    for name, size, largest in zip(arrays["names"], arrays["sizes"], arrays["largest"], strict=True):
        each, end = Magnitudes(), begin + int(size)
        each.counts[arrays["bins"][begin:end]] = arrays["counts"][begin:end]
        each.largest = float(largest)
        found[str(name)], begin = each, end
    return found


def best_scale(ranges: Sequence[Magnitudes], into: NumberFormat) -> float:
    """The scale of a format whose squared error is the least, of ranges that end at `CLIPPED` of the largest number.

    The error is taken relative to what there is in each of `ranges`, so that one with small numbers counts as much as
    one with large numbers. What is rounded to numbers that are s apart is off by s²/12 on average, and by itself where
    it becomes 0; what lies beyond the largest is off by its distance.
    """
    largest = max(each.largest for each in ranges)
    if not largest:
        return 1.0
    counts = np.zeros(_FINITE)
    for each in ranges:
        power = float(each.counts @ _CENTRES**2)
        if power:
            counts += each.counts / power
    seen = np.flatnonzero(counts)
    numbers, weights = _CENTRES[seen], counts[seen]

    def error(scale: float) -> float:
        above = numbers - into.largest * scale
        rounding = np.minimum(numbers**2, (scale * into.spacing(numbers / scale)) ** 2 / 12)
        return float(weights @ np.where(above > 0, above**2, rounding))

    return min((float(share * largest / into.largest) for share in CLIPPED), key=error)
