"""How many pictures, or rows, one run gets."""

from __future__ import annotations


def parts(count: int, at_once: int | None) -> list[slice]:
    """Consecutive parts of `count` things, each of at most `at_once` (None: all)."""
    size = at_once or count
    return [slice(start, start + size) for start in range(0, count, size)]


PIXELS_AT_ONCE = 1 << 20
"""Most pixels that one run between pictures and latents gets, but for a single picture: MoVQ's memory grows with the
batch, its speed does not."""


def pictures_at_once(pixels: int) -> int:
    """How many pictures of so many `pixels` each one run gets: at least one, at most `PIXELS_AT_ONCE` together."""
    return max(1, PIXELS_AT_ONCE // pixels)


def runs(pictures: int, pixels: int) -> int:
    """How many runs so many pictures take. Parts are as even as can be, since each new size may be compiled anew."""
    return -(-pictures // pictures_at_once(pixels))
