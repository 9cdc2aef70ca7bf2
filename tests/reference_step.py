"""One step in NumPy, as docs/bundle.md describes it: what the step graphs are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandinsky22.schedulers.schedule import Thresholding


def reference_step(
    coefficients: NDArray[np.float32],
    thresholding: Thresholding,
    x: NDArray[Any],
    m: NDArray[Any],
    v: NDArray[Any] | None,
    noise: NDArray[Any],
    x0_before: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Take one step as the step graphs take it (docs/bundle.md), after the network and guidance.

    Args:
        coefficients: float32 (9,), those of one step of a schedule.
        thresholding: The schedule's.
        x: (B, ...), the state: float32 as in the graphs, or float64.
        m: Like x, the network's guided output.
        v: Like x, the network's variance output, -1..1; None where it has none.
        noise: Like x, standard normal; anything finite where the gate is 0.
        x0_before: Like x, the x0 of the step before; zeros at first.

    Returns:
        The next state and this step's x0, both like x.
    """
    a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate = coefficients
    x0 = a_x * x + a_m * m
    s = _bound(np.abs(x0).reshape(len(x0), -1), thresholding).reshape(-1, *[1] * (x.ndim - 1))
    x0 = np.clip(x0, -s, s)
    if thresholding.divide:
        x0 = x0 / s
    share = 0.5 if v is None else (v + 1) / 2
    sigma = gate * np.exp((log_min + share * (log_max - log_min)) / 2)
    return b_0 * x0 + b_x * x + b_m * m + b_h * x0_before + sigma * noise, x0


def _bound(sizes: NDArray[Any], thresholding: Thresholding) -> NDArray[Any]:
    """How far x0 may reach in each picture, (B,), from its |x0| (B, n)."""
    quantile = np.zeros(len(sizes), sizes.dtype)
    if thresholding.ratio is not None:
        (low, high), (weight,) = thresholding.ranks(sizes.shape[1])
        falling = -np.sort(-sizes, axis=1)
        quantile = (1 - weight) * falling[:, low] + weight * falling[:, high]
    return np.clip(quantile, sizes.dtype.type(thresholding.floor), sizes.dtype.type(thresholding.ceiling))
