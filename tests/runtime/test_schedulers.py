"""The schedules against diffusers' own schedulers, driven step by step with the same network outputs and noise."""

import inspect
import itertools
import json
import math
from dataclasses import FrozenInstanceError
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UnCLIPScheduler,
)
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm, scheduling_unclip

from kandinsky22.errors import InputError, shown
from kandinsky22.noise import Generator
from kandinsky22.schedulers import configs, noise_schedule, solve
from kandinsky22.schedulers.configs import from_user, switch
from kandinsky22.schedulers.ddim import ddim
from kandinsky22.schedulers.ddpm import ddpm, unclip
from kandinsky22.schedulers.schedule import Thresholding, ranks_needed
from tests.reference_step import reference_step

CLASSES = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler, "UnCLIPScheduler": UnCLIPScheduler}
KANDINSKY = {"beta_start": 0.00085, "beta_end": 0.012}
DECODER = {"_class_name": "DDPMScheduler", **KANDINSKY, "variance_type": "learned_range"}
PRIOR = {"_class_name": "UnCLIPScheduler", "clip_sample_range": 5.0, "prediction_type": "sample"}
PUBLISHED = {
    "decoder, thresholding": DECODER | {"thresholding": True, "sample_max_value": None, "clip_sample_range": 2.0},
    "decoder, clipping": DECODER | {"clip_sample_range": 2.0},
    "decoder, neither": DECODER | {"clip_sample": False},
    "decoder, DDIM": {"_class_name": "DDIMScheduler", **KANDINSKY, "clip_sample": False, "set_alpha_to_one": False}
    | {"steps_offset": 1},
    "prior": PRIOR,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_class(name, **options):
    return {"_class_name": name, **options}


def diffusers_scheduler(config):
    return CLASSES[config["_class_name"]](**{k: v for k, v in config.items() if not k.startswith("_")})


class Material:
    """A run's random starting state, network outputs and noise, for two pictures of 4x6x6."""

    def __init__(self, steps, dtype, learned, seed=0):
        rng = np.random.default_rng(seed)
        shape = (2, 4, 6, 6)
        self.x = rng.standard_normal(shape).astype(dtype)
        self.m = rng.standard_normal((steps, *shape)).astype(dtype)
        self.v = rng.uniform(-1.2, 1.2, (steps, *shape)).astype(dtype) if learned else [None] * steps
        self.noise = rng.standard_normal((steps, *shape)).astype(dtype)


def run_diffusers(config, steps, material, eta=0.0, bars=None):
    """Step diffusers' scheduler as its Kandinsky pipelines do: its timesteps, states, x0s and noise mask."""
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(steps)
    if bars is not None:
        scheduler.alphas_cumprod = torch.from_numpy(bars)
        scheduler.final_alpha_cumprod = torch.tensor(1.0 if config.get("set_alpha_to_one", True) else bars[0])
    times = scheduler.timesteps[:steps]
    drawn = np.zeros(len(times), bool)
    x, states, x0s = torch.from_numpy(material.x), [], []
    for i, t in enumerate(times):

        def draw(shape, i=i, **_):
            drawn[i] = True
            return torch.from_numpy(material.noise[i])

        output = material.m[i] if material.v[i] is None else np.concatenate([material.m[i], material.v[i]], axis=1)
        extra = {}
        if isinstance(scheduler, DDIMScheduler):
            extra["eta"] = eta
        if isinstance(scheduler, UnCLIPScheduler):
            extra["prev_timestep"] = times[i + 1] if i + 1 < len(times) else None
        modules = (scheduling_ddpm, scheduling_ddim, scheduling_unclip)
        patches = [mock.patch.object(module, "randn_tensor", draw) for module in modules]
        with patches[0], patches[1], patches[2]:
            out = scheduler.step(torch.from_numpy(output), t, x, **extra)
        x = out.prev_sample
        states.append(x.numpy())
        x0s.append(out.pred_original_sample.numpy())
    return times.numpy(), states, x0s, drawn


def run_ours(solved, material):
    x, x0 = material.x, np.zeros_like(material.x)
    states, x0s = [], []
    for i, row in enumerate(solved.coefficients):
        x, x0 = reference_step(row, solved.thresholding, x, material.m[i], material.v[i], material.noise[i], x0)
        states.append(x)
        x0s.append(x0)
    return states, x0s


def assert_same_run(config, steps, *, eta=0.0, dtype=np.float32, bars=None, rtol=1e-5):
    """Compare whole runs. Errors are relative to a picture's largest value, since its values are of one scale.

    x0 is a difference of a_x·x and a_m·m: where those are large, float32 leaves less of it, in diffusers too.
    """
    solved = solve(config, steps, eta=eta)
    material = Material(steps, dtype, solved.learned)
    times, states, x0s, drawn = run_diffusers(config, steps, material, eta, bars)
    np.testing.assert_array_equal(solved.timesteps, times)
    np.testing.assert_array_equal(solved.noisy, drawn)
    assert solved.coefficients.shape == (steps, 9)
    assert solved.coefficients.dtype == np.float32
    before = material.x
    for ours, ours_0, theirs, theirs_0, row in zip(
        *run_ours(solved, material), states, x0s, solved.coefficients, strict=True
    ):
        assert ours.dtype == ours_0.dtype == dtype
        assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max(), (config, steps, eta)
        slack = 3e-7 * abs(row[0]) * np.abs(before).max()
        assert np.abs(ours_0 - theirs_0).max() <= rtol * np.abs(theirs_0).max() + slack, (config, steps, eta)
        before = theirs


# Runs


@pytest.mark.parametrize("steps", [2, 25, 50, 100])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name, steps):
    assert_same_run(PUBLISHED[name], steps)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "prior"])
