"""Diffusion samplers as tables of coefficients: config and number of steps in, one row a step out.

Every sampler here is one pure function that solves its whole schedule ahead; the step graphs apply a row, and
docs/bundle.md says what a row means. The configs are those of diffusers' schedulers, and so are the pictures: a
schedule is made in float32, in diffusers' own order of operations, since its rounding can be seen. Near the end of a
run 1 - ᾱ keeps three or four digits in float32, and the last step of Kandinsky's prior scales its result by
β_0 / (1 - ᾱ_0) = 0.99947 where float64 has 1.

It differs from diffusers 0.42.1 where that cannot mean what it does:

- With "trailing" spacing and some numbers of steps (61 of 1000, say) a rounding error gives diffusers one more step,
  at timestep -1, which spoils the picture. It is left out.
- A DDIM config made from a DDPM config with a learned variance keeps its `variance_type` in diffusers, and the
  Kandinsky pipeline then fails. Here the variance channels are dropped, as with every other DDIM config.
- Zero-SNR DDIM with an eta of 1 can take the root of a number that rounding has put below 0 (at 10 or 75 steps, say),
  and diffusers' picture is then NaN. Here it is the root of 0.
- A DPM-Solver++ config made from one with a learned variance makes diffusers drop a latent channel, and fail. Here, as
  with DDIM, the variance channels are dropped.
- A DPM-Solver++ run whose first two σ (Karras', say) round to one timestep makes diffusers begin at the second and fail
  at the end. Here it begins at the first.
- Zero-SNR schedules agree to 1e-6 in ᾱ, not exactly: torch's root of many numbers depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import SupportsIndex

from kandinsky22.errors import InputError
from kandinsky22.schedulers import ddim, ddpm, dpm_solver
from kandinsky22.schedulers.configs import Config, checked_eta, class_name
from kandinsky22.schedulers.schedule import Schedule

__all__ = ["solve"]


def solve(config: Config, steps: SupportsIndex, *, eta: float = 0.0) -> Schedule:
    """Solve the sampler that a diffusers scheduler config names.

    Args:
        config: The content of a `scheduler_config.json`, with its `_class_name`.
        steps: Denoising steps, 1..num_train_timesteps (UnCLIP: from 2).
        eta: DDIM's share of noise, 0..1; 0 for the others.

    Returns:
        One row a step.

    Raises:
        InputError: The class, an option or an argument is not supported.
    """
    name = class_name(config)
    if name == "DDIMScheduler":
        return ddim.ddim(config, steps, eta)
    if checked_eta(eta) != 0:
        raise InputError(f"eta is an option of DDIM: leave it at 0 with {name}.")
    samplers: dict[str, Callable[[Config, SupportsIndex], Schedule]] = {
        "DDPMScheduler": ddpm.ddpm,
        "DPMSolverMultistepScheduler": dpm_solver.dpm_solver,
        "UnCLIPScheduler": ddpm.unclip,
    }
    return samplers[name](config, steps)
