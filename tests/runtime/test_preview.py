"""Previews of latents: the arithmetic, how near they are to MoVQ's pictures, what they cost, what is refused."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import BundleError, InputError, Pipeline
from kandinsky22.arrays import Array, Floats
from kandinsky22.bundle import constants
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.constants import ConstantsError
from kandinsky22.sampling.preview import LatentsToRgb

WEIGHT = np.array([[0.5, 0, 0.25], [0, 0.125, 0], [0, 0, -0.5], [1, 1, 1]], np.float32)
BIAS = np.array([0.5, 0.25, 0], np.float32)
MAP = LatentsToRgb(WEIGHT, BIAS, largest=512)


@pytest.fixture
def pipe(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """A pipeline whose bundle has a map."""
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1) as loaded:
        constants = {**loaded.bundle.constants(), "preview_weight": WEIGHT, "preview_bias": BIAS}
        monkeypatch.setattr(loaded.bundle, "constants", lambda: constants)
        yield loaded


def test_a_pixel_is_a_latent_times_the_weight_and_the_bias(pipe: Pipeline) -> None:
    latents = np.random.default_rng(0).normal(0, 1, (2, 4, 5, 3)).astype(np.float32)
    pictures = pipe.preview(latents)
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (3, 5))] * 2
    clipped = 0
    for n, y, x, colour in itertools.product(range(2), range(5), range(3), range(3)):
        value = sum(float(latents[n, c, y, x]) * float(WEIGHT[c, colour]) for c in range(4)) + float(BIAS[colour])
        clipped += not 0 <= value <= 1
        assert pictures[n].getpixel((x, y))[colour] == round(min(max(value, 0.0), 1.0) * 255)  # type: ignore[index]
    assert 20 < clipped < 100


def test_a_preview_needs_no_component(pipe: Pipeline) -> None:
    pipe.preview(np.zeros((1, 4, 2, 2), np.float32))
    assert not pipe._components.loaded


def test_the_largest_latents_are_clipped_as_any_others() -> None:
    """In float32 their products would be infinities of both signs, whose sum is no number."""
    weight = np.array([[4, 3, -4], [-3, -4, 3]], np.float32)
    colours = LatentsToRgb(weight, np.zeros(3, np.float32), largest=512)
    (picture,) = colours.pictures(np.full((1, 2, 1, 1), np.finfo(np.float32).max))
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_a_size_is_width_and_height(pipe: Pipeline) -> None:
    latents = np.zeros((1, 4, 2, 3), np.float32)
    latents[0, 1, :, 2] = 4  # the right column is greener
    (picture,) = pipe.preview(latents, (30, 20))
    assert picture.size == (30, 20)
    (large, small) = (np.asarray(each)[..., 1].astype(int) for each in (picture, *pipe.preview(latents)))
    assert small[0, 0] == 64
    assert small[0, 2] == 191
    np.testing.assert_allclose(large[:, [5, 15, 25]], np.repeat(small[:1], 20, axis=0), atol=20)  # middles of pixels


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((4, 8, 8), np.float32), r"^latents have shape \(4, 8, 8\); expected \(n, 4, h, w\)"),
        (np.zeros((1, 3, 8, 8), np.float32), r"^latents have shape \(1, 3, 8, 8\); expected \(n, 4, h, w\)"),
        (np.zeros((1, 4, 0, 8), np.float32), r"^latents have shape \(1, 4, 0, 8\)"),
        (np.zeros((1, 4, 8, 8), np.int64), r"^latents has shape .* and type int64; expected floats \(n, 4, h, w\)"),
        (np.full((1, 4, 8, 8), np.nan), "^latents has values that are not finite"),
        (np.full((1, 4, 8, 8), 1e300), "^latents has values that are not finite"),
        ("circle.png", "^latents .*expected floats"),
        (None, "^latents .*expected floats"),
        ([[1.0], [1.0, 2.0]], "^latents .*expected floats"),
    ],
)
def test_what_is_no_latents_is_refused(pipe: Pipeline, latents: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.preview(latents)


@pytest.mark.parametrize("size", [512, (512,), (0, 8), (8, 513), (8.0, 8), (True, 8), "88"])
def test_what_is_no_size_is_refused(pipe: Pipeline, size: Any) -> None:
    with pytest.raises(InputError, match=r"in size is .*; expected a whole number from 1 to 512|^size is "):
        pipe.preview(np.zeros((1, 4, 2, 2), np.float32), size)


def test_a_bundle_without_the_map_runs_and_says_how_to_get_one(handmade_bundle: Bundle) -> None:
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1) as old:
        steps = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
        latents = np.asarray(old("a circle", output_type="latent", **steps).images)
        with pytest.raises(BundleError, match=r"has no map from latents .*export it again: kandinsky22-export "):
            old.preview(latents)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preview_weight", WEIGHT[:3]),
        ("preview_weight", WEIGHT.astype(np.float64)),
        ("preview_bias", BIAS[None]),
        ("preview_bias", np.array(["a"] * 3)),
    ],
)
def test_a_map_of_another_shape_is_refused(pipe: Pipeline, name: str, values: Array) -> None:
    stream = io.BytesIO()
    np.savez(stream, **{**pipe.bundle.constants(), name: values})
    with pytest.raises(ConstantsError, match=name):
        constants.read(stream.getvalue(), pipe.bundle.manifest)


@dataclass(frozen=True)
class Sampled:
    """A run of the trained decoder: x0 of every step, the last latents, and its pictures averaged to latent pixels."""

    pipe: Pipeline
    x0: list[Floats]
    latents: Floats
    averaged: Floats
    step_seconds: float


@pytest.fixture(scope="module")
def sampled(shapes_bundle: Path) -> Iterator[Sampled]:
    prompts = ["a large red circle in the middle of a blue background", "a large yellow ring on a purple background"]
    tensors: list[dict[str, Array]] = []
    steps = {"num_inference_steps": 12, "prior_num_inference_steps": 4}
    with Pipeline.load(shapes_bundle, "onnxruntime", threads=1) as pipe:
        out = pipe(
            prompts,
            seed=0,
            output_type="np",
            callback_on_step_end=lambda _, step, timestep, given: tensors.append(
                {name: values.copy() for name, values in given.items()}
            ),
            **steps,  # type: ignore[arg-type]
        )
        images = np.asarray(out.images)
        n, height, width, _ = images.shape
        averaged = images.reshape(n, height // 8, 8, width // 8, 8, 3).mean((2, 4))
        seconds = out.timings["decoder_step"] / len(tensors)
        yield Sampled(pipe, [each["x0"] for each in tensors], tensors[-1]["latents"], averaged, seconds)


def psnr(one: Array, other: Array) -> float:
    """In decibels, of values in 0..1."""
    return float(-10 * np.log10(np.mean((one.astype(np.float64) - other) ** 2)))


def shown(colours: LatentsToRgb, latents: Floats) -> Array:
    return np.stack([np.asarray(picture) / 255 for picture in colours.pictures(latents)])


def test_a_preview_is_near_the_picture(sampled: Sampled) -> None:
    colours = sampled.pipe._latents_to_rgb
    previews = shown(colours, sampled.latents)
    for preview, picture in zip(previews, sampled.averaged, strict=True):
        assert psnr(preview, picture) > psnr(picture.mean((0, 1)), picture) + 5
        assert np.corrcoef(preview.ravel(), picture.ravel())[0, 1] > 0.9
    for order in itertools.permutations(range(4)):
        other = replace(colours, weight=colours.weight[list(order)])
        if order != (0, 1, 2, 3):
            assert psnr(previews, sampled.averaged) > psnr(shown(other, sampled.latents), sampled.averaged) + 2


def test_previews_of_x0_come_nearer_to_the_picture(sampled: Sampled) -> None:
    colours = sampled.pipe._latents_to_rgb
    found = [psnr(shown(colours, sampled.x0[step]), sampled.averaged) for step in (0, 4, 8, -1)]
    assert found == sorted(found)
    assert found[-1] > found[0] + 4


def test_a_preview_takes_a_fraction_of_a_step(sampled: Sampled) -> None:
    """Of latents that are 16 times as many as those of the step."""
    latents = np.zeros((2, 4, 64, 64), np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert len(sampled.pipe.preview(latents)) == 2
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < sampled.step_seconds / 2


def test_the_map_comes_with_the_bundle(shapes_bundle: Path) -> None:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        (picture,) = pipe.preview(np.zeros((1, 4, 3, 2), np.float32))
    assert isinstance(picture, PIL.Image.Image)
    assert picture.size == (2, 3)
