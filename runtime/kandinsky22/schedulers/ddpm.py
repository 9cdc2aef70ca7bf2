"""Ancestral sampling: DDPM (arXiv:2006.11239), and unCLIP's prior (arXiv:2204.06125)."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
from kandinsky22.schedulers.configs import (
    Config,
    SchedulerOptions,
    checked_steps,
    read,
)
from kandinsky22.schedulers.noise_schedule import ONE, noise_schedule, roots_of, spaced
from kandinsky22.schedulers.schedule import Schedule, finished

_SMALLEST_VARIANCE = 1e-20  # diffusers' floor, so that a variance of 0 has a logarithm


@np.errstate(all="ignore")  # finished refuses what is not finite
def ddpm(config: Config, steps: SupportsIndex) -> Schedule:
    """Ancestral sampling of DDPM (arXiv:2006.11239, Algorithm 2), with skipped timesteps.

    The mean is the posterior's, equation 7. The variance is the posterior's ("fixed_small", "fixed_small_log"), β_t
    ("fixed_large"), or between the two where the network says (arXiv:2102.09672, equation 15: "learned_range").
    Noise is drawn at every step with a timestep above 0.

    Args:
        config: Options of diffusers' DDPMScheduler.
        steps: Denoising steps, 1..num_train_timesteps.

    Returns:
        One row a step.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("DDPMScheduler", config)
    times = spaced(options, checked_steps(steps, options))
    _, bars = noise_schedule(options)
    now, before = bars[times], np.append(bars[times[1:]], ONE)
    alpha = now / before
    return _ancestral(options, times, now, before, alpha, 1 - alpha)


@np.errstate(all="ignore")  # finished refuses what is not finite
def unclip(config: Config, steps: SupportsIndex) -> Schedule:
    """Ancestral sampling as in unCLIP's prior (arXiv:2204.06125, as Karlo does it): DDPM, spaced from end to end.

    Timesteps are round(i·(T-1)/(n-1)), from T-1 down to 0; each step goes to the next one, as Kandinsky's prior
    pipeline asks. One step would divide by zero (diffusers does), and so is refused.

    Args:
        config: Options of diffusers' UnCLIPScheduler.
        steps: Denoising steps, 2..num_train_timesteps.

    Returns:
        One row a step.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("UnCLIPScheduler", config)
    count = checked_steps(steps, options, least=2)
    ratio = (options.num_train_timesteps - 1) / (count - 1)
    times = (np.arange(count) * ratio).round()[::-1].astype(np.int64)
    betas, bars = noise_schedule(options)
    now, before = bars[times], np.append(bars[times[1:]], ONE)
    neighbours = np.diff(times, append=-1) == -1
    beta = np.where(neighbours, betas[times], 1 - now / before)
    return _ancestral(options, times, now, before, 1 - beta, beta)


def _ancestral(
    options: SchedulerOptions, times: NDArray[np.int64], now: Floats, before: Floats, alpha: Floats, beta: Floats
) -> Schedule:
    """Sample from the posterior q(x_before | x_t, x0), with ᾱ of both, and α and β = 1 - α between them, (n,) each.

    α is given too, since either can be the one that diffusers rounds first.
    """
    noisy = times > 0
    small = np.log(np.maximum((1 - before) / (1 - now) * beta, _SMALLEST_VARIANCE))
    large = np.log(beta)
    logs = {"fixed_large": (large, large), "learned_range": (small, large)}.get(options.variance_type, (small, small))
    return finished(
        options,
        times,
        roots_of(now),
        b_0=np.sqrt(before) * beta / (1 - now),
        b_x=np.sqrt(alpha) * (1 - before) / (1 - now),
        logs=(np.where(noisy, logs[0], 0), np.where(noisy, logs[1], 0)),
        gate=noisy,
        noisy=noisy,
    )
