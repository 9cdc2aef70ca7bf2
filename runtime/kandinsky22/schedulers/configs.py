"""The configs of diffusers' schedulers (`scheduler_config.json`): checked, chosen, and one turned into another."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np

from kandinsky22.errors import InputError, shown

Config = Mapping[str, Any]

LARGEST = float(np.finfo(np.float32).max)
"""No number of a config is larger, and none bounds more."""

STEPS = "num_inference_steps"
"""What users call the number of steps."""


@dataclass(frozen=True)
class SchedulerOptions:
    """A scheduler's config, checked. Options that its class does not have keep values that change nothing."""

    num_train_timesteps: int
    beta_schedule: str
    variance_type: str = "fixed_small"
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    trained_betas: tuple[float, ...] | None = None
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float | None = None
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    use_karras_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_exponential_sigmas: bool = False


_Check = Callable[[Any], str | None]  # says what was expected, where the value is not it


def _one_of(*names: str) -> _Check:
    return lambda value: None if isinstance(value, str) and value in names else "one of " + ", ".join(names)


def _whole(least: int) -> _Check:
    most = 10**6  # keeps a damaged config from asking for all memory
    good = range(least, most + 1)
    return lambda value: None if type(value) is int and value in good else f"a whole number from {least} to {most}"


def _one_of_numbers(*numbers: int) -> _Check:
    return lambda value: None if type(value) is int and value in numbers else " or ".join(map(str, numbers))


def _number(expected: str, good: Callable[[float], bool]) -> _Check:
    return lambda value: None if _is_number(value) and good(value) else expected


def _or_null(check: _Check) -> _Check:
    def checked(value: Any) -> str | None:
        unmet = None if value is None else check(value)
        return unmet and f"null or {unmet}"

    return checked


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _off(value: Any) -> str | None:
    return None if value is False else "false"


def _lower_bound(value: Any) -> str | None:
    return None if value == -math.inf or _is_number(value) else "a number, or minus infinity"


def _numbers(value: Any) -> str | None:
    good = isinstance(value, list | tuple) and all(map(_is_number, value))
    return None if good else "a list of numbers"


def _variance(value: Any) -> str | None:
    """DDPM's variance types that can work; two of diffusers' cannot."""
    unmet = _one_of("fixed_small", "fixed_small_log", "fixed_large", "learned_range")(value)
    if value == "fixed_large_log":
        return f"{unmet} (diffusers' pictures are NaN with this one: it takes the root of a negative logarithm)"
    if value == "learned":
        return f"{unmet} (diffusers takes the root of the network's raw output for this one: NaN where negative)"
    return unmet


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


_POSITIVE = _number("a number above 0", lambda v: v > 0)
_BETA = _number("a number between 0 and 1", lambda v: 0 < v < 1)

