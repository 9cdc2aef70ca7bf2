"""Ancestral sampling: DDPM (arXiv:2006.11239), and unCLIP's prior (arXiv:2204.06125)."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
from kandinsky22.schedulers.configs import STEPS, Config, SchedulerOptions, checked_steps, read
from kandinsky22.schedulers.noise_schedule import signal_and_noise, spaced_timesteps, training_noise
from kandinsky22.schedulers.schedule import Schedule

_SMALLEST_VARIANCE = 1e-20  # diffusers' floor, so that a variance of 0 has a logarithm


@np.errstate(all="ignore")  # Schedule.from_columns refuses what is not finite
def ddpm(config: Config, steps: SupportsIndex, *, name: str = STEPS) -> Schedule:
    """Ancestral sampling of DDPM (arXiv:2006.11239, Algorithm 2), with skipped timesteps.

    The mean is the posterior's, equation 7. The variance is the posterior's ("fixed_small", "fixed_small_log"), β_t
    ("fixed_large"), or between the two where the network says (arXiv:2102.09672, equation 15: "learned_range").
    Noise is drawn at every step with a timestep above 0.

    Args:
        config: Options of diffusers' DDPMScheduler.
        steps: Denoising steps, 1..num_train_timesteps.
        name: What the user calls `steps`, for messages.

    Returns:
        The whole run.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("DDPMScheduler", config)
    times = spaced_timesteps(options, checked_steps(steps, options, name=name))
    _, alphas_cumprod = training_noise(options)
    now, before = _now_and_before(alphas_cumprod, times)
    alpha = now / before
    return _ancestral(options, times, now, before, alpha, 1 - alpha)


@np.errstate(all="ignore")  # Schedule.from_columns refuses what is not finite
def unclip(config: Config, steps: SupportsIndex, *, name: str = STEPS) -> Schedule:
    """Ancestral sampling as in unCLIP's prior (arXiv:2204.06125, as Karlo does it): DDPM, spaced from end to end.

    Timesteps are round(i·(T-1)/(n-1)), from T-1 down to 0; each step goes to the next one, as Kandinsky's prior
    pipeline asks. One step would divide by zero (diffusers does), and so is refused.

    Args:
        config: Options of diffusers' UnCLIPScheduler.
        steps: Denoising steps, 2..num_train_timesteps.
        name: What the user calls `steps`, for messages.

    Returns:
        The whole run.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("UnCLIPScheduler", config)
    count = checked_steps(steps, options, least=2, name=name)
    ratio = (options.num_train_timesteps - 1) / (count - 1)
    times = (np.arange(count) * ratio).round()[::-1].astype(np.int64)
    betas, alphas_cumprod = training_noise(options)
    now, before = _now_and_before(alphas_cumprod, times)
    neighbours = np.diff(times, append=-1) == -1
    beta = np.where(neighbours, betas[times], 1 - now / before)
    return _ancestral(options, times, now, before, 1 - beta, beta)


def _now_and_before(alphas_cumprod: Floats, times: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """ᾱ (n,) at the timesteps, and where each step goes: to the next one, at last to the clean picture's 1."""
    return alphas_cumprod[times], np.append(alphas_cumprod[times[1:]], np.float32(1))


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
    return Schedule.from_columns(
        options,
        times,
        signal_and_noise(now),
        b_0=np.sqrt(before) * beta / (1 - now),
        b_x=np.sqrt(alpha) * (1 - before) / (1 - now),
        logs=(np.where(noisy, logs[0], 0), np.where(noisy, logs[1], 0)),
        gate=noisy,
        noisy=noisy,
    )
