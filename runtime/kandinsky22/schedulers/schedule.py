"""A schedule: the whole run of a sampler as coefficients, one set a step, and how its x0 is bounded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.errors import InputError
from kandinsky22.schedulers.configs import LARGEST, SchedulerOptions
from kandinsky22.schedulers.prediction import clean_weights

_B_0, _B_H = 2, 5  # columns of the coefficients


@dataclass(frozen=True)
class Thresholding:
    """How a step bounds its x0: not at all, by a fixed range, or by dynamic thresholding (arXiv:2205.11487, 2.3).

    x0 is clipped to ±s with s = clamp(q, floor, ceiling), and divided by s where `divide`; q is the `ratio` quantile
    of a picture's |x0|, or 0 where there is no thresholding (floor and ceiling are then one number).
    """

    floor: float
    ceiling: float
    divide: bool
    ratio: float | None

    @property
    def array(self) -> NDArray[np.float32]:
        """The step graphs' input `thresholding`: float32 (3,): floor, ceiling, divide as 0 or 1."""
        return np.array([self.floor, self.ceiling, self.divide], np.float32)

    def ranks(self, values: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find where the quantile lies among a picture's |x0|, exactly as `torch.quantile` does in float32.

        Args:
            values: How many numbers a picture's latents hold, 1..2**24.

        Returns:
            int64 (2,), places of the quantile's two neighbours in descending order, and float32 (1,), the weight of
            the second. Both are 0 where there is no thresholding: any place will do then.
        """
        if self.ratio is None:
            return np.zeros(2, np.int64), np.zeros(1, np.float32)
        rank = np.float32(self.ratio) * np.float32(values - 1)
        below, above = int(np.floor(rank)), int(np.ceil(rank))
        return np.array([values - 1 - below, values - 1 - above], np.int64), np.array([rank - np.float32(below)])


def ranks_needed(ratio: float | None, values: int) -> int:
    """Count the largest |x0| that a graph must look at to serve every picture of up to `values` latent numbers.

    Args:
        ratio: `Thresholding.ratio`, in 0..1.
        values: Latent numbers of the largest picture.

    Returns:
        K, such that `Thresholding.ranks(n)` stays below K for every n in 1..values: 1312 for 4·256·256 and 0.995.
    """
    if ratio is None:
        return 1
    return values - math.floor(float(np.float32(ratio)) * (values - 1))  # exact: 24 bits times 24 bits


@dataclass(frozen=True)
class Schedule:
    """A sampler's whole run; `remaining` gives its end alone."""

    timesteps: NDArray[np.int64]
    """(n,): timesteps in the order they are run."""
    coefficients: NDArray[np.float32]
    """(n, 9): a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate."""
    noisy: NDArray[np.bool_]
    """(n,): where diffusers draws noise from its generator, whatever it multiplies it by."""
    thresholding: Thresholding
    """How x0 is bounded, the same in every step."""
    learned: bool
    """Whether the network must predict a variance (twice the channels), which the coefficients interpolate by."""
    scales: NDArray[np.float32]
    """(n, 2): how much picture and how much noise there is at each timestep, as standard deviations.

    diffusers' `add_noise` is scales[i, 0] · x0 + scales[i, 1] · noise.
    """

    @classmethod
    def from_columns(
        cls,
        options: SchedulerOptions,
        timesteps: NDArray[np.int64],
        scales: tuple[Floats, Floats],
        *,
        b_0: Floats,
        b_x: Floats,
        b_m: Floats | None = None,
        b_h: Floats | None = None,
        logs: tuple[Floats, Floats],
        gate: NDArray[np.bool_],
        noisy: NDArray[np.bool_],
    ) -> Schedule:
        """Join a sampler's columns, each (n,), with those that its prediction type and its options mean.

        Args:
            options: The sampler's config: prediction type, variance, bounds of x0.
            timesteps: In the order they are run.
            scales: How much picture and how much noise x holds, as standard deviations.
            b_0, b_x, b_m, b_h: Weights of x0, x, the network's output and the x0 before; 0 where one is not given.
            logs: The least and the largest logarithm of the variance of the step's noise.
            gate: Where noise is added at all.
            noisy: Where diffusers draws noise.

        Raises:
            InputError: A coefficient is not finite.
        """
        nothing = np.zeros_like(b_0)
        b_m, b_h = nothing if b_m is None else b_m, nothing if b_h is None else b_h
        a_x, a_m = clean_weights(options.prediction_type, *scales)
        coefficients = np.stack([a_x, a_m, b_0, b_x, b_m, b_h, *logs, gate.astype(np.float32)], axis=1)
        bad = np.flatnonzero(~np.isfinite(coefficients).all(axis=1))
        if bad.size:
            signal, noise = (float(each[bad[0]]) for each in scales)
            raise InputError(
                f"The schedule has no finite coefficients at timestep {timesteps[bad[0]]}: "
                + _why_not_finite(options, signal, noise)
            )
        joined = np.stack(scales, axis=1)
        for column in (timesteps, coefficients, noisy, joined):
            column.flags.writeable = False
        learned = options.variance_type == "learned_range"
        return cls(timesteps, coefficients, noisy, _thresholding(options), learned, joined)

    def per_step(self, draw: Callable[[], Floats], nothing: Floats) -> dict[str, list[Array]]:
        """The step graphs' inputs that change with the step, a list each: `timestep`, `coefficients` and `noise`.

        `draw` is called for each step for which diffusers draws noise; the others get `nothing`.
        """
        return {
            "timestep": list(self.timesteps.astype(np.float32)[:, None]),
            "coefficients": list(self.coefficients),
            "noise": [draw() if noisy else nothing for noisy in self.noisy],
        }

    def remaining(self, start: int) -> Schedule:
        """The run from step `start` (0..n-1) on, as it is when it begins there: with no x0 of a step before.

        A second-order step is then one of first order: b_0 and b_h of DPM-Solver++ add up to the first order's b_0.
        """
        coefficients = self.coefficients[start:].copy()
        coefficients[:1, _B_0] += coefficients[:1, _B_H]
        coefficients[:1, _B_H] = 0
        coefficients.flags.writeable = False
        return dataclasses.replace(
            self,
            timesteps=self.timesteps[start:],
            coefficients=coefficients,
            noisy=self.noisy[start:],
            scales=self.scales[start:],
        )

    def last_part(self, strength: float, *, name: str = "strength") -> Schedule:
        """The last int(n · strength) of the n steps: those of image to image (arXiv:2108.01073), as in diffusers.

        Args:
            strength: 0..1: how much of the run is left.
            name: What the user calls `strength`, for messages.

        Raises:
            InputError: No step is left.
        """
        steps = len(self.timesteps)
        kept = min(int(steps * strength), steps)
        if kept < 1:
            raise InputError(
                f"{name} {strength:g} leaves none of {steps} steps; ask for more steps or a larger {name}."
            )
        return self.remaining(steps - kept)


def _why_not_finite(options: SchedulerOptions, signal: float, noise: float) -> str:
    """What a config has wrong, with this much picture and noise at the first timestep that is not finite."""
    if noise == 0:
        return "there is no noise left there; expected larger betas."
    if signal == 0:
        return (
            "nothing is left of the picture there, and prediction_type "
            f"{options.prediction_type!r} divides by it; expected v_prediction or sample, or a timestep_spacing that "
            "leaves the last timestep out."
        )
    return "expected betas that add noise at every timestep and leave something of the picture until the last."


def _thresholding(options: SchedulerOptions) -> Thresholding:
    if options.thresholding:  # wins over clip_sample
        ceiling = LARGEST if options.sample_max_value is None else options.sample_max_value
        return Thresholding(min(1.0, ceiling), ceiling, True, options.dynamic_thresholding_ratio)
    span = options.clip_sample_range if options.clip_sample else LARGEST
    return Thresholding(span, span, False, None)
