"""Classifier-free guidance (arXiv:2207.12598): its weights, and the steps that it is on in (arXiv:2404.07724)."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats


def guidance_weights(scale: float) -> Floats:
    """Weights of the branches (arXiv:2207.12598): unconditional, conditional; the conditional alone at 1 or below."""
    return np.array([1 - scale, scale] if scale > 1 else [1], np.float32)


def guided_parts(steps: int, scale: float, interval: tuple[float, float]) -> list[tuple[slice, bool]]:
    """The runs of steps that are guided or not, in order: step i is where interval[0] <= i / steps < interval[1]."""
    guided = [scale > 1 and interval[0] <= step / steps < interval[1] for step in range(steps)]
    starts = [step for step in range(steps) if step == 0 or guided[step] != guided[step - 1]]
    return [(slice(a, b), guided[a]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