# Every option of a class: diffusers' default, and what it may be.
_SHARED: dict[str, tuple[Any, _Check]] = {
    "num_train_timesteps": (1000, _whole(1)),
    "beta_start": (0.0001, _BETA),
    "beta_end": (0.02, _BETA),
    "trained_betas": (None, _or_null(_numbers)),
    "clip_sample": (True, _flag),
    "clip_sample_range": (1.0, _POSITIVE),
    "prediction_type": ("epsilon", _one_of("epsilon", "sample", "v_prediction")),
    "thresholding": (False, _flag),
    "dynamic_thresholding_ratio": (0.995, _number("a number from 0 to 1", lambda v: 0 <= v <= 1)),
    "sample_max_value": (1.0, _or_null(_POSITIVE)),
    "timestep_spacing": ("leading", _one_of("leading", "linspace", "trailing")),
    "steps_offset": (0, _whole(0)),
    "rescale_betas_zero_snr": (False, _flag),
}
CLASSES: dict[str, dict[str, tuple[Any, _Check]]] = {
    "DDPMScheduler": {
        **_SHARED,
        "beta_schedule": ("linear", _one_of("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")),
        "variance_type": ("fixed_small", _variance),
    },
    "DDIMScheduler": {
        **_SHARED,
        "beta_schedule": ("linear", _one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
        "set_alpha_to_one": (True, _flag),
    },
    "DPMSolverMultistepScheduler": {
        **{key: rule for key, rule in _SHARED.items() if key not in ("clip_sample", "clip_sample_range")},
        "beta_schedule": ("linear", _one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
        "timestep_spacing": ("linspace", _one_of("leading", "linspace", "trailing")),
        "solver_order": (2, _one_of_numbers(1, 2)),
        "algorithm_type": ("dpmsolver++", _one_of("dpmsolver++", "sde-dpmsolver++")),
        "solver_type": ("midpoint", _one_of("midpoint", "heun")),
        "lower_order_final": (True, _flag),
        "euler_at_final": (False, _flag),
        "final_sigmas_type": ("zero", _one_of("zero", "sigma_min")),
        "lambda_min_clipped": (-math.inf, _lower_bound),
        "use_karras_sigmas": (False, _or_null(_flag)),
        "use_lu_lambdas": (False, _or_null(_flag)),
        "use_exponential_sigmas": (False, _or_null(_flag)),
        **{key: (False, _or_null(_off)) for key in ("use_beta_sigmas", "use_flow_sigmas", "use_dynamic_shifting")},
    },
    "UnCLIPScheduler": {
        "num_train_timesteps": (1000, _whole(1)),
        "variance_type": ("fixed_small_log", _one_of("fixed_small_log", "learned_range")),
        "clip_sample": (True, _flag),
        "clip_sample_range": (1.0, _POSITIVE),
        "prediction_type": ("epsilon", _one_of("epsilon", "sample")),
        "beta_schedule": ("squaredcos_cap_v2", _one_of("squaredcos_cap_v2")),
    },
}

# diffusers writes these and other schedulers' options into a config that was converted, and ignores them.
FOREIGN = frozenset(
    {
        "algorithm_type",
        "clip_sample",
        "clip_sample_range",
        "disable_corrector",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "predict_x0",
        "rho",
        "set_alpha_to_one",
        "shift_terminal",
        "sigma_data",
        "sigma_max",
        "sigma_min",
        "sigma_schedule",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "time_shift_type",
        "timestep_type",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)


@dataclass(frozen=True)
class Choices:
    """What a user may give as one `parameter`: classes and options by `names` in small letters, told as `said`."""

    parameter: str
    said: tuple[str, ...]
    names: Mapping[str, tuple[str, Config]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of schedulers that can run it."""
        return tuple(dict.fromkeys(known for known, _ in self.names.values()))


DECODER = Choices(
    "scheduler",
    ("DDPM", "DDIM", "DPM++", "DPM++ Karras"),
    {
        "ddpm": ("DDPMScheduler", {}),
        "ddim": ("DDIMScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", {}),
        "dpm++karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "dpmsolvermultistep": ("DPMSolverMultistepScheduler", {}),
    },
)
"""Schedulers of a decoder."""
PRIOR = Choices(
    "prior_scheduler",
    ("UnCLIP", "DDIM", "DPM++"),
    {
        "unclip": ("UnCLIPScheduler", {}),
        # From noise alone on, as UnCLIP. A clipped x0 beside the noise of one that is not leads astray.
        "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
        "dpm++": ("DPMSolverMultistepScheduler", {}),
        "dpmsolvermultistep": ("DPMSolverMultistepScheduler", {}),
    },
)
"""Schedulers of the prior."""
CHOICES = {each.parameter: each for each in (DECODER, PRIOR)}


def from_user(own: Config, scheduler: object, choices: Choices = DECODER) -> Config:
    """The config of the scheduler that a user asks for.

    Args:
        own: The checkpoint's config.
        scheduler: None (the checkpoint's), a name that `switch` knows, a config with its `_class_name`, or a scheduler
            object of diffusers, whose `config` is taken. Arrays in a config are taken as lists.
        choices: What may be asked for.

    Returns:
        A config with its `_class_name`, whose options have been checked.

    Raises:
        InputError: It is nothing of these, a class that is not among `choices`, or has an option that is not supported.
    """
    if scheduler is None:
        return own
    if isinstance(scheduler, str):
        return switch(own, scheduler, choices)
    config = given(scheduler, choices)
    name, known = config["_class_name"], choices.classes
    if name == "UnCLIPScheduler" and name not in known:
        raise InputError(f"scheduler is a UnCLIPScheduler, which runs the prior alone; expected {_either(known)}.")
    if name not in known:
        raise InputError(
            f"{choices.parameter} is of the class {shown(name)}, which is not supported; expected {_either(known)}."
        )
    read(name, config)
    return config


def given(scheduler: object, choices: Choices = DECODER) -> dict[str, Any]:
    """The config that a user gave, alone or in a scheduler object, with its `_class_name`, which may be any."""
    about, names = choices.parameter, choices.said
    if isinstance(scheduler, Mapping):
        config = _plain(scheduler, about)
        if "_class_name" not in config:
            raise InputError(
                f"{about} is a config without _class_name, so that its class is not known; pass the scheduler object "
                'itself, or dict(config, _class_name="DDIMScheduler").'
            )
        return config
    if isinstance(scheduler, type):
        raise InputError(
            f"{about} is the class {scheduler.__name__}; pass an object of it, or the name of one of "
            f"{_either(names, 'and')}."
        )
    options = getattr(scheduler, "config", None)
    if not isinstance(options, Mapping):
        raise InputError(
            f"{about} is {shown(scheduler)}; expected a name ({_either(names)}), a config, or a scheduler object of "
            "diffusers."
        )
    return {**_plain(options, about), "_class_name": _class_of(scheduler)}


def _class_of(scheduler: object) -> str:
    """The class of CLASSES that an object is of or inherits; its own class's name where that is none.

    A class that steps in a way of its own is not what it inherits: its methods are not run here.
    """
    for base in type(scheduler).__mro__:
        if base.__name__ in CLASSES:
            return base.__name__
        if vars(base).keys() & {"step", "set_timesteps"}:
            break
    return type(scheduler).__name__


def _plain(config: Mapping[Any, Any], about: str) -> dict[str, Any]:
    """A config with NumPy's arrays and numbers as Python's, as they are when diffusers stores it."""
    strange = [key for key in config if not isinstance(key, str)]
    if strange:
        raise InputError(f"{about} is a config with the key {shown(strange[0])}; expected names of options as keys.")
    return {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for key, value in config.items()
    }


def _either(names: Sequence[str], word: str = "or") -> str:
    return f"{', '.join(names[:-1])} {word} {names[-1]}"


def switch(config: Config, name: str, choices: Choices = DECODER) -> dict[str, Any]:
    """Make the config that `OtherScheduler.from_config(scheduler.config)` works with in diffusers.

    What both classes have is kept, what only the old one has is dropped, and what only the new one has gets its
    default, unless diffusers stored it in the config from an earlier conversion. A UnCLIP config keeps its defaults,
    too: diffusers gives a config that does not name `beta_schedule` the new class's, with which no prior was trained.

    Args:
        config: A config with its `_class_name`, which is among `choices`.
        name: One of `choices`, in any case, with or without "Scheduler", spaces and hyphens. "DPM++" is diffusers'
            "DPMSolverMultistep", "DPM++ Karras" the same with `use_karras_sigmas`.
        choices: What may be asked for.

    Returns:
        Every option of the new class, and its `_class_name`.

    Raises:
        InputError: The name or the config is not supported.
    """
    letters = re.sub("[ -]", "", name.lower()).removesuffix("scheduler") if isinstance(name, str) else None
    if letters not in choices.names:
        raise InputError(f"The {choices.parameter} must be {_either(choices.said)}, not {shown(name)}.")
    wanted, chosen = choices.names[letters]
    current = class_name(config)
    if current not in choices.classes:
        raise InputError(f"A {current} config cannot be switched to {wanted}: they share no options.")
    read(current, config)
    if current == "UnCLIPScheduler":
        config = {key: default for key, (default, _) in CLASSES[current].items()} | dict(config)
    options = {key: default for key, (default, _) in CLASSES[wanted].items()}
    kept = {key: value for key, value in config.items() if key in options}
    return {"_class_name": wanted, **options, **kept, **chosen}


def read(name: str, config: Config) -> SchedulerOptions:
    """Check a config against the options of diffusers' class `name` and fill in that class's defaults.

    Raises InputError for a value that cannot be, and for an option that the class does not have.
    """
    options = CLASSES[name]
    ignored = set() if name == "UnCLIPScheduler" else FOREIGN
    for key, value in config.items():
        if key in options:
            unmet = options[key][1](value)
            if unmet:
                raise InputError(f"The {name} config has {key} {shown(value)}, but it must be {unmet}.")
        elif not (isinstance(key, str) and key.startswith("_")) and key not in ignored:
            raise InputError(f"The {name} config has an option {shown(key)} that {name} does not have: remove it.")
    values = {key: config.get(key, default) for key, (default, _) in options.items()}
    betas = values.get("trained_betas")
    if betas is not None and len(betas) < values["num_train_timesteps"]:
        raise InputError(
            f"The {name} config has {len(betas)} trained_betas, fewer than its {values['num_train_timesteps']} "
            "num_train_timesteps."
        )
    if values.get("use_karras_sigmas") and values.get("use_exponential_sigmas"):
        raise InputError(f"The {name} config has use_karras_sigmas and use_exponential_sigmas; expected one of them.")
    return SchedulerOptions(
        **{key: value for key, value in values.items() if key in SchedulerOptions.__dataclass_fields__}
    )


def class_name(config: Config) -> str:
    """diffusers' name of the class that a config is for. Raises InputError where it is none of `CLASSES`."""
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in CLASSES:
        raise InputError(
            f"The scheduler {shown(name)} is not supported: the config's _class_name must be one of "
            f"{', '.join(CLASSES)}."
        )
    return name


def checked_steps(steps: SupportsIndex, options: SchedulerOptions, least: int = 1, *, name: str = STEPS) -> int:
    """`steps` as an int. Raises InputError, about `name`, where it is not from `least` to the timesteps of training."""
    try:
        count = None if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        count = None
    if count is None or not least <= count <= options.num_train_timesteps:
        raise InputError(
            f"{name} is {shown(steps)}; expected a whole number from {least} to {options.num_train_timesteps}."
        )
    return count


def checked_eta(eta: float) -> float:
    """`eta`, DDIM's share of fresh noise, as a float. Raises InputError where it is no number from 0 to 1."""
    if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
        raise InputError(f"eta is {shown(eta)}; expected a number from 0 to 1.")
    return float(eta)
