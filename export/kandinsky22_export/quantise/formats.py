"""Formats of eight bits that graphs are quantised to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from kandinsky22.arrays import Array, Floats

E4M3_SMALLEST_NORMAL, E4M3_FRACTION = 2.0**-6, 3
"""Of fp8: the smallest number that has all bits of its fraction, and how many they are."""


@dataclass(frozen=True)
class NumberFormat:
    """Numbers of eight bits, from `least` to `largest`; `onnx_type` is ONNX's number of the type.

    `least` may lie further from zero than `largest`: scales are made for `largest`.
    """

    name: str
    onnx_type: int
    least: float
    largest: float
    dtype: np.dtype[Any]

    def encode(self, values: Array) -> Array:
        """The nearest numbers of the format; what lies beyond them becomes the last of them. `values` are scaled."""
        within = np.clip(values, self.least, self.largest)
        return (np.rint(within) if self.dtype == np.int8 else within).astype(self.dtype)

    def decode(self, numbers: Array) -> Floats:
        """The same numbers as float32."""
        result: Floats = numbers.astype(np.float32)
        return result

    def spacing(self, magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far numbers of the format are apart around `magnitudes`, which are scaled and 0 or more."""
        if self.dtype == np.int8:
            return np.ones_like(magnitudes)
        exponents = np.floor(np.log2(np.maximum(magnitudes, E4M3_SMALLEST_NORMAL)))
        result: NDArray[np.float64] = np.exp2(exponents - E4M3_FRACTION)
        return result


FORMATS = {
    each.name: each
    for each in (
        NumberFormat("int8", TensorProto.INT8, -128.0, 127.0, np.dtype(np.int8)),
        NumberFormat("fp8", TensorProto.FLOAT8E4M3FN, -448.0, 448.0, np.dtype(ml_dtypes.float8_e4m3fn)),
    )
}
"""By name: int8, and fp8 with four bits of exponent and three of fraction (OCP's E4M3, arXiv:2209.05433)."""
