"""The noise of training: betas, their products, and the timesteps that a run visits.

Two differences from diffusers 0.42.1:

- With "trailing" spacing and some numbers of steps (61 of 1000, say) a rounding error gives diffusers one more step,
  at timestep -1, which spoils the picture. It is left out.
- Zero-SNR schedules agree to 1e-6 in ᾱ, not exactly: torch's root of many numbers depends on the machine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
from kandinsky22.errors import InputError
from kandinsky22.schedulers.configs import SchedulerOptions


def training_noise(options: SchedulerOptions) -> tuple[Floats, Floats]:
    """β and ᾱ of every training timestep, (T,) each: the variance that it adds, and what is left of the picture's.

    They are diffusers' `betas` and `alphas_cumprod`. Raises InputError for a β outside of 0..1, or of 0.
    """
    betas = _betas(options)
    if not ((betas > 0) & (betas <= 1)).all():
        raise InputError("The scheduler config's betas must all be above 0 and at most 1.")
    if options.rescale_betas_zero_snr:
        betas = _without_signal_at_the_end(betas)
    return betas, _product(betas)


def signal_and_noise(alphas_cumprod: Floats) -> tuple[Floats, Floats]:
    """How much picture and how much noise x holds where training has these ᾱ, as standard deviations."""
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


def spaced_timesteps(options: SchedulerOptions, steps: int) -> NDArray[np.int64]:
    """Timesteps (steps,) in falling order, as `timestep_spacing` says (arXiv:2305.08891, table 2).

    Raises InputError where `steps_offset` moves the first one past the last of training.
    """
    last = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        return np.linspace(0, last - 1, steps).round()[::-1].astype(np.int64)
    if options.timestep_spacing == "trailing":  # arange may give one more
        return np.arange(last, 0, -last / steps)[:steps].round().astype(np.int64) - 1
    times = np.arange(steps)[::-1] * (last // steps) + options.steps_offset
    if times[0] >= last:
        raise InputError(
            f"{steps} steps with steps_offset {options.steps_offset} would start at timestep {times[0]}, "
            f"past the last one, {last - 1}: ask for fewer steps."
        )
    return times.astype(np.int64)


def _betas(options: SchedulerOptions) -> Floats:
    """β as configured, (T,), made in the order in which diffusers rounds to float32."""
    count, start, end = options.num_train_timesteps, options.beta_start, options.beta_end
    if options.trained_betas is not None:
        return np.array(options.trained_betas, np.float32)
    if options.beta_schedule == "linear":
        return _line(start, end, count)
    if options.beta_schedule == "scaled_linear":
        roots = _line(start**0.5, end**0.5, count)
        return roots * roots
    if options.beta_schedule == "sigmoid":  # arXiv:2203.02923
        share = (1 / (1 + np.exp(-_line(-6, 6, count).astype(np.float64)))).astype(np.float32)
        return share * np.float32(end - start) + np.float32(start)
    t = np.arange(count + 1) / count
    if options.beta_schedule == "laplace":
        snr = np.exp(-0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6))
        bars = np.sqrt(snr / (1 + snr))
    else:  # squaredcos_cap_v2, arXiv:2102.09672, equation 17
        bars = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Floats = np.minimum(1 - bars[1:] / bars[:-1], 0.999).astype(np.float32)
    return betas


def _without_signal_at_the_end(betas: Floats) -> Floats:
    """β moved so that ᾱ ends at 0 (arXiv:2305.08891, Algorithm 1), in float32 as diffusers does it."""
    roots = np.sqrt(_product(betas))
    first, last = roots[0], roots[-1]
    bars = np.square((roots - last) * (first / (first - last)))
    return 1 - np.append(bars[:1], bars[1:] / bars[:-1])


def _product(betas: Floats) -> Floats:
    """ᾱ, (T,), as torch.cumprod makes it: multiplied in float64, kept in float32."""
    product: Floats = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
    return product


def _line(start: float, end: float, count: int) -> Floats:
    """torch.linspace in float32: counted from both ends, each value rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(max(count - 1, 1)))
    i = np.arange(count)
    line = np.where(i < max(count // 2, 1), float(first) + step * i, float(last) - step * (count - 1 - i))
    return line.astype(np.float32)
