"""DPM-Solver++ (arXiv:2211.01095), deterministic or as an SDE.

Two differences from diffusers 0.42.1, which fails on both:

- A config made from one with a learned variance makes diffusers drop a latent channel. Here, as with DDIM, the
  variance channels are dropped.
- A run whose first two σ (Karras', say) round to one timestep begins at the second in diffusers, and has no step left
  at the end. Here it begins at the first.
"""

from __future__ import annotations

import math
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Floats
from kandinsky22.errors import InputError
from kandinsky22.schedulers.configs import STEPS, Config, SchedulerOptions, checked_steps, read
from kandinsky22.schedulers.noise_schedule import training_noise
from kandinsky22.schedulers.schedule import Schedule


@np.errstate(all="ignore")  # Schedule.from_columns refuses what is not finite
def dpm_solver(config: Config, steps: SupportsIndex, *, name: str = STEPS) -> Schedule:
    """DPM-Solver++ (arXiv:2211.01095, Algorithm 2), deterministic or as an SDE, of first or second order.

    The second order takes the x0 of the step before into account: b_0 and b_h of the coefficients. The first step has
    none and is of first order, and so is the last one where it ends without noise (its step in log-SNR is infinite).

    Args:
        config: Options of diffusers' DPMSolverMultistepScheduler; solver_order 3 and the first DPM-Solver are refused.
        steps: Denoising steps, 1..num_train_timesteps ("leading", and "linspace" of second order: one less).
        name: What the user calls `steps`, for messages.

    Returns:
        The whole run.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("DPMSolverMultistepScheduler", config)
    times, sigmas = _timesteps_and_sigmas(options, checked_steps(steps, options, name=name))
    signal = 1 / np.sqrt(np.square(sigmas) + 1)
    noise = sigmas * signal
    lambdas = np.log(signal) - np.log(noise)
    h = np.diff(lambdas)
    second_order = _of_second_order(options, len(times))
    _refuse_equal_noise(times, h, second_order)
    stochastic = options.algorithm_type == "sde-dpmsolver++"
    power = -2 * h if stochastic else -h
    first = -signal[1:] * (np.exp(power) - 1)
    heun = np.where(h > 0, signal[1:] * (1 - (np.exp(power) - 1) / power), 0)
    second = first / 2 if options.solver_type == "midpoint" else heun
    slope = np.where(second_order, second * h / np.append(np.float32(1), h[:-1]), 0)
    sigma = noise[1:] * np.sqrt(1 - np.exp(-2 * h)) if stochastic else np.zeros_like(h)
    log = np.where(sigma > 0, 2 * np.log(sigma), 0)
    return Schedule.from_columns(
        options,
        times,
        (signal[:-1], noise[:-1]),
        b_0=first + slope,
        b_x=noise[1:] / noise[:-1] * (np.exp(-h) if stochastic else np.float32(1)),
        b_h=-slope,
        logs=(log, log),
        gate=sigma > 0,
        noisy=np.full(times.shape, stochastic),
    )


def _of_second_order(options: SchedulerOptions, steps: int) -> NDArray[np.bool_]:
    """Which steps (steps,) may look at the x0 of the step before."""
    second = np.full(steps, options.solver_order == 2)
    second[0] = False
    few = options.lower_order_final and steps < 15
    if options.euler_at_final or few or options.final_sigmas_type == "zero":
        second[-1] = False
    return second


def _refuse_equal_noise(times: NDArray[np.int64], h: Floats, second_order: NDArray[np.bool_]) -> None:
    """Refuse a step of second order after one of no length `h`, by which it divides: diffusers' picture is NaN."""
    stuck = np.flatnonzero((h[:-1] == 0) & second_order[1:])
    if stuck.size:
        first, again = times[stuck[0] : stuck[0] + 2]
        raise InputError(
            f"{len(times)} steps of DPM-Solver++ have two in a row with the same noise (timesteps {first} and {again}),"
            " and its second order divides by their difference; ask for fewer steps, or set solver_order to 1."
        )


