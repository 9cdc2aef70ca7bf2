"""Denoising diffusion implicit models: DDIM (arXiv:2010.02502)."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from kandinsky22.arrays import Floats
from kandinsky22.schedulers.configs import (
    Config,
    SchedulerOptions,
    checked_eta,
    checked_steps,
    read,
)
from kandinsky22.schedulers.noise_schedule import ONE, noise_schedule, roots_of, spaced
from kandinsky22.schedulers.schedule import Schedule, finished


@np.errstate(all="ignore")  # finished refuses what is not finite
def ddim(config: Config, steps: SupportsIndex, eta: float = 0.0) -> Schedule:
    """Denoising diffusion implicit models (arXiv:2010.02502, equation 12, with σ of equation 16).

    As in diffusers, a step goes to the timestep num_train_timesteps // steps below, whatever the spacing, and the
    direction towards x is the network's own noise, not the one that a clipped x0 would mean. Noise is drawn at every
    step where eta is above 0, and never where it is 0.

    Args:
        config: Options of diffusers' DDIMScheduler.
        steps: Denoising steps, 1..num_train_timesteps.
        eta: Share of DDPM's noise: 0 none, 1 all.

    Returns:
        One row a step.

    Raises:
        InputError: An option, the number of steps or eta is not supported.
    """
    options, eta = read("DDIMScheduler", config), checked_eta(eta)
    count = checked_steps(steps, options)
    times = spaced(options, count)
    _, bars = noise_schedule(options)
    below = times - options.num_train_timesteps // count
    now, before = bars[times], np.where(below >= 0, bars[below], ONE if options.set_alpha_to_one else bars[0])
    sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    direction = np.sqrt(np.maximum(1 - before - np.square(sigma), 0))
    e_x, e_m = _noise_of(options, now)
    log = np.where(sigma > 0, 2 * np.log(sigma), 0)
    return finished(
        options,
        times,
        roots_of(now),
        b_0=np.sqrt(before),
        b_x=direction * e_x,
        b_m=direction * e_m,
        logs=(log, log),
        gate=sigma > 0,
        noisy=np.full(times.shape, eta > 0),
    )


def _noise_of(options: SchedulerOptions, now: Floats) -> tuple[Floats, Floats]:
    """The noise in x as weights (n,) of x and of the network's output, with ᾱ = now."""
    signal, noise = roots_of(now)
    if options.prediction_type == "epsilon":
        return np.zeros_like(now), np.ones_like(now)
    if options.prediction_type == "sample":
        return np.reciprocal(noise), -np.divide(signal, noise)
    return noise, signal
