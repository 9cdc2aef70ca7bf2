"""The settings that the frontier judges: whose networks paint, in which precision, with which parameters of a request.

A further lever is one more value of a request's parameters in the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky22.cli.flags import FLAGS
from kandinsky22.request.parameters import PARAMETERS
from kandinsky22.request.presets import PRESETS
from kandinsky22.request.request import Request, as_json

TASK = "text2img"
DIFFUSERS, FLOAT, INT8 = "diffusers", "float", "int8"
SUBJECTS = (DIFFUSERS, FLOAT, INT8)
"""Who paints: diffusers, our bundle in what "auto" takes for it, and our bundle in int8."""
SAMPLERS = {None: "DDPM", "ddim": "DDIM", "dpm++": "DPM++", "dpm++-karras": "DPM++ Karras"}
"""Samplers by the schedulers of the table; the checkpoints' own is DDPM."""
PRIOR_SAMPLERS = {None: "UnCLIP", "ddim": "DDIM", "dpm++": "DPM++"}
"""The same of the prior."""
_NAMED = (
    "scheduler",
    "num_inference_steps",
    "guidance_interval",
    "skip",
    "prior_scheduler",
    "prior_num_inference_steps",
)
"""Parameters that a setting's name says in words."""


@dataclass(frozen=True)
class Setting:
    """Who paints, and the parameters that differ from their defaults, as JSON has them. Make one with `Setting.of`."""

    subject: str
    given: Mapping[str, Any]

    @classmethod
    def of(cls, subject: str, **given: Any) -> Setting:
        """A setting of some parameters of a request. Raises InputError where they cannot be."""
        request, usual = Request.of(TASK, **given), Request.of(TASK).parameters
        changed = {name: value for name, value in request.given.items() if value != usual[name]}  # type: ignore[literal-required]
        return cls(subject, as_json(changed))

    @property
    def request(self) -> Request:
        """One picture of a prompt."""
        return Request.of(TASK, prompt="", **self.given)

    @property
    def words(self) -> str:
        """The parameters for readers."""
        asked = self.request.parameters
        sampler = asked["scheduler"]
        name = SAMPLERS[sampler] if sampler is None or isinstance(sampler, str) else "own sampler"
        words = [f"{name} {asked['num_inference_steps']}"]
        if "guidance_interval" in self.given:
            words.append("guided {:g} to {:g}".format(*asked["guidance_interval"]))
        if "skip" in self.given:
            words.append(asked["skip"])
        if {"prior_scheduler", "prior_num_inference_steps"} & self.given.keys():
            own = PRIOR_SAMPLERS[asked["prior_scheduler"]]  # type: ignore[index]
            words.append(f"prior {own} {asked['prior_num_inference_steps']}")
        words += [f"{FLAGS.get(name, name)} {value}" for name, value in self.given.items() if name not in _NAMED]
        return ", ".join(words)

    @property
    def name(self) -> str:
        """Who paints, and the parameters: no two settings have the same."""
        return f"{self.subject}: {self.words}"

    @property
    def adds_noise(self) -> bool:
        """Whether the sampler draws noise at each step, so that it comes to another picture than one without."""
        asked = self.request.parameters
        return asked["scheduler"] is None or asked["eta"] > 0

    def as_json(self) -> dict[str, Any]:
        """The setting in a report."""
        return {"subject": self.subject, "given": dict(self.given)}


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the prior, and the others."""
    prior = {name: value for name, value in given.items() if PARAMETERS[name].part == "prior"}
    return prior, {name: value for name, value in given.items() if name not in prior}


def picture_settings(setting: Setting) -> dict[str, Any]:
    """A setting of ours as `benchmarks.picture` takes it; how the machine is used is not in it."""
    given, usual = dict(setting.given), Request.of(TASK).parameters
    return {
        "steps": given.pop("num_inference_steps", usual["num_inference_steps"]),
        "prior_steps": given.pop("prior_num_inference_steps", usual["prior_num_inference_steps"]),
        "scheduler": given.pop("scheduler", None),
        "precision": INT8 if setting.subject == INT8 else "auto",
        "given": given,
    }


def presets_of(setting: Setting) -> list[str]:
    """The presets that set what a setting of ours has."""
    ours = setting.subject != DIFFUSERS
    return [name for name, values in PRESETS.items() if ours and Setting.of(setting.subject, **values) == setting]


REFERENCE = Setting.of(DIFFUSERS)
"""What all are compared with: diffusers with the default's 50 steps of DDPM."""


def _steps(scheduler: str | None, steps: int, **more: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "num_inference_steps": steps, **more}


_HALF = {"guidance_interval": (0.0, 0.5)}
_SIX = {"prior_scheduler": "dpm++", "prior_num_inference_steps": 6}
_FOUR = {"prior_scheduler": "ddim", "prior_num_inference_steps": 4}
_OF_FLOAT = (
    _steps("ddim", 50),
    _steps("ddim", 25),
    _steps("dpm++", 20),
    _steps("ddim", 50, skip="forecast:2"),
    _steps("ddim", 20, skip="forecast:2"),
    _steps(None, 50, skip="forecast:2"),
    _steps("ddim", 50, skip="shallow:2"),
    _steps(None, 50, skip="shallow:3"),
    _steps("ddim", 20, skip="shallow:2"),
    _steps(None, 50, prior_num_inference_steps=12),
    _steps(None, 50, **_SIX),
)
_OF_BOTH = (
    *PRESETS.values(),
    *(_steps("dpm++-karras", steps) for steps in (20, 15)),
    _steps("dpm++-karras", 15, **_HALF),
    *(_steps("dpm++-karras", steps, **_SIX) for steps in (20, 15, 12, 10)),
    *(_steps("dpm++-karras", steps, **_SIX, **_HALF) for steps in (20, 15, 12)),
    *(_steps("dpm++-karras", steps, **_FOUR, **_HALF) for steps in (12, 10, 8, 6)),
    _steps("dpm++-karras", 12, **_FOUR, guidance_interval=(0.0, 0.25)),
    _steps("ddim", 50, **_SIX, skip="forecast:3"),
    _steps("ddim", 50, skip="shallow:3"),
)


def _distinct(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    return tuple(setting for place, setting in enumerate(settings) if setting not in settings[:place])


SETTINGS = _distinct(
    (
        REFERENCE,
        Setting.of(DIFFUSERS, scheduler="dpm++-karras", num_inference_steps=20),
        *(Setting.of(FLOAT, **given) for given in _OF_FLOAT),
        *(Setting.of(subject, **given) for given in _OF_BOTH for subject in (FLOAT, INT8)),
    )
)
"""All that is judged. diffusers has one of its own best settings beside the reference; parameters that may become a
preset are judged in both precisions."""
QUICK = tuple(setting for setting in SETTINGS if setting.subject == DIFFUSERS or presets_of(setting))
"""Few of them: those of diffusers, and the presets."""
