"""Classifier-free guidance (arXiv:2207.12598)."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats


def guidance_weights(scale: float) -> Floats:
    """Weights (G,) float32 of the branches: unconditional and conditional, or conditional alone at 1 or below."""
    return np.array([1 - scale, scale] if scale > 1 else [1], np.float32)