def test_one_step(name):
    assert_same_run(PUBLISHED[name], 1)


LIMITS = [
    {},
    {"clip_sample": False},
    {"clip_sample_range": 2.0},
    {"thresholding": True, "sample_max_value": None},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "sample_max_value": 0.7, "clip_sample": False},
    {"thresholding": True},
]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = [{}, {"steps_offset": 3}, {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]
SCHEDULES = [
    *({"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")),
    {"trained_betas": np.linspace(0.001, 0.03, 300).tolist(), "num_train_timesteps": 300},
    {"beta_schedule": "linear", "num_train_timesteps": 333, "beta_end": 0.05},
]
ANCESTRAL_SCHEDULES = [*SCHEDULES, {"beta_schedule": "laplace"}, {"beta_schedule": "sigmoid"}]


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_grid(prediction, spacing):
    """Every schedule with every variance; limits, steps and precision take turns."""
    turns = zip(itertools.cycle(LIMITS), itertools.cycle([7, 20, 12]), itertools.cycle([np.float32, np.float64]))
    for schedule, variance in itertools.product(ANCESTRAL_SCHEDULES, VARIANCES):
        limits, steps, dtype = next(turns)
        options = {**schedule, **limits, **spacing, "variance_type": variance, "prediction_type": prediction}
        assert_same_run(of_class("DDPMScheduler", **options), steps, dtype=dtype)


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_grid(prediction, spacing):
    turns = zip(itertools.cycle(LIMITS), itertools.cycle([7, 20, 12]), itertools.cycle([np.float32, np.float64]))
    for schedule, eta, one in itertools.product(SCHEDULES, [0.0, 0.5, 1.0], [True, False]):
        limits, steps, dtype = next(turns)
        options = {**schedule, **limits, **spacing, "set_alpha_to_one": one, "prediction_type": prediction}
        assert_same_run(of_class("DDIMScheduler", **options), steps, eta=eta, dtype=dtype)


@pytest.mark.parametrize("steps", [2, 5, 25, 60])
@pytest.mark.parametrize("count", [1000, 60])
def test_unclip_grid(count, steps):
    variances = ["fixed_small_log", "learned_range"]
    for prediction, variance, limits in itertools.product(PREDICTIONS[:2], variances, LIMITS[:3]):
        options = {"prediction_type": prediction, "variance_type": variance, "num_train_timesteps": count, **limits}
        assert_same_run(of_class("UnCLIPScheduler", **options), steps)


@pytest.mark.parametrize(
    "config", [DECODER, of_class("DDIMScheduler", **KANDINSKY), PRIOR], ids=["DDPM", "DDIM", "UnCLIP"]
)
def test_all_the_training_steps(config):
    """Neighbouring timesteps: the shortest steps, where float32 loses most."""
    assert_same_run(config | {"num_train_timesteps": 200}, 200, dtype=np.float64)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_zero_terminal_snr(name, schedule):
    """The rescaled ᾱ agree with diffusers' to float32's rounding, and given the same ᾱ the runs agree too."""
    for prediction, spacing, steps in itertools.product(PREDICTIONS[1:], SPACINGS[2:], [7, 20]):
        options = {"rescale_betas_zero_snr": True, "prediction_type": prediction, **spacing, **schedule}
        config = of_class(name, **options)
        _, bars = noise_schedule.training_noise(configs.read(name, config))
        np.testing.assert_allclose(bars, diffusers_scheduler(config).alphas_cumprod.numpy(), rtol=2e-5, atol=1e-6)
        assert bars[-1] == 0
        assert_same_run(config, steps, bars=bars)
        if name == "DDIMScheduler":
            assert_same_run(config | {"set_alpha_to_one": False}, steps, eta=0.5, bars=bars)


def test_zero_terminal_snr_with_epsilon_where_the_last_timestep_is_left_out():
    options = {"rescale_betas_zero_snr": True}
    config = of_class("DDPMScheduler", **options)
    assert_same_run(config, 10, bars=noise_schedule.training_noise(configs.read("DDPMScheduler", config))[1])


def test_zero_terminal_snr_with_full_noise_is_never_nan():
    """diffusers' 1 - ᾱ - σ² is below 0 by rounding here, and its picture NaN."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    config = of_class("DDIMScheduler", beta_schedule="squaredcos_cap_v2", **options)
    for steps in (*range(1, 40), 75, 100):
        assert np.isfinite(solve(config, steps, eta=1.0).coefficients).all()


@pytest.mark.parametrize("schedule", ANCESTRAL_SCHEDULES, ids=str)
def test_schedules_are_diffusers_own_float32_numbers(schedule):
    ours = noise_schedule.training_noise(configs.read("DDPMScheduler", schedule))
    theirs = DDPMScheduler(**schedule)
    exact = schedule.get("beta_schedule") != "sigmoid"
    for mine, their in zip(ours, (theirs.betas, theirs.alphas_cumprod), strict=True):
        np.testing.assert_allclose(mine, their.numpy(), rtol=0 if exact else 5e-7)


def test_the_prior_ends_with_diffusers_rounding():
    last = unclip(PRIOR, 25).coefficients[-1]
    assert last[2] == pytest.approx(0.99947, abs=1e-5)
    assert last[8] == 0


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_timesteps_of_every_number_of_steps(name, spacing):
    scheduler = CLASSES[name](**spacing)
    for steps in [*range(1, 63), *range(64, 1001, 39), 1000]:
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy()
        if theirs[0] >= 1000:
            with pytest.raises(InputError, match="past the last one, 999"):
                solve(of_class(name, **spacing), steps)
            continue
        np.testing.assert_array_equal(solve(of_class(name, **spacing), steps).timesteps, theirs[:steps])
        assert len(theirs) == steps or theirs[steps] == -1


def test_the_step_that_trailing_spacing_adds_is_left_out():
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(61)
    assert scheduler.timesteps[-2:].tolist() == [15, -1]
    times = ddpm({"timestep_spacing": "trailing"}, 61).timesteps
    assert len(times) == 61
    assert times[-1] == 15


def test_schedule_and_noise_together():
    """The order of draws: nothing is drawn where diffusers draws nothing."""
    for config, eta in ((DECODER, 0.0), (of_class("DDIMScheduler", **KANDINSKY), 0.7), (PRIOR, 0.0)):
        solved = solve(config, 6, eta=eta)
        material = Material(6, np.float32, solved.learned)
        ours = Generator(11)
        material.noise = np.stack([ours.randn((2, 4, 6, 6)) if n else material.x * 0 for n in solved.noisy])
        theirs = torch.Generator().manual_seed(11)
        drawn = [torch.randn(2, 4, 6, 6, generator=theirs) for _ in range(solved.noisy.sum())]
        np.testing.assert_array_equal(material.noise[solved.noisy], np.stack(drawn))
        states, _ = run_ours(solved, material)
        np.testing.assert_allclose(states[-1], run_diffusers(config, 6, material, eta)[1][-1], rtol=1e-4, atol=1e-5)


# Thresholding and quantile


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clip_sample_range": 2.0}, (2, 2, 0)),
        ({"clip_sample": False}, (np.finfo(np.float32).max, np.finfo(np.float32).max, 0)),
        ({"thresholding": True, "sample_max_value": None}, (1, np.finfo(np.float32).max, 1)),
        ({"thresholding": True, "sample_max_value": 3}, (1, 3, 1)),
        ({"thresholding": True, "sample_max_value": 0.5, "clip_sample": False}, (0.5, 0.5, 1)),
    ],
)
def test_limits(options, expected):
    limits = ddpm(options, 5).thresholding
    assert limits.array.dtype == np.float32
    np.testing.assert_array_equal(limits.array, np.array(expected, np.float32))
    assert limits.ratio == (0.995 if "thresholding" in options else None)


def test_ranks_are_torchs():
    """torch forms the rank in float32, where 0.995·(n-1) keeps few digits behind the point."""
    for ratio in (0.995, 0.9, 1.0, 0.0, 0.37):
        ratio32 = torch.tensor(ratio)
        limits = Thresholding(1.0, 2.0, True, ratio)
        for values in [*range(4, 200), *range(600, 300_001, 4999), 4 * 256 * 256, 300_000]:
            (low, high), weight = limits.ranks(values)
            rank = ratio32 * (values - 1)
            assert values - 1 - low == int(rank.floor())
            assert values - 1 - high == int(rank.ceil())
            assert weight.item() == (rank - rank.floor()).item()


def test_quantile_is_torchs():
    rng = np.random.default_rng(0)
    for values in [4, 5, 144, 1000, 4096, 16384, 65536, 300_000, *rng.integers(4, 3000, 20).tolist()]:
        sizes = np.abs(rng.standard_normal(values)).astype(np.float32)
        limits = Thresholding(1.0, 2.0, True, 0.995)
        (low, high), (weight,) = limits.ranks(values)
        falling = np.sort(sizes)[::-1]
        ours = (1 - weight) * falling[low] + weight * falling[high]
        assert ours == pytest.approx(torch.quantile(torch.from_numpy(sizes), 0.995).item(), rel=3e-7)


def test_ranks_without_thresholding():
    places, weight = Thresholding(1.0, 1.0, False, None).ranks(100)
    assert places.tolist() == [0, 0]
    assert weight.tolist() == [0]
    assert (places.dtype, weight.dtype) == (np.int64, np.float32)


def test_ranks_needed():
    assert ranks_needed(0.995, 4 * 256 * 256) == 1312
    assert ranks_needed(None, 4 * 256 * 256) == 1
    for ratio in (0.995, 0.9, 1.0, 0.0):
        limits, most = Thresholding(1.0, 2.0, True, ratio), 0
        for values in range(1, 1000):
            most = max(most, *(limits.ranks(values)[0] + 1).tolist())
            assert most <= ranks_needed(ratio, values) <= most + 1


def test_each_picture_has_its_own_threshold():
    x = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32) * np.float32(4)
    x *= np.array([0.1, 1, 2], np.float32).reshape(3, 1, 1, 1)
    solved = ddpm({"thresholding": True, "sample_max_value": None, "prediction_type": "sample"}, 5)
    together = reference_step(solved.coefficients[0], solved.thresholding, x, x, None, x, x)[1]
    for i in range(3):
        one = x[i : i + 1]
        np.testing.assert_array_equal(
            reference_step(solved.coefficients[0], solved.thresholding, one, one, None, one, one)[1][0], together[i]
        )


def test_reference_step_is_the_contract():
    """Every column at once, against docs/bundle.md written out for one number."""
    row = np.array([0.5, 0.25, 0.75, 0.125, -0.5, 0.0625, -2.0, -1.0, 1.0], np.float32)
    x, m, v, noise, before = (np.full((1, 1), value, np.float32) for value in (2.0, 4.0, 0.5, -1.5, 3.0))
    x_next, x0 = reference_step(row, Thresholding(1.5, 1.5, False, None), x, m, v, noise, before)
    sigma = math.exp(0.5 * (-2 + 0.75 * 1))
    assert x0.item() == 1.5
    expected = 0.75 * 1.5 + 0.125 * 2 - 0.5 * 4 + 0.0625 * 3 + sigma * -1.5
    assert x_next.item() == pytest.approx(expected, rel=1e-6)


def test_schedules_cannot_be_changed():
    solved = ddpm(DECODER, 5)
    with pytest.raises(ValueError, match="read-only"):
        solved.coefficients[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        solved.learned = False


@pytest.mark.parametrize(
    ("config", "learned"), [(DECODER, True), (DECODER | {"_class_name": "DDIMScheduler"}, False), (PRIOR, False)]
)
def test_learned_says_whether_the_network_must_predict_a_variance(config, learned):
    solved = solve(config, 10)
    assert solved.learned == learned
    assert (solved.coefficients[:, 6] != solved.coefficients[:, 7]).any() == learned


# Configs


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_of_diffusers_is_known_with_its_default(name):
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    theirs = {key: p.default for key, p in parameters.items() if key != "self"}
    assert theirs == {key: default for key, (default, _) in configs.CLASSES[name].items()}
    np.testing.assert_array_equal(
        solve(of_class(name), 7).coefficients, solve(of_class(name, **theirs), 7).coefficients
    )


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_options_of_other_schedulers_that_diffusers_ignores(name):
    cls = CLASSES[name]
    foreign = set().union(*(cls._get_init_keys(other) for other in cls._get_compatibles()))
    foreign -= cls._get_init_keys(cls) | {"args", "kwargs"}
    assert foreign <= configs.FOREIGN
    config = of_class(name, _diffusers_version="0.42.1", **dict.fromkeys(foreign, "anything"))
    np.testing.assert_array_equal(solve(config, 7).coefficients, solve(of_class(name), 7).coefficients)


def stored(scheduler):
    """A config as diffusers holds it in memory."""
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


@pytest.mark.parametrize("name", PUBLISHED)
def test_stored_configs_are_read(name):
    config = PUBLISHED[name]
    np.testing.assert_array_equal(
        solve(stored(diffusers_scheduler(config)), 7).coefficients, solve(config, 7).coefficients
    )


SWITCHED = [
    DDPMScheduler(variance_type="learned_range", beta_start=0.001, thresholding=True, sample_max_value=None),
    DDPMScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True, steps_offset=1, clip_sample_range=3.0),
    DDIMScheduler(set_alpha_to_one=False, beta_schedule="scaled_linear", prediction_type="v_prediction"),
    DDIMScheduler.from_config(DDPMScheduler(variance_type="learned_range", clip_sample=False).config),
    DDPMScheduler.from_config(DDIMScheduler(set_alpha_to_one=False, num_train_timesteps=500).config),
]


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize("scheduler", SWITCHED)
def test_switch_is_from_config(scheduler, name):
    converted = CLASSES[name + "Scheduler"].from_config(scheduler.config)
    switched = switch(stored(scheduler), name)
    assert switched.pop("_class_name") == name + "Scheduler"
    assert switched == {key: converted.config[key] for key in switched}
    assert set(switched) == type(converted)._get_init_keys(type(converted)) - {"self"}


@pytest.mark.parametrize("name", ["ddim", "DDIM", "Ddim", "DDIMScheduler", "ddimscheduler"])
def test_switch_takes_a_name_in_any_form(name):
    assert switch(DECODER, name) == switch(DECODER, "DDIM")
    assert switch(DECODER, name)["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("limits", ["decoder, thresholding", "decoder, clipping", "decoder, neither"])
def test_switched_runs(limits):
    assert_same_run(switch(PUBLISHED[limits], "DDIM"), 20, eta=0.3)
    assert_same_run(switch(switch(PUBLISHED[limits], "DDIM"), "DDPM"), 20)


def test_why_a_switch_drops_the_variance():
    """diffusers keeps variance_type, by which its pipeline keeps 8 channels, which its DDIM cannot take."""
    converted = DDIMScheduler.from_config(diffusers_scheduler(DECODER).config)
    assert converted.config.variance_type == "learned_range"
    converted.set_timesteps(5)
    with pytest.raises(RuntimeError, match="size of tensor"):
        converted.step(torch.zeros(1, 8, 6, 6), converted.timesteps[0], torch.zeros(1, 4, 6, 6))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_schedule": "foo"}, "beta_schedule 'foo', but it must be one of linear, scaled_linear, squaredcos"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"variance_type": "learned"}, "variance_type 'learned', but it must be .*root of the network's raw output"),
        ({"variance_type": "fixed_large_log"}, "'fixed_large_log', but it must be .*root of a negative logarithm"),
        ({"variance_type": "fixed"}, "variance_type 'fixed', but it must be one of fixed_small, "),
        ({"variance_type": None}, "variance_type None"),
        ({"prediction_type": "flow"}, "prediction_type 'flow', but it must be one of epsilon, sample, v_prediction"),
        (
            {"timestep_spacing": "karras"},
            "timestep_spacing 'karras', but it must be one of leading, linspace, trailing",
        ),
        ({"clip_sample": 1}, "clip_sample 1, but it must be true or false"),
        ({"thresholding": "yes"}, "thresholding 'yes', but it must be true or false"),
        ({"clip_sample_range": 0}, "clip_sample_range 0, but it must be a number above 0"),
        ({"clip_sample_range": True}, "clip_sample_range True"),
        ({"sample_max_value": -1.0}, "sample_max_value -1.0, but it must be null or a number above 0"),
        ({"sample_max_value": math.inf}, "sample_max_value inf"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio 1.5, but it must be a number from 0 to 1"),
        ({"dynamic_thresholding_ratio": math.nan}, "dynamic_thresholding_ratio nan"),
        ({"beta_start": -0.1}, "beta_start -0.1, but it must be a number between 0 and 1"),
        ({"beta_end": "0.02"}, "beta_end '0.02'"),
        ({"beta_end": 10**400}, "beta_end 1000"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas .*, but it must be null or a list of numbers"),
        ({"trained_betas": 0.1}, "trained_betas 0.1"),
        ({"trained_betas": [0.1] * 999}, "999 trained_betas, fewer than its 1000 num_train_timesteps"),
        ({"trained_betas": [-0.1] * 1000}, "betas must all be above 0 and at most 1"),
        (
            {"trained_betas": [0.5] * 500 + [1.0] + [0.5] * 499},
            "no finite coefficients at timestep 900: nothing is left",
        ),
        ({"trained_betas": [1e-9] * 1000}, "no finite coefficients at timestep 900: there is no noise left there"),
        (
            {"trained_betas": [0.5] + [1e-9] * 999, "variance_type": "fixed_large"},
            "expected betas that add noise at every",
        ),
        ({"beta_end": 10**5000}, "has beta_end a value of type int, but it must be a number between 0 and 1"),
        ({3: 1}, "has an option 3 that DDPMScheduler does not have"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0, but it must be a whole number from 1"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps 1000.0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps 1000000000000"),
        ({"steps_offset": -1}, "steps_offset -1, but it must be a whole number from 0"),
        ({"steps_offset": 950}, "would start at timestep 1850, past the last one, 999: ask for fewer steps"),
        ({"rescale_betas_zero_snr": None}, "rescale_betas_zero_snr None"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "at timestep 999.*'epsilon'.*v_prediction"),
        ({"use_sigmas": True}, "has an option 'use_sigmas' that DDPMScheduler does not have: remove it"),
    ],
    ids=shown,
)
def test_refused_options(options, message):
    with pytest.raises(InputError, match=message):
        solve({"_class_name": "DDPMScheduler", **options}, 10)


@pytest.mark.parametrize("beta_schedule", ["laplace", "sigmoid"])
def test_schedules_that_only_ddpm_has(beta_schedule):
    with pytest.raises(InputError, match=f"The DDIMScheduler config has beta_schedule '{beta_schedule}'"):
        ddim({"beta_schedule": beta_schedule}, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type 'v_prediction', but it must be one of epsilon, sample"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear', but it must be one of squaredcos_cap_v2"),
        ({"variance_type": "fixed_small"}, "variance_type 'fixed_small'"),
        ({"beta_start": 0.1}, "has an option 'beta_start' that UnCLIPScheduler does not have"),
    ],
)
def test_refused_options_of_unclip(options, message):
    with pytest.raises(InputError, match=message):
        unclip(options, 10)


@pytest.mark.parametrize(
    "steps",
    [0, -1, 1001, 2.0, "10", None, True, np.bool_(True), math.nan, 10**5000, -(10**400), [10], np.float32(5)],
    ids=shown,
)
@pytest.mark.parametrize("name", CLASSES)
def test_refused_steps(name, steps):
    with pytest.raises(InputError, match=r"^num_inference_steps is .*; expected a whole number from [12] to 1000\.$"):
        solve(of_class(name), steps)


def test_unclip_needs_two_steps():
    with pytest.raises(InputError, match="is 1; expected a whole number from 2 to 1000"):
        unclip(PRIOR, 1)


def test_numpy_integers_are_steps():
    for seven in (np.int64(7), np.uint8(7)):
        np.testing.assert_array_equal(ddpm({}, seven).coefficients, ddpm({}, 7).coefficients)


@pytest.mark.parametrize("name", CLASSES)
def test_a_refusal_of_steps_names_the_argument_that_the_user_gave(name):
    with pytest.raises(InputError, match=r"^prior_num_inference_steps is 0; expected a whole number from"):
        solve(of_class(name), 0, name="prior_num_inference_steps")


@pytest.mark.parametrize("eta", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_numpy_numbers_are_eta(eta):
    assert (ddim({}, 7, eta).coefficients == ddim({}, 7, 0.5).coefficients).all()
    assert (ddim({}, 7, np.int64(1)).coefficients == ddim({}, 7, 1).coefficients).all()


@pytest.mark.parametrize(
    "eta",
    [-0.1, 1.1, math.nan, math.inf, "0", None, True, np.bool_(True), np.float32("nan"), 10**5000, 1j, [0.5]],
    ids=shown,
)
def test_refused_eta(eta):
    for name in CLASSES:
        with pytest.raises(InputError, match=r"^eta is .*; expected a number from 0 to 1"):
            solve(of_class(name), 10, eta=eta)


@pytest.mark.parametrize("name", ["DDPMScheduler", "UnCLIPScheduler"])
def test_eta_belongs_to_ddim(name):
    with pytest.raises(InputError, match="eta is an option of DDIM"):
        solve(of_class(name), 10, eta=0.5)


@pytest.mark.parametrize("config", [{}, of_class("PNDMScheduler"), of_class(None), of_class(["DDPMScheduler"]), None])
def test_refused_classes(config):
    with pytest.raises(InputError, match="must be one of DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler"):
        solve(config, 10)


@pytest.mark.parametrize("name", ["euler", "UnCLIP", "", None, 3])
def test_refused_switches(name):
    with pytest.raises(InputError, match=r"The scheduler must be DDPM, DDIM, DPM\+\+ or DPM\+\+ Karras, not"):
        switch(DECODER, name)


def test_the_prior_cannot_be_switched():
    with pytest.raises(InputError, match="A UnCLIPScheduler config cannot be switched to DDIMScheduler"):
        switch(PRIOR, "DDIM")


PRIOR_NAMES = {
    "DDIM": (DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": False}),
    "DPM++": (DPMSolverMultistepScheduler, {}),
    "unclip-scheduler": (UnCLIPScheduler, {}),
}


@pytest.mark.parametrize("name", PRIOR_NAMES)
def test_a_switch_of_the_prior_is_from_config(name):
    cls, options = PRIOR_NAMES[name]
    own = diffusers_scheduler({"beta_schedule": "squaredcos_cap_v2", **PRIOR})
    converted = cls.from_config(own.config, **options)
    switched = switch(PRIOR, name, configs.PRIOR)
    assert switched.pop("_class_name") == cls.__name__
    assert switched == {key: converted.config[key] for key in switched}


def test_a_switch_keeps_the_betas_that_the_prior_does_not_name():
    """diffusers takes DDIM's for a config that leaves `beta_schedule` out, with which no prior was trained."""
    assert "beta_schedule" not in PRIOR
    assert switch(PRIOR, "DDIM", configs.PRIOR)["beta_schedule"] == "squaredcos_cap_v2"


@pytest.mark.parametrize("steps", [2, 3, 5, 12, 25])
def test_switched_runs_of_the_prior(steps):
    assert_same_run(switch(PRIOR, "DDIM", configs.PRIOR), steps)
    assert_same_run(switch(PRIOR, "UnCLIP", configs.PRIOR), steps)


@pytest.mark.parametrize("name", ["DDIM", "DPM++"])
def test_switched_runs_of_the_prior_draw_nothing_and_begin_with_noise_alone(name):
    solved = solve(switch(PRIOR, name, configs.PRIOR), 5)
    assert not solved.noisy.any()
    assert solved.timesteps[0] == 999
    assert solved.scales[0, 0] < 1e-3


def test_a_switch_checks_the_config():
    with pytest.raises(InputError, match="option 'colour'"):
        switch(DECODER | {"colour": 1}, "DDIM")


# What a user gives as `scheduler`


DECODERS = (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler)


def assert_same_schedule(one, other, **options):
    first, second = solve(one, 9, **options), solve(other, 9, **options)
    for field in ("timesteps", "coefficients", "noisy", "scales"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert (first.thresholding, first.learned) == (second.thresholding, second.learned)


def stored_config(scheduler, folder):
    """The config as diffusers writes it to a file."""
    scheduler.save_pretrained(folder)
    return json.loads((folder / "scheduler_config.json").read_text())


@pytest.mark.parametrize("cls", DECODERS)
@pytest.mark.parametrize("options", [{}, {"beta_end": 0.012, "timestep_spacing": "trailing"}])
def test_a_scheduler_object_is_its_stored_config(cls, options, tmp_path):
    scheduler = cls(**options)
    assert "_class_name" not in scheduler.config
    assert_same_schedule(from_user(DECODER, scheduler), stored_config(scheduler, tmp_path))


@pytest.mark.parametrize("cls", DECODERS)
def test_a_scheduler_made_from_another_ones_config_is_its_stored_config(cls, tmp_path):
    """Its live config still has the options of the class that it was made from, and sometimes that class's name."""
    DDPMScheduler(**{k: v for k, v in DECODER.items() if k != "_class_name"}).save_pretrained(tmp_path / "ddpm")
    scheduler = cls.from_config(DDPMScheduler.from_pretrained(tmp_path / "ddpm").config)
    assert_same_schedule(from_user(DECODER, scheduler), stored_config(scheduler, tmp_path))


def test_a_config_that_diffusers_loaded_has_its_class(tmp_path):
    DDIMScheduler(**KANDINSKY).save_pretrained(tmp_path)
    config = DDIMScheduler.from_pretrained(tmp_path).config
    assert_same_schedule(from_user(DECODER, config), of_class("DDIMScheduler", **KANDINSKY), eta=0.5)


def test_betas_may_be_an_array_as_diffusers_takes_them(tmp_path):
    scheduler = DDIMScheduler(trained_betas=np.linspace(0.001, 0.03, 1000))
    assert_same_schedule(from_user(DECODER, scheduler), stored_config(scheduler, tmp_path))


class Renamed(DDIMScheduler):
    pass


class Stepping(DDIMScheduler):
    def step(self, *args, **kwargs):
        raise NotImplementedError


def test_a_subclass_is_what_it_inherits_unless_it_steps_in_its_own_way():
    assert from_user(DECODER, Renamed())["_class_name"] == "DDIMScheduler"
    with pytest.raises(InputError, match=r"^scheduler is of the class 'Stepping', which is not supported"):
        from_user(DECODER, Stepping())


def test_the_checkpoints_own_config_and_names():
    assert from_user(DECODER, None) is DECODER
    assert from_user(DECODER, "ddim") == switch(DECODER, "DDIM")
    with pytest.raises(InputError, match=r"DPM\+\+ Karras, not 'euler'"):
        from_user(DECODER, "euler")


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (3, "scheduler is 3; expected a name (DDPM, DDIM, DPM++ or DPM++ Karras), a config, or a scheduler object"),
        (["DDIM"], "scheduler is ['DDIM']; expected a name"),
        (object(), "scheduler is <object object at"),
        (DDIMScheduler, "scheduler is the class DDIMScheduler; pass an object of it"),
        (DDIMScheduler().config, "scheduler is a config without _class_name, so that its class is not known; pass"),
        ({}, "scheduler is a config without _class_name"),
        ({"_class_name": None}, "scheduler is of the class None, which is not supported"),
        ({"_class_name": ["DDIMScheduler"]}, "scheduler is of the class ['DDIMScheduler']"),
        ({"_class_name": "UnCLIPScheduler"}, "scheduler is a UnCLIPScheduler, which runs the prior alone; expected"),
        (UnCLIPScheduler(), "scheduler is a UnCLIPScheduler, which runs the prior alone; expected DDPMScheduler, DDIM"),
        (EulerDiscreteScheduler(), "scheduler is of the class 'EulerDiscreteScheduler', which is not supported"),
        ({"_class_name": "DDIMScheduler", 3: 4}, "scheduler is a config with the key 3; expected names of options"),
        ({"_class_name": "DDIMScheduler", "colour": 1}, "has an option 'colour'"),
        (DDPMScheduler(variance_type="learned"), "has variance_type 'learned'"),
        (10**5000, "scheduler is a value of type int; expected"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_refused_schedulers_of_users(scheduler, message):
    with pytest.raises(InputError) as raised:
        from_user(DECODER, scheduler)
    assert str(raised.value).startswith(message) or (message.startswith("has ") and message in str(raised.value))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
