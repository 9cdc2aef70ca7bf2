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

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.errors import InputError
from kandinsky22.scheduler_configs import (
    LARGEST,
    Config,
    SchedulerOptions,
    checked_eta,
    checked_steps,
    class_name,
    read,
)

__all__ = [
    "Limits",
    "Table",
    "ddim",
    "ddpm",
    "dpm_solver",
    "ranks_needed",
    "table",
    "unclip",
]

_SMALLEST_VARIANCE = 1e-20  # diffusers' floor, so that a variance of 0 has a logarithm
_ONE = np.float32(1)
_B_0, _B_H = 2, 5  # columns of a row


# What comes out


@dataclass(frozen=True)
class Limits:
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
        """The step graphs' input `limits`: float32 (3,): floor, ceiling, divide as 0 or 1."""
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
        ratio: `Limits.ratio`, in 0..1.
        values: Latent numbers of the largest picture.

    Returns:
        K, such that `Limits.ranks(n)` stays below K for every n in 1..values: 1312 for 4·256·256 and 0.995.
    """
    if ratio is None:
        return 1
    return values - math.floor(float(np.float32(ratio)) * (values - 1))  # exact: 24 bits times 24 bits


@dataclass(frozen=True)
class Table:
    """A sampler's whole run; `remaining` gives its end alone."""

    timesteps: NDArray[np.int64]
    """(n,): timesteps in the order they are run."""
    rows: NDArray[np.float32]
    """(n, 9): a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate."""
    noisy: NDArray[np.bool_]
    """(n,): where diffusers draws noise from its generator, whatever it multiplies it by."""
    limits: Limits
    """How x0 is bounded, the same in every step."""
    learned: bool
    """Whether the network must predict a variance (twice the channels), which the rows interpolate by."""
    scales: NDArray[np.float32]
    """(n, 2): how much picture and how much noise there is at each timestep, as standard deviations.

    diffusers' `add_noise` is scales[i, 0] · x0 + scales[i, 1] · noise.
    """

    def per_step(self, draw: Callable[[], Floats], nothing: Floats) -> dict[str, list[Array]]:
        """The step graphs' inputs that change with the step, a list each: `timestep`, `row` and `noise`.

        `draw` is called for each step for which diffusers draws noise; the others get `nothing`.
        """
        return {
            "timestep": list(self.timesteps.astype(np.float32)[:, None]),
            "row": list(self.rows),
            "noise": [draw() if noisy else nothing for noisy in self.noisy],
        }

    def remaining(self, start: int) -> Table:
        """The run from step `start` (0..n-1) on, as it is when it begins there: with no x0 of a step before.

        A second-order step is then one of first order: b_0 and b_h of DPM-Solver++ add up to the first order's b_0.
        """
        rows = self.rows[start:].copy()
        rows[:1, _B_0] += rows[:1, _B_H]
        rows[:1, _B_H] = 0
        rows.flags.writeable = False
        return dataclasses.replace(
            self,
            timesteps=self.timesteps[start:],
            rows=rows,
            noisy=self.noisy[start:],
            scales=self.scales[start:],
        )

    def last_part(self, strength: float) -> Table:
        """The last int(n · strength) of the n steps: those of image to image (arXiv:2108.01073), as in diffusers.

        Args:
            strength: 0..1: how much of the run is left.

        Raises:
            InputError: No step is left.
        """
        steps = len(self.timesteps)
        kept = min(int(steps * strength), steps)
        if kept < 1:
            raise InputError(
                f"strength {strength:g} leaves none of {steps} steps; ask for more steps or a larger strength."
            )
        return self.remaining(steps - kept)


# The samplers


def table(config: Config, steps: SupportsIndex, *, eta: float = 0.0) -> Table:
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
        return ddim(config, steps, eta)
    if checked_eta(eta) != 0:
        raise InputError(f"eta is an option of DDIM: leave it at 0 with {name}.")
    samplers = {"DDPMScheduler": ddpm, "DPMSolverMultistepScheduler": dpm_solver, "UnCLIPScheduler": unclip}
    return samplers[name](config, steps)


