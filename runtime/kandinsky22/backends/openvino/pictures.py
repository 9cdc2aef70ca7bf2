"""One picture at a time: a run for several as runs for one each, so that none depends on what it runs beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import Component, TensorSpec

BATCH = "B"
"""The dimension of a component's inputs and outputs that counts pictures."""

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def one_by_one(run: Run, component: Component, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What `run` gives for each picture of `feeds`, joined: inputs that count no pictures are the same for all."""
    axes = _axes(component.inputs)
    (count,) = {feeds[name].shape[axis] for name, axis in axes.items()}
    if count == 1:
        return run(feeds)
    results = [
        run({**feeds, **{name: _picture(feeds[name], axis, place) for name, axis in axes.items()}})
        for place in range(count)
    ]
    joined = _axes(component.outputs)
    return {name: np.concatenate([result[name] for result in results], axis) for name, axis in joined.items()}


def _axes(specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Which dimension of each tensor counts pictures, of those that have one."""
    return {spec.name: spec.shape.index(BATCH) for spec in specs if BATCH in spec.shape}


def _picture(array: Array, axis: int, place: int) -> Array:
    """One picture's part of an array, in memory of its own where it is not in one piece."""
    return np.ascontiguousarray(np.take(array, [place], axis))
