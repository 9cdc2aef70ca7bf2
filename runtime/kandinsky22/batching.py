"""How many pictures, or rows, one run is given."""

from __future__ import annotations


def parts(count: int, at_once: int | None) -> list[slice]:
    """Consecutive parts of `count` things, each of at most `at_once` (None: all)."""
    size = at_once or count
    return [slice(start, start + size) for start in range(0, count, size)]


PIXELS_AT_ONCE = 1 << 20
"""What turns pictures into latents or back is given no more in one run, or one picture: MoVQ's memory grows with the
batch, its speed does not."""


def pictures_at_once(pixels: int) -> int:
    """How many pictures of so many `pixels` one run is given: at least one, and no more than `PIXELS_AT_ONCE`."""
    return max(1, PIXELS_AT_ONCE // pixels)


def runs(pictures: int, pixels: int) -> int:
    """In how many runs, as even as can be, so many pictures are given: each new number may be compiled for anew."""
    return -(-pictures // pictures_at_once(pixels))