@np.errstate(all="ignore")  # _finished refuses what is not finite
def ddpm(config: Config, steps: SupportsIndex) -> Table:
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
    times = _spaced(options, checked_steps(steps, options))
    _, bars = _schedule(options)
    now, before = bars[times], np.append(bars[times[1:]], _ONE)
    alpha = now / before
    return _ancestral(options, times, now, before, alpha, 1 - alpha)


@np.errstate(all="ignore")  # _finished refuses what is not finite
def unclip(config: Config, steps: SupportsIndex) -> Table:
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
    betas, bars = _schedule(options)
    now, before = bars[times], np.append(bars[times[1:]], _ONE)
    neighbours = np.diff(times, append=-1) == -1
    beta = np.where(neighbours, betas[times], 1 - now / before)
    return _ancestral(options, times, now, before, 1 - beta, beta)


@np.errstate(all="ignore")  # _finished refuses what is not finite
def ddim(config: Config, steps: SupportsIndex, eta: float = 0.0) -> Table:
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
    times = _spaced(options, count)
    _, bars = _schedule(options)
    below = times - options.num_train_timesteps // count
    now, before = bars[times], np.where(below >= 0, bars[below], _ONE if options.set_alpha_to_one else bars[0])
    sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    direction = np.sqrt(np.maximum(1 - before - np.square(sigma), 0))
    e_x, e_m = _noise_of(options, now)
    log = np.where(sigma > 0, 2 * np.log(sigma), 0)
    return _finished(
        options,
        times,
        _roots(now),
        b_0=np.sqrt(before),
        b_x=direction * e_x,
        b_m=direction * e_m,
        logs=(log, log),
        gate=sigma > 0,
        noisy=np.full(times.shape, eta > 0),
    )


@np.errstate(all="ignore")  # _finished refuses what is not finite
def dpm_solver(config: Config, steps: SupportsIndex) -> Table:
    """DPM-Solver++ (arXiv:2211.01095, Algorithm 2), deterministic or as an SDE, of first or second order.

    The second order takes the x0 of the step before into account: b_0 and b_h of a row. The first step has none and is
    of first order, and so is the last one where it ends without noise (its step in log-SNR is infinite).

    Args:
        config: Options of diffusers' DPMSolverMultistepScheduler; solver_order 3 and the first DPM-Solver are refused.
        steps: Denoising steps, 1..num_train_timesteps ("leading": one less).

    Returns:
        One row a step.

    Raises:
        InputError: An option or the number of steps is not supported.
    """
    options = read("DPMSolverMultistepScheduler", config)
    times, sigmas = _levels(options, checked_steps(steps, options))
    signal = 1 / np.sqrt(np.square(sigmas) + 1)
    noise = sigmas * signal
    lambdas = np.log(signal) - np.log(noise)
    h = np.diff(lambdas)
    stochastic = options.algorithm_type == "sde-dpmsolver++"
    power = -2 * h if stochastic else -h
    first = -signal[1:] * (np.exp(power) - 1)
    heun = np.where(h > 0, signal[1:] * (1 - (np.exp(power) - 1) / power), 0)
    second = first / 2 if options.solver_type == "midpoint" else heun
    slope = np.where(_of_second_order(options, len(times)), second * h / np.append(_ONE, h[:-1]), 0)
    sigma = noise[1:] * np.sqrt(1 - np.exp(-2 * h)) if stochastic else np.zeros_like(h)
    log = np.where(sigma > 0, 2 * np.log(sigma), 0)
    return _finished(
        options,
        times,
        (signal[:-1], noise[:-1]),
        b_0=first + slope,
        b_x=noise[1:] / noise[:-1] * (np.exp(-h) if stochastic else _ONE),
        b_h=-slope,
        logs=(log, log),
        gate=sigma > 0,
        noisy=np.full(times.shape, stochastic),
    )


