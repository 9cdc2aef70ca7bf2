"""Inputs of a component like those of a real run: to compare backends with (`verify`), and to time them (`bench`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tokenizers

from kandinsky22 import schedulers
from kandinsky22.arrays import Array
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, Role, TensorSpec
from kandinsky22.sampling.guidance import guidance_weights

PRIOR_STEPS, DECODER_STEPS = 25, 50
"""The steps of the run whose middle one is made."""

PICTURES = ("image", "hint")
"""Inputs that are pictures: numbers from 0 to 1."""

GUIDANCE = 4.0


def feeds(bundle: Bundle, name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Inputs of a component like those of a real run, the same for the same seed."""
    draw = np.random.default_rng(seed)
    component = bundle.component(name)
    given = {} if component.scheduler is None else _step_feeds(bundle, component, component.scheduler, shapes)
    return {
        spec.name: given.get(spec.name, _random(bundle, spec, shapes[spec.name], draw)) for spec in component.inputs
    }


def _step_feeds(
    bundle: Bundle, component: Component, scheduler: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """What a scheduler and guidance give, in the middle of a run."""
    steps = PRIOR_STEPS if component.role is Role.PRIOR else DECODER_STEPS
    schedule = schedulers.solve(bundle.manifest.schedulers[scheduler], steps)
    middle = steps // 2
    ranks, rank_weight = schedule.thresholding.ranks(int(np.prod(shapes["latents"][1:])))
    return {
        "timestep": schedule.timesteps[middle : middle + 1].astype(np.float32),
        "coefficients": schedule.coefficients[middle],
        "thresholding": schedule.thresholding.array,
        "ranks": ranks,
        "rank_weight": rank_weight,
        "guidance": guidance_weights(GUIDANCE if shapes.get("guidance") == (2,) else 1.0),
        "forecast_weights": np.array([1.5, -0.5], np.float32),  # half as far again as the two outputs are apart
        "known_scales": np.array([0.8, 0.6], np.float32),  # signal and noise, of which the squares make 1
    }


def _random(bundle: Bundle, spec: TensorSpec, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    """Gaussian numbers; pictures of noise; a mask of pixels, 0 or 1; tokens that end with the vocabulary's last, the
    end token in CLIP; a mask of as many words."""
    if spec.name in PICTURES:
        return draw.random(shape, np.float32)
    if spec.name == "mask":
        return draw.integers(0, 2, shape).astype(np.float32)
    if spec.dtype == "float32":
        return draw.standard_normal(shape).astype(np.float32)
    words = np.arange(shape[-1]) < draw.integers(1, shape[-1], (*shape[:-1], 1))
    if spec.dtype == "bool":
        return words
    last = tokenizers.Tokenizer.from_buffer(bundle.tokenizer()).get_vocab_size() - 1
    return np.where(words, draw.integers(0, last, shape), last)
