"""Shallow steps: a decoder's top level alone, over features of the last full step (DeepCache, arXiv:2312.00858)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import Leg
from kandinsky22.bundle.manifest import FEATURES, Component


def legs(steps: int, shallow: Collection[int]) -> tuple[Leg, ...]:
    """Who takes each step of a run: the step graph, whose features are kept, or the one that runs over them."""
    return tuple(Leg(1) if step in shallow else Leg(0, {FEATURES: FEATURES}) for step in range(steps))


def nothing_kept(component: Component, pictures: int, branches: int, size: tuple[int, int]) -> dict[str, Array]:
    """The features that a shallow step takes, before any were computed, for latents of a `size` (h, w)."""
    spec = next(spec for spec in component.inputs if spec.name == FEATURES)
    shape = spec.resolve({"B": pictures, "G": branches, "h": size[0], "w": size[1]})
    return {FEATURES: np.zeros(shape, np.float32)}