def _ancestral(
    options: SchedulerOptions, times: NDArray[np.int64], now: Floats, before: Floats, alpha: Floats, beta: Floats
) -> Table:
    """Sample from the posterior q(x_before | x_t, x0), with ᾱ of both, and α and β = 1 - α between them, (n,) each.

    α is given too, since either can be the one that diffusers rounds first.
    """
    noisy = times > 0
    small = np.log(np.maximum((1 - before) / (1 - now) * beta, _SMALLEST_VARIANCE))
    large = np.log(beta)
    logs = {"fixed_large": (large, large), "learned_range": (small, large)}.get(options.variance_type, (small, small))
    return _finished(
        options,
        times,
        _roots(now),
        b_0=np.sqrt(before) * beta / (1 - now),
        b_x=np.sqrt(alpha) * (1 - before) / (1 - now),
        logs=(np.where(noisy, logs[0], 0), np.where(noisy, logs[1], 0)),
        gate=noisy,
        noisy=noisy,
    )


def _finished(
    options: SchedulerOptions,
    times: NDArray[np.int64],
    roots: tuple[Floats, Floats],
    *,
    b_0: Floats,
    b_x: Floats,
    b_m: Floats | None = None,
    b_h: Floats | None = None,
    logs: tuple[Floats, Floats],
    gate: NDArray[np.bool_],
    noisy: NDArray[np.bool_],
) -> Table:
    """Join a sampler's columns, each (n,), with those of its prediction type; refuse what is not finite.

    `roots` are how much picture and how much noise x holds; a column that is not given is 0.
    """
    a_x, a_m = _x0_of(options, *roots)
    nothing = np.zeros_like(b_0)
    b_m, b_h = nothing if b_m is None else b_m, nothing if b_h is None else b_h
    rows = np.stack([a_x, a_m, b_0, b_x, b_m, b_h, *logs, gate.astype(np.float32)], axis=1)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(
            f"The schedule has no finite coefficients at timestep {times[bad][0]}: with prediction_type "
            f"{options.prediction_type!r} it divides by zero there, as when nothing is left of the picture "
            "(rescale_betas_zero_snr needs v_prediction or sample, or a timestep_spacing that leaves the last out)."
        )
    scales = np.stack(roots, axis=1)
    for column in (times, rows, noisy, scales):
        column.flags.writeable = False
    return Table(times, rows, noisy, _limits(options), options.variance_type == "learned_range", scales)


