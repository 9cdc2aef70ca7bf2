"""The graphs of forecasts: the step's own arithmetic, over a weighted sum of two outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from kandinsky22 import schedulers
from kandinsky22.backends import Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import FORECASTS
from kandinsky22.measure import inputs, timing
from kandinsky22_export.graphs.forecast import ControlnetForecast, DecoderForecast, InpaintForecast
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, UNetStep
from tests import tiny
from tests.reference_step import reference_step

SIZES = {"B": 3, "G": 2, "h": 4, "w": 6}
RANKS = 40
PAIRS: dict[str, tuple[Callable[[tiny.Parts], UNetStep], type[DecoderForecast] | type[InpaintForecast]]] = {
    "decoder": (lambda parts: DecoderStep(parts.unet, RANKS, hand_out_model=True), DecoderForecast),
    "controlnet": (lambda parts: ControlnetStep(parts.unet_controlnet, RANKS, hand_out_model=True), ControlnetForecast),
    "inpaint": (lambda parts: InpaintStep(parts.unet_inpaint, RANKS, hand_out_model=True), InpaintForecast),
}


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_of_a_step_s_own_output_it_makes_what_the_step_made(name: str, learned: bool) -> None:
    """To the bit, whichever of the two inputs holds it."""
    make, forecast = PAIRS[name]
    step = make(copy.deepcopy(tiny.parts(learned_variance=learned)))
    feeds = step.feeds(SIZES, seed=4)
    *expected, model = step(**feeds)
    graph = forecast(RANKS, 4, model.shape[1])
    own = {key: each for key, each in feeds.items() if key in {spec.name for spec in graph.inputs}}
    other = torch.randn(model.shape, generator=torch.Generator().manual_seed(5))
    for models, weights in (((model, other), [1.0, 0.0]), ((other, model), [0.0, 1.0])):
        kept = {"model_0": models[0], "model_1": models[1], "forecast_weights": torch.tensor(weights)}
        for ours, theirs in zip(graph(**own, **kept), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DDPMScheduler, {"thresholding": True, "sample_max_value": None}),
        (DDPMScheduler, {"clip_sample_range": 0.7}),
        (DDIMScheduler, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
        (DPMSolverMultistepScheduler, {}),
    ],
)
def test_it_is_a_step_in_float64_over_the_extrapolation(cls: type, options: dict[str, object], learned: bool) -> None:
    learned = learned and cls is DDPMScheduler
    config = {**cls(**tiny.DDPM, **options, **({"variance_type": "learned_range"} if learned else {})).config}
    schedule = schedulers.solve({**config, "_class_name": cls.__name__}, 7)
    channels = 8 if learned else 4
    graph = DecoderForecast(RANKS, 4, channels)
    draw = np.random.default_rng(0)
    latents, x0_before, noise = 2 * draw.standard_normal((3, 2, 4, 5, 6))
    models = draw.standard_normal((2, 2, channels, 5, 6)) * 0.5
    weights = np.array([-0.8, 1.8])
    output = weights[0] * models[0] + weights[1] * models[1]
    expected = reference_step(
        schedule.coefficients[3],
        schedule.thresholding,
        latents,
        output[:, :4],
        output[:, 4:] if learned else None,
        noise,
        x0_before,
    )
    ranks, rank_weight = schedule.thresholding.ranks(4 * 5 * 6)
    feeds = {
        "latents": latents,
        "x0_before": x0_before,
        "model_0": models[0],
        "model_1": models[1],
        "forecast_weights": weights,
        "noise": noise,
        "coefficients": schedule.coefficients[3].copy(),
        "thresholding": schedule.thresholding.array,
        "rank_weight": rank_weight,
    }
    tensors = {key: torch.from_numpy(np.asarray(each, np.float32)) for key, each in feeds.items()}
    for ours, theirs in zip(graph(**tensors, ranks=torch.from_numpy(ranks)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("decoder", "forecast"), FORECASTS.items())
def test_exported_it_makes_of_a_step_s_output_what_the_step_made(
    shapes_bundle: Path, decoder: str, forecast: str
) -> None:
    """To the bit, on ONNX Runtime; and it is exported with no weights."""
    bundle = Bundle(shapes_bundle)
    names = [bundle.manifest.name_of(role) for role in (decoder, forecast)]  # type: ignore[arg-type]
    step, graph = (CPU.load(bundle, name, Settings(threads=1)) for name in names)
    assert graph.component.parameters == 0
    assert len(graph.component.files) == 1
    size = timing.Size(64, 128, 2)
    feeds = inputs.feeds(bundle, names[0], timing.shapes(bundle, names[0], size), seed=1)
    given = step.run(feeds)
    kept = {"model_0": given["model"], "model_1": -given["model"], "forecast_weights": np.array([1, 0], np.float32)}
    own = {spec.name: {**feeds, **kept}[spec.name] for spec in graph.component.inputs}
    for name, array in graph.run(own).items():
        np.testing.assert_array_equal(array, given[name])
