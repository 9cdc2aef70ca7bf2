"""Diffusion samplers, solved ahead: config and number of steps in, one set of coefficients a step out.

Every sampler is one pure function that solves its whole run; the step graphs apply the coefficients, and
docs/bundle.md says what they mean. The configs are those of diffusers' schedulers, and so are the pictures: a schedule
is made in float32, in diffusers' own order of operations, since its rounding can be seen. Near the end of a run 1 - ᾱ
keeps three or four digits in float32, and the last step of Kandinsky's prior scales its result by
β_0 / (1 - ᾱ_0) = 0.99947 where float64 has 1.

Where diffusers 0.42.1 cannot mean what it does, the sampler differs, and its module says how.
"""

from __future__ import annotations

from typing import SupportsIndex

from kandinsky22.errors import InputError
from kandinsky22.schedulers import ddim, ddpm, dpm_solver
from kandinsky22.schedulers.configs import STEPS, Config, checked_eta, class_name
from kandinsky22.schedulers.schedule import Schedule

__all__ = ["solve"]

_SAMPLERS = {
    "DDPMScheduler": ddpm.ddpm,
    "DPMSolverMultistepScheduler": dpm_solver.dpm_solver,
    "UnCLIPScheduler": ddpm.unclip,
}


def solve(config: Config, steps: SupportsIndex, *, eta: float = 0.0, name: str = STEPS) -> Schedule:
    """Solve the sampler that a diffusers scheduler config names.

    Args:
        config: The content of a `scheduler_config.json`, with its `_class_name`.
        steps: Denoising steps, 1..num_train_timesteps (UnCLIP: from 2).
        eta: DDIM's share of noise, 0..1; 0 for the others.
        name: What the user calls `steps`, for messages.

    Returns:
        The whole run.

    Raises:
        InputError: The class, an option or an argument is not supported.
    """
    sampler = class_name(config)
    if sampler == "DDIMScheduler":
        return ddim.ddim(config, steps, eta, name=name)
    if checked_eta(eta) != 0:
        raise InputError(f"eta is an option of DDIM: leave it at 0 with {sampler}.")
    return _SAMPLERS[sampler](config, steps, name=name)
