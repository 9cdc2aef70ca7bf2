"""DPM-Solver++ as a schedule, against diffusers' scheduler driven step by step with the same outputs and noise."""

import inspect
import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep

from kandinsky22.errors import InputError
from kandinsky22.schedulers import configs, solve
from kandinsky22.schedulers.configs import switch
from kandinsky22.schedulers.dpm_solver import dpm_solver
from tests.reference_step import reference_step
from tests.runtime.test_schedulers import DECODER, KANDINSKY, LIMITS, PRIOR, SCHEDULES, Material, of_class, run_ours

NAME = "DPMSolverMultistepScheduler"
SIGMAS = [
    {},
    {"use_karras_sigmas": True},
    {"use_lu_lambdas": True},
    {"use_exponential_sigmas": True},
]
SPACINGS = [
    {},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"lambda_min_clipped": -5.1},
    {"lambda_min_clipped": -4.0, "timestep_spacing": "trailing"},
]
ENDS = [{}, {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False}]
ENDS += [{"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": end} for end in (True, False)]
SOLVERS = [
    {"algorithm_type": algorithm, "solver_type": kind, "solver_order": order}
    for algorithm in ("dpmsolver++", "sde-dpmsolver++")
    for kind in ("midpoint", "heun")
    for order in (2, 1)
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_diffusers(config, steps, material, start=0):
    """Timesteps, states, x0s, and whether noise was drawn, of a run from step `start` on."""
    scheduler = DPMSolverMultistepScheduler(**{k: v for k, v in config.items() if not k.startswith("_")})
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(start)  # it would look the timestep up, and fail where that is there twice
    x, states, x0s, drawn = torch.from_numpy(material.x), [], [], []
    for i, t in enumerate(scheduler.timesteps[start:]):

        def draw(shape, i=i, **_):
            drawn.append(i)
            return torch.from_numpy(material.noise[i]).float()

        with mock.patch.object(scheduling_dpmsolver_multistep, "randn_tensor", draw):
            x = scheduler.step(torch.from_numpy(material.m[i]), t, x).prev_sample
        states.append(x.numpy())
        x0s.append(scheduler.model_outputs[-1].numpy())
    return scheduler.timesteps[start:].numpy(), states, x0s, drawn


def assert_same_run(config, steps, start=0, rtol=2e-5):
    solved = solve(config, steps).remaining(start)
    material = Material(len(solved.coefficients), np.float32, learned=False)
    times, states, x0s, drawn = run_diffusers(config, steps, material, start)
    np.testing.assert_array_equal(solved.timesteps, times)
    assert np.flatnonzero(solved.noisy).tolist() == drawn
    for ours, ours_0, theirs, theirs_0 in zip(*run_ours(solved, material), states, x0s, strict=True):
        assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max(), (config, steps)
        assert np.abs(ours_0 - theirs_0).max() <= rtol * np.abs(theirs_0).max(), (config, steps)
    return solved


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 25])
def test_a_switched_prior(steps):
    config = switch(PRIOR, "DPM++", configs.PRIOR)
    assert_same_run(config, steps)
    assert_same_run(config, steps, start=steps // 2)


@pytest.mark.parametrize("limits", ["thresholding", "neither"])
@pytest.mark.parametrize("steps", [1, 2, 10, 14, 15, 20, 25, 50])
def test_what_from_config_makes_of_the_published_decoder(steps, limits):
    config = DECODER | {"thresholding": limits == "thresholding", "sample_max_value": None}
    converted = DPMSolverMultistepScheduler.from_config(
        DDPMScheduler(**{k: v for k, v in config.items() if k != "_class_name"}).config
    )
    switched = switch(config, "DPM++")
    assert switched.pop("_class_name") == NAME
    assert switched == {key: converted.config[key] for key in switched}
    assert set(inspect.signature(DPMSolverMultistepScheduler.__init__).parameters) - set(switched) == {
        *("self", "variance_type", "flow_shift", "time_shift_type")
    }
    solved = assert_same_run(of_class(NAME, **switched), steps)
    assert (solved.coefficients[1:-1, 5] != 0).all()  # of second order between the first step and the last
    assert not solved.learned


@pytest.mark.parametrize("name", ["DPM++ Karras", "dpm++-karras", "DPM++karrasScheduler"])
def test_karras_levels_have_a_name(name):
    assert switch(DECODER, name) == {**switch(DECODER, "DPM++"), "use_karras_sigmas": True}


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: "-".join(map(str, solver.values())))
def test_grid(solver, spacing):
    """Every solver with every spacing; schedules, ends, σ, limits, predictions and steps take turns."""
    predictions = itertools.cycle(["epsilon", "sample", "v_prediction"])
    limits = itertools.cycle([{k: v for k, v in each.items() if "clip_sample" not in k} for each in LIMITS])
    turns = zip(predictions, limits, itertools.cycle([8, 20, 12, 16]), itertools.cycle(SIGMAS))
    for schedule, end in itertools.product(SCHEDULES, ENDS):
        prediction, limit, steps, sigmas = next(turns)
        if schedule.get("beta_schedule") == "squaredcos_cap_v2" and spacing.get("timestep_spacing") == "trailing":
            continue  # starts at ᾱ of 1e-9, where diffusers' own float32 keeps no digits
        if "sigma_min" in end.values() and sigmas and solver["solver_type"] == "heun":
            continue  # see test_a_step_to_where_it_is_changes_nothing
        options = {**schedule, **end, **sigmas, **solver, **spacing, **limit, "prediction_type": prediction}
        assert_same_run(of_class(NAME, **options), steps, rtol=2e-4)


