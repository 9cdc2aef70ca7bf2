"""Denoising diffusion implicit models: DDIM (arXiv:2010.02502).

Two differences from diffusers 0.42.1, whose picture cannot be made there:

- A DDIM config made from a DDPM config with a learned variance keeps its `variance_type` in diffusers, and the
  Kandinsky pipeline then fails. Here the variance channels are dropped, as with every other DDIM config.
- Zero-SNR DDIM with an eta of 1 can take the root of a number that rounding has put below 0 (at 10 or 75 steps, say),
  and diffusers' picture is then NaN. Here it is the root of 0.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from kandinsky22.schedulers.configs import STEPS, Config, checked_eta, checked_steps, read
from kandinsky22.schedulers.noise_schedule import signal_and_noise, spaced_timesteps, training_noise
from kandinsky22.schedulers.prediction import noise_weights
from kandinsky22.schedulers.schedule import Schedule


@np.errstate(all="ignore")  # Schedule.from_columns refuses what is not finite
def ddim(config: Config, steps: SupportsIndex, eta: float = 0.0, *, name: str = STEPS) -> Schedule:
    """Denoising diffusion implicit models (arXiv:2010.02502, equation 12, with σ of equation 16).

    As in diffusers, a step goes to the timestep num_train_timesteps // steps below, whatever the spacing, and the
    direction towards x is the network's own noise, not the one that a clipped x0 would mean. Noise is drawn at every
    step where eta is above 0, and never where it is 0.

    Args:
        config: Options of diffusers' DDIMScheduler.
        steps: Denoising steps, 1..num_train_timesteps.
        eta: Share of DDPM's noise: 0 none, 1 all.
        name: What the user calls `steps`, for messages.

    Returns:
        The whole run.

    Raises:
        InputError: An option, the number of steps or eta is not supported.
    """
    options, eta = read("DDIMScheduler", config), checked_eta(eta)
    count = checked_steps(steps, options, name=name)
    times = spaced_timesteps(options, count)
    _, alphas_cumprod = training_noise(options)
    below = times - options.num_train_timesteps // count
    final = np.float32(1) if options.set_alpha_to_one else alphas_cumprod[0]
    now, before = alphas_cumprod[times], np.where(below >= 0, alphas_cumprod[below], final)
    sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    direction = np.sqrt(np.maximum(1 - before - np.square(sigma), 0))
    signal, noise = signal_and_noise(now)
    noise_x, noise_m = noise_weights(options.prediction_type, signal, noise)
    log = np.where(sigma > 0, 2 * np.log(sigma), 0)
    return Schedule.from_columns(
        options,
        times,
        (signal, noise),
        b_0=np.sqrt(before),
        b_x=direction * noise_x,
        b_m=direction * noise_m,
        logs=(log, log),
        gate=sigma > 0,
        noisy=np.full(times.shape, eta > 0),
    )
