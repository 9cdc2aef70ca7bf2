"""Seeded Gaussian noise, equal to torch's CPU generator and made without torch.

`Generator(seed).randn(shape)` gives what `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`
gives, value for value and draw for draw, so that a seed stands for the same picture here and in diffusers.

torch draws its normal numbers in two ways, and both are followed:

- 16 values or more: a 24-bit uniform for every value, then the Box-Muller transform (Box and Muller, 1958) within
  blocks of 16: the first eight uniforms of a block give radii, the other eight angles; cosines come first, then
  sines. Where the last block is not whole, the last 16 values are made again from 16 fresh uniforms.
- fewer: two 53-bit uniforms for a pair of values, in float64. The second value of a pair is kept for the next small
  draw, however many large draws come between.

Only the low 32 bits of a seed reach MT19937 in torch, and so here: seeds 2**32 apart give the same noise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
from kandinsky22.checks import MAX_SEED
from kandinsky22.errors import InputError, shown

__all__ = ["Generator"]

_BLOCK = 16  # torch's own constant: it decides where its two ways part, and how uniforms pair up


class Generator:
    """A stream of standard normal numbers, equal to that of `torch.Generator("cpu").manual_seed(seed)`.

    On CPUs where torch uses AVX2 or AVX-512 (any recent x86) the large draws are equal bit for bit; elsewhere torch
    takes its logarithm and its sines from the C library, and the two agree to 2e-6.

    Args:
        seed: An integer in 0..2**63-1.

    Raises:
        InputError: The seed is not such an integer.
    """

    def __init__(self, seed: SupportsIndex) -> None:
        self.seed = _checked_seed(seed)
        # NumPy's legacy generator is frozen by its compatibility policy: plain MT19937, seeded in the plain way.
        self._words = np.random.RandomState(self.seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def randn(self, shape: int | Sequence[int]) -> Floats:
        """Draw from the normal distribution of mean 0 and standard deviation 1.

        Args:
            shape: The shape of the result; `()` gives one value.

        Returns:
            float32 array of that shape. An empty one draws nothing.
        """
        values = np.empty(shape, np.float32)
        flat = values.reshape(-1)
        if flat.size >= _BLOCK:
            self._fill_blocks(flat)
        else:
            for i in range(flat.size):
                flat[i] = self._one()
        return values

    def _fill_blocks(self, out: Floats) -> None:
        """Fill out (n,), n >= 16, the way torch's `normal_fill` does."""
        uniforms = self._uniforms(out.size)
        whole = out.size - out.size % _BLOCK
        _box_muller(uniforms[:whole], out[:whole])
        if whole < out.size:
            _box_muller(self._uniforms(_BLOCK), out[-_BLOCK:])

    def _uniforms(self, count: int) -> Floats:
        """Draw `count` multiples of 2**-24 in [0, 1): the low 24 bits of one word each."""
        words = self._words.randint(0, 2**32, count, dtype=np.uint32)
        return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        """One normal number the way torch's `normal_distribution<double>` makes it."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        angle = 2 * math.pi * self._uniform64()
        radius = math.sqrt(-2 * math.log1p(-self._uniform64()))
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform64(self) -> float:
        """Draw a multiple of 2**-53 in [0, 1): the low 53 bits of two words, the high one first."""
        high, low = self._words.randint(0, 2**32, 2, dtype=np.uint32).tolist()
        return float((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _checked_seed(seed: SupportsIndex) -> int:
    try:
        value = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value <= MAX_SEED:
        raise InputError(f"The seed must be an integer from 0 to 2**63 - 1, not {shown(seed)}.")
    return value


def _box_muller(uniforms: Floats, out: Floats) -> None:
    """Turn uniforms (16·k,) in [0, 1) into normal numbers, written to out (16·k,)."""
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - pairs[:, 0]))
    sine, cosine = _sine_and_cosine(np.float32(2 * math.pi) * pairs[:, 1])
    normals = out.reshape(pairs.shape)
    np.multiply(radius, cosine, out=normals[:, 0])
    np.multiply(radius, sine, out=normals[:, 1])


# torch's vectorised logarithm, sine and cosine are those of Moshier's Cephes library (logf.c, sinf.c), in float32 with
# fused multiply-adds. NumPy's own differ from them in the last bits, by how much depending on the CPU; these do not.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_LN2 = (0.693359375, -2.12194440e-4)  # ln 2 in two parts, of which the first has few bits
_QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # pi/4 in three parts


def _fma(a: Floats, b: Floats | float, c: Floats | float) -> Floats:
    """a·b + c rounded once to float32: the product of two float32 numbers is exact in float64."""
    total: NDArray[np.float64] = np.multiply(a, np.asarray(b, np.float32), dtype=np.float64)
    total += np.asarray(c, np.float32)
    return total.astype(np.float32)


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, coefficient)
    return value


def _log(x: Floats) -> Floats:
    """Natural logarithm of normal float32 numbers above 0 (here 2**-24..1), as Cephes' logf."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.float32(math.sqrt(0.5))
    mantissa = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)
    power = (exponent - small).astype(np.float32)
    square = mantissa * mantissa
    tail = _fma(_polynomial(_LOG, mantissa) * mantissa, square, power * np.float32(_LN2[1]))
    tail = _fma(square, -0.5, tail)
    return _fma(power, _LN2[0], mantissa + tail)


def _sine_and_cosine(x: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine of float32 angles of at least 0 (here 0..2·pi), as Cephes' sinf and cosf."""
    octant = (x * np.float32(4 / math.pi)).astype(np.int32)
    octant = (octant + 1) & ~1
    eighths = octant.astype(np.float32)
    for part in _QUARTER_PI:
        x = _fma(eighths, -part, x)
    square = x * x
    cosine = _fma(_polynomial(_COSINE, square) * square, square, square * np.float32(-0.5)) + np.float32(1)
    sine = _fma(_polynomial(_SINE, square) * square, x, x)
    swapped = (octant & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    sine.view(np.int32)[...] ^= (octant & 4) << 29  # the sign is the highest bit
    cosine.view(np.int32)[...] ^= ((octant + 2) & 4) << 29
    return sine, cosine
