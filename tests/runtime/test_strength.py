"""Where runs from a picture begin, against diffusers: which steps are left, and how much noise is added."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.kandinsky2_2 import KandinskyV22Img2ImgPipeline

from kandinsky22 import schedulers
from kandinsky22.errors import InputError

KANDINSKY = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
CONFIGS: dict[str, dict[str, Any]] = {
    "DDPM": {"_class_name": "DDPMScheduler", **KANDINSKY, "variance_type": "learned_range"},
    "DDIM": {"_class_name": "DDIMScheduler", **KANDINSKY, "steps_offset": 1},
    "zero SNR": {
        "_class_name": "DDIMScheduler",
        **KANDINSKY,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "UnCLIP": {"_class_name": "UnCLIPScheduler", "prediction_type": "sample"},
    "DPM++": {"_class_name": "DPMSolverMultistepScheduler", **KANDINSKY},
    "DPM++ Karras": {"_class_name": "DPMSolverMultistepScheduler", **KANDINSKY, "use_karras_sigmas": True},
}


def diffusers_scheduler(config: dict[str, Any], steps: int) -> Any:
    made = getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if not k.startswith("_")})
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [10, 25])
def test_scales_are_those_of_add_noise(name: str, steps: int) -> None:
    schedule = schedulers.solve(CONFIGS[name], steps)
    theirs = diffusers_scheduler(CONFIGS[name], steps)
    rng = np.random.default_rng(0)
    picture, noise = rng.standard_normal((2, len(schedule.timesteps), 5)).astype(np.float32)
    ours = schedule.scales[:, :1] * picture + schedule.scales[:, 1:] * noise
    expected = theirs.add_noise(
        torch.from_numpy(picture), torch.from_numpy(noise), torch.from_numpy(schedule.timesteps.copy())
    )
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-6)
    assert schedule.scales.dtype == np.float32


@pytest.mark.parametrize("steps", [1, 7, 10, 50, 100])
@pytest.mark.parametrize("strength", [0.02, 0.1, 0.29, 0.3, 0.57, 0.58, 0.999, 1.0])
def test_the_steps_that_are_left_are_those_of_diffusers(steps: int, strength: float) -> None:
    theirs = SimpleNamespace(scheduler=diffusers_scheduler(CONFIGS["DDPM"], steps))
    expected, _ = KandinskyV22Img2ImgPipeline.get_timesteps(theirs, steps, strength, "cpu")
    schedule = schedulers.solve(CONFIGS["DDPM"], steps)
    if not len(expected):  # diffusers fails later, over a tensor without elements
        with pytest.raises(InputError, match=f"strength {strength:g} leaves none of {steps} steps"):
            schedule.last_part(strength)
        return
    part = schedule.last_part(strength)
    np.testing.assert_array_equal(part.timesteps, expected)
    count = len(part.timesteps)
    np.testing.assert_array_equal(part.coefficients, schedule.coefficients[-count:])
    np.testing.assert_array_equal(part.scales, schedule.scales[-count:])
    np.testing.assert_array_equal(part.noisy, schedule.noisy[-count:])


def test_a_refusal_of_strength_names_the_argument_that_the_user_gave() -> None:
    schedule = schedulers.solve(CONFIGS["UnCLIP"], 4)
    with pytest.raises(InputError, match=r"^prior_strength 0\.2 leaves none of 4 steps; .* larger prior_strength\.$"):
        schedule.last_part(0.2, name="prior_strength")