@pytest.mark.parametrize("start", [1, 5, 9])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: "-".join(map(str, solver.values())))
def test_a_run_that_begins_later_begins_with_first_order(solver, start):
    """As in image to image, where the first steps are left out."""
    solved = assert_same_run(of_class(NAME, **KANDINSKY, **solver), 10, start)
    assert solved.coefficients[0, 5] == 0


def test_second_order_converges_as_such():
    """On Gaussian data, whose noise and end are known exactly: twice the steps, a quarter of the error."""
    config = of_class(NAME, **KANDINSKY, use_lu_lambdas=True, final_sigmas_type="sigma_min")
    spread = 0.5

    def error(steps, order):
        solved = dpm_solver(config | {"solver_order": order}, steps)
        x, before, none = np.full((1, 1), 1.7), np.zeros((1, 1)), np.zeros((1, 1))
        variances = []
        for row in solved.coefficients.astype(np.float64):
            signal, noise = 1 / row[0], -row[1] / row[0]
            variances.append((signal * spread) ** 2 + noise**2)
            output = noise * x / variances[-1]  # E[ε | x]
            x, before = reference_step(row, solved.thresholding, x, output, None, none, before)
        return abs(x.item() - 1.7 * np.sqrt(variances[-1] / variances[0]))

    assert 3.3 < error(20, 2) / error(40, 2) < 5
    assert 1.7 < error(20, 1) / error(40, 1) < 2.4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_zero_terminal_snr(schedule):
    """diffusers puts 2⁻²⁴ for the ᾱ of 0 of the last timestep; ᾱ of the others agree to 1e-6."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    assert_same_run(of_class(NAME, **options, **schedule), 12, rtol=1e-3)


def test_a_step_to_where_it_is_changes_nothing():
    """Karras' σ end at the smallest of training, and then there is a step to the smallest: NaN in diffusers."""
    options = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_type": "heun"}
    last = solve(of_class(NAME, **options), 20).coefficients[-1]
    np.testing.assert_allclose(last[[2, 3, 4, 5, 8]], [0, 1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("sigmas", SIGMAS[1:], ids=str)
def test_timesteps_of_every_number_of_steps(sigmas):
    """Those between whole timesteps are rounded, or cut off, where diffusers does."""
    for schedule in SCHEDULES[:3]:
        scheduler = DPMSolverMultistepScheduler(**sigmas, **schedule)
        for steps in [*range(2, 30), 50, 77, 100]:
            scheduler.set_timesteps(steps)
            ours = solve(of_class(NAME, **sigmas, **schedule), steps)
            np.testing.assert_array_equal(ours.timesteps, scheduler.timesteps.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver_order": 3}, "solver_order 3, but it must be 1 or 2"),
        ({"algorithm_type": "dpmsolver"}, r"'dpmsolver', but it must be one of dpmsolver\+\+, sde-dpmsolver\+\+"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas True, but it must be null or false"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting True"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ({"lambda_min_clipped": "low"}, "lambda_min_clipped 'low', but it must be a number, or minus infinity"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "expected one of them"),
        ({"timestep_spacing": "leading", "num_train_timesteps": 30}, "30 steps are too many for leading timesteps"),
        ({"eta": 1}, "has an option 'eta'"),
        ({"lambda_min_clipped": 10.0}, "lambda_min_clipped is 10, which leaves no timestep to begin at; expected less"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(InputError, match=message):
        dpm_solver(options, 30)


def test_eta_is_refused():
    with pytest.raises(InputError, match="eta is an option of DDIM"):
        solve(of_class(NAME), 10, eta=0.5)


@pytest.mark.parametrize(
    ("options", "steps", "fits", "twice"),
    [
        ({}, 1000, 999, 500),
        ({"solver_type": "heun"}, 1000, 999, 500),
        ({"algorithm_type": "sde-dpmsolver++"}, 1000, 999, 500),
        ({"num_train_timesteps": 30}, 30, 29, 14),
        ({"lambda_min_clipped": -4.0}, 998, 888, 884),
    ],
)
def test_two_steps_at_one_timestep_are_named_as_the_cause(options, steps, fits, twice):
    """The step after them divides by what lies between: NaN in diffusers. Fewer steps work, and first order does."""
    config = of_class(NAME, **options)
    times, states, _, _ = run_diffusers(config, steps, Material(steps, np.float32, learned=False))
    assert (times == twice).sum() == 2
    assert np.isnan(states[-1]).all()
    with pytest.raises(InputError, match=rf"^{steps} steps .* \(timesteps {twice} and {twice}\).* fewer steps, or set"):
        solve(config, steps)
    assert np.isfinite(solve(config, fits).coefficients).all()
    assert_same_run(config | {"solver_order": 1}, steps, rtol=1e-3)


def test_neighbours_with_the_same_noise_are_named_as_the_cause():
    betas = [0.5, *[1e-9] * 99]
    with pytest.raises(InputError, match=r"two in a row with the same noise \(timesteps 99 and 89\)"):
        solve(of_class(NAME, num_train_timesteps=100, trained_betas=betas), 10)
