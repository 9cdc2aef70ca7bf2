"""What the network's output means: the clean picture and the noise, as weights of x and of that output."""

from __future__ import annotations

import numpy as np

from kandinsky22.arrays import Floats


def clean_weights(prediction_type: str, signal: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """The clean picture x0 = w_x · x + w_m · output, where x = signal · x0 + noise · ε.

    Args:
        prediction_type: "epsilon" (the output is ε), "sample" (it is x0) or "v_prediction" (it is
            signal · ε - noise · x0, arXiv:2202.00512, appendix D).
        signal: How much picture x holds, (n,) standard deviations.
        noise: How much noise x holds, (n,) standard deviations.

    Returns:
        w_x and w_m, (n,) each; not finite where the output says nothing of x0.
    """
    if prediction_type == "epsilon":
        return np.reciprocal(signal), -np.divide(noise, signal)
    if prediction_type == "sample":
        return np.zeros_like(signal), np.ones_like(signal)
    return signal, -noise


def noise_weights(prediction_type: str, signal: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """The noise ε = w_x · x + w_m · output. Arguments and result are those of `clean_weights`."""
    if prediction_type == "epsilon":
        return np.zeros_like(signal), np.ones_like(signal)
    if prediction_type == "sample":
        return np.reciprocal(noise), -np.divide(signal, noise)
    return noise, signal