def _x0_of(options: SchedulerOptions, signal: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """x0 as weights (n,) of x and of the network's output (v: arXiv:2202.00512, appendix D)."""
    if options.prediction_type == "epsilon":
        return np.reciprocal(signal), -np.divide(noise, signal)
    if options.prediction_type == "sample":
        return np.zeros_like(signal), np.ones_like(signal)
    return signal, -noise


def _noise_of(options: SchedulerOptions, now: Floats) -> tuple[Floats, Floats]:
    """The noise in x as weights (n,) of x and of the network's output, with ᾱ = now."""
    signal, noise = _roots(now)
    if options.prediction_type == "epsilon":
        return np.zeros_like(now), np.ones_like(now)
    if options.prediction_type == "sample":
        return np.reciprocal(noise), -np.divide(signal, noise)
    return noise, signal


def _roots(bars: Floats) -> tuple[Floats, Floats]:
    """How much picture and how much noise x holds, in standard deviations."""
    return np.sqrt(bars), np.sqrt(1 - bars)


def _limits(options: SchedulerOptions) -> Limits:
    if options.thresholding:  # wins over clip_sample
        ceiling = LARGEST if options.sample_max_value is None else options.sample_max_value
        return Limits(min(1.0, ceiling), ceiling, True, options.dynamic_thresholding_ratio)
    span = options.clip_sample_range if options.clip_sample else LARGEST
    return Limits(span, span, False, None)


# The schedules


def _levels(options: SchedulerOptions, steps: int) -> tuple[NDArray[np.int64], Floats]:
    """Timesteps (n,) of DPM-Solver++ and σ = noise / signal at each, (n + 1,): the last is where the run ends.

    σ falls evenly in its seventh roots (Karras: arXiv:2206.00364, equation 5), in its logarithm (Lu: arXiv:2206.00927,
    section 3.3; exponential), or as the timesteps say.
    """
    _, bars = _schedule(options)
    if options.rescale_betas_zero_snr:
        bars[-1] = 2.0**-24  # diffusers' stand-in for 0, which has no logarithm
    all_sigmas = np.sqrt((1 - bars) / bars)
    if options.use_karras_sigmas:
        sigmas = _ramp(float(all_sigmas[-1]) ** (1 / 7), float(all_sigmas[0]) ** (1 / 7), steps) ** 7
    elif options.use_lu_lambdas:
        logs = np.log(all_sigmas)
        sigmas = np.exp(_ramp(float(logs[-1]), float(logs[0]), steps))
    elif options.use_exponential_sigmas:
        sigmas = np.exp(np.linspace(math.log(all_sigmas[-1]), math.log(all_sigmas[0]), steps))
    else:
        times = _spaced_for_multistep(options, steps, bars)
        sigmas = np.interp(times, np.arange(len(all_sigmas)), all_sigmas)
        return times, _ended(options, sigmas, all_sigmas)
    exact = _times_of(sigmas, np.log(all_sigmas))
    # diffusers rounds those of Karras and Lu to whole timesteps, but for the cosine schedule, and cuts the others off.
    rounded = options.beta_schedule != "squaredcos_cap_v2" and not options.use_exponential_sigmas
    return (exact.round() if rounded else exact).astype(np.int64), _ended(options, sigmas, all_sigmas)


def _ended(options: SchedulerOptions, sigmas: NDArray[np.float64], all_sigmas: Floats) -> Floats:
    """The σ (n,) of a run with the one that it ends at: none, or the smallest of training."""
    last = 0.0 if options.final_sigmas_type == "zero" else all_sigmas[0]
    return np.append(sigmas, last).astype(np.float32)


def _ramp(start: float, end: float, count: int) -> NDArray[np.float64]:
    """Evenly spaced numbers, rounded as diffusers rounds them: a timestep that is cut to a whole one depends on it."""
    return start + np.linspace(0, 1, count) * (end - start)


def _times_of(sigmas: NDArray[np.float64], logs: Floats) -> NDArray[np.float64]:
    """Timesteps, between whole ones, at which training has these σ; `logs` (T,) are the logarithms of training's."""
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    times: NDArray[np.float64] = (1 - share) * low + share * (low + 1)
    return times


def _spaced_for_multistep(options: SchedulerOptions, steps: int, bars: Floats) -> NDArray[np.int64]:
    """As `_spaced`, with the differences of diffusers' multistep schedulers: one step more is counted, and left out.

    Timesteps with a log-SNR below `lambda_min_clipped` are never begun at.
    """
    lambdas = np.log(np.sqrt(bars)) - np.log(np.sqrt(1 - bars))
    times: NDArray[np.floating | np.integer]
    last = int((lambdas >= options.lambda_min_clipped).sum())
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


def _of_second_order(options: SchedulerOptions, steps: int) -> NDArray[np.bool_]:
    """Which steps (steps,) of DPM-Solver++ may look at the x0 of the step before."""
    second = np.full(steps, options.solver_order == 2)
    second[0] = False
    few = options.lower_order_final and steps < 15
    if options.euler_at_final or few or options.final_sigmas_type == "zero":
        second[-1] = False
    return second


def _spaced(options: SchedulerOptions, steps: int) -> NDArray[np.int64]:
    """Timesteps (steps,) in falling order (arXiv:2305.08891, Table 2)."""
    last = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        return np.linspace(0, last - 1, steps).round()[::-1].astype(np.int64)
    if options.timestep_spacing == "trailing":  # arange may give one more, see the top of this file
        return np.arange(last, 0, -last / steps)[:steps].round().astype(np.int64) - 1
    times = np.arange(steps)[::-1] * (last // steps) + options.steps_offset
    if times[0] >= last:
        raise InputError(
            f"{steps} steps with steps_offset {options.steps_offset} would start at timestep {times[0]}, "
            f"past the last one, {last - 1}: ask for fewer steps."
        )
    return times.astype(np.int64)


def _schedule(options: SchedulerOptions) -> tuple[Floats, Floats]:
    """β and ᾱ of every training timestep, (T,) each: the variance that it adds, and what is left of the picture's."""
    betas = _betas(options)
    if not ((betas > 0) & (betas <= 1)).all():
        raise InputError("The scheduler config's betas must all be above 0 and at most 1.")
    if options.rescale_betas_zero_snr:
        betas = _without_signal_at_the_end(betas)
    return betas, _product(betas)


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
