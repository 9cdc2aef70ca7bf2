"""Forecasts: what a decoder's network would give at a step, extrapolated from two steps at which it was computed.

The forecast is linear in the timestep: of the last outputs m1 at t1 and m2 at t2 it makes m1 + (m1 - m2) (t - t1) /
(t1 - t2). That is TaylorSeer (arXiv:2503.06923) and Spectrum (arXiv:2603.01623) of first order.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import Leg
from kandinsky22.bundle.manifest import MODEL

KEPT = ("model_0", "model_1")
"""The inputs of a forecast that have the last two of them; every second one goes into the same."""


def legs(steps: int, forecast: Collection[int]) -> tuple[Leg, ...]:
    """Who takes each step of a run: the step graph, whose network's output is kept, or the one that forecasts it."""
    found, computed = [], 0
    for step in range(steps):
        if step in forecast:
            found.append(Leg(1))
        else:
            found.append(Leg(0, {KEPT[computed % 2]: MODEL}))
            computed += 1
    return tuple(found)


def weights(timesteps: NDArray[np.int64], forecast: Collection[int]) -> Floats:
    """Weights (n, 2) float32 of the two outputs that are kept, for each of the steps at `timesteps` (n,).

    Those of steps that are computed are 0. Two steps at one timestep, which Karras' noise levels may have, give no
    slope: the later one's output is taken as it is.
    """
    found = np.zeros((len(timesteps), 2), np.float32)
    computed: list[int] = []
    for step, timestep in enumerate(timesteps.tolist()):
        if step not in forecast:
            computed.append(timestep)
            continue
        last, before = computed[-1], computed[-2]
        reach = 0.0 if last == before else (timestep - last) / (last - before)
        found[step, (len(computed) - 1) % 2] = 1 + reach
        found[step, len(computed) % 2] = -reach
    return found


def nothing_kept(latents: Floats, channels: int) -> dict[str, Array]:
    """The inputs of a forecast before anything was computed, for a network of so many output channels."""
    shape = (len(latents), channels, *latents.shape[2:])
    return {name: np.zeros(shape, np.float32) for name in KEPT}