def _timesteps_and_sigmas(options: SchedulerOptions, steps: int) -> tuple[NDArray[np.int64], Floats]:
    """Timesteps (n,), and σ = noise / signal at each, (n + 1,): the last is where the run ends.

    σ falls evenly in its seventh roots (Karras: arXiv:2206.00364, equation 5), in its logarithm (Lu: arXiv:2206.00927,
    section 3.3; exponential), or as the timesteps say.
    """
    _, alphas_cumprod = training_noise(options)
    if options.rescale_betas_zero_snr:
        alphas_cumprod[-1] = 2.0**-24  # diffusers' stand-in for 0, which has no logarithm
    all_sigmas = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    if options.use_karras_sigmas:
        sigmas = _ramp(float(all_sigmas[-1]) ** (1 / 7), float(all_sigmas[0]) ** (1 / 7), steps) ** 7
    elif options.use_lu_lambdas:
        logs = np.log(all_sigmas)
        sigmas = np.exp(_ramp(float(logs[-1]), float(logs[0]), steps))
    elif options.use_exponential_sigmas:
        sigmas = np.exp(np.linspace(math.log(all_sigmas[-1]), math.log(all_sigmas[0]), steps))
    else:
        times = _spaced_timesteps(options, steps, alphas_cumprod)
        sigmas = np.interp(times, np.arange(len(all_sigmas)), all_sigmas)
        return times, _with_final_sigma(options, sigmas, all_sigmas)
    exact = _timesteps_of(sigmas, np.log(all_sigmas))
    # diffusers rounds those of Karras and Lu to whole timesteps, but for the cosine schedule, and cuts the others off.
    rounded = options.beta_schedule != "squaredcos_cap_v2" and not options.use_exponential_sigmas
    times = (exact.round() if rounded else exact).astype(np.int64)
    return times, _with_final_sigma(options, sigmas, all_sigmas)


def _with_final_sigma(options: SchedulerOptions, sigmas: NDArray[np.float64], all_sigmas: Floats) -> Floats:
    """The σ (n,) of a run with the one that it ends at: none, or the smallest of training."""
    last = 0.0 if options.final_sigmas_type == "zero" else all_sigmas[0]
    return np.append(sigmas, last).astype(np.float32)


def _ramp(start: float, end: float, count: int) -> NDArray[np.float64]:
    """Evenly spaced numbers, rounded as diffusers rounds them: a timestep that is cut to a whole one depends on it."""
    return start + np.linspace(0, 1, count) * (end - start)


def _timesteps_of(sigmas: NDArray[np.float64], logs: Floats) -> NDArray[np.float64]:
    """Timesteps, between whole ones, at which training has these σ; `logs` (T,) are the logarithms of training's."""
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    times: NDArray[np.float64] = (1 - share) * low + share * (low + 1)
    return times


def _spaced_timesteps(options: SchedulerOptions, steps: int, alphas_cumprod: Floats) -> NDArray[np.int64]:
    """As `spaced_timesteps`, with the differences of diffusers' multistep schedulers: one step is counted and left out.

    Timesteps with a log-SNR below `lambda_min_clipped` are never begun at.
    """
    lambdas = np.log(np.sqrt(alphas_cumprod)) - np.log(np.sqrt(1 - alphas_cumprod))
    last = int((lambdas >= options.lambda_min_clipped).sum())
    if last == 0:
        raise InputError(
            f"The scheduler config's lambda_min_clipped is {options.lambda_min_clipped:g}, which leaves no timestep to "
            f"begin at; expected less than {lambdas[0]:g}, as -5.1."
        )
    times: NDArray[np.floating | np.integer]
    if options.timestep_spacing == "linspace":
        times = np.linspace(0, last - 1, steps + 1).round()[:0:-1]
    elif options.timestep_spacing == "trailing":
        times = np.arange(last, 0, -options.num_train_timesteps / steps)[:steps].round() - 1
    else:
        ratio = last // (steps + 1)
        if ratio == 0:
            raise InputError(f"{steps} steps are too many for leading timesteps of DPM-Solver++; ask for fewer.")
        times = np.arange(steps, 0, -1) * ratio + options.steps_offset
    return times.astype(np.int64)
