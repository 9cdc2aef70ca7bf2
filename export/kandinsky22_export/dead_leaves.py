"""Dead leaves: random pictures with the statistics of photographs, where there are none at hand.

Discs of random colours, each over the ones before it, whose sizes follow a power law: edges and flat parts as natural
pictures have them (Lee, Mumford and Huang, Occlusion Models for Natural Images, 2001).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_LEAVES = 20


def dead_leaves(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """A picture (size, size, 3) in 0..1. Pictures differ in how many leaves they have, and of which sizes."""
    picture = np.full((size, size, 3), generator.uniform(0, 1, 3))
    smallest = size * 0.5 ** generator.uniform(1, 5)
    for _ in range(generator.integers(MOST_LEAVES, endpoint=True)):
        radius = min(smallest * (1 - generator.uniform()) ** -0.5, 0.75 * size)  # density of r^-3
        x, y = np.arange(size) - generator.uniform(0, size, 2)[:, None]
        cover = (radius - np.hypot(x, y[:, None]) + 0.5).clip(0, 1)[..., None]  # an edge of one pixel
        picture = picture * (1 - cover) + generator.uniform(0, 1, 3) * cover
    return picture
