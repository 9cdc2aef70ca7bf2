"""Comparing two sides: what `Pipeline` makes when it is called by hand, measured by scikit-image and transformers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from kandinsky22 import InputError, Pipeline, Request
from kandinsky22.components import Components, Run
from kandinsky22.errors import BackendError, BundleError, MemoryLimitError
from kandinsky22.measure import compare
from kandinsky22.measure.compare import Case, Comparison, Pair, Side

from .handmade import GRAPHS, IMAGE_ENCODER, MORE_GRAPHS, write_bundle

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "prior_num_inference_steps": 3}
CASES = [Case("a red circle", 3), Case("blue star", 9), Case("", 4)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "seeing", {**GRAPHS, "image_encoder": IMAGE_ENCODER})


@pytest.fixture
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as loaded:
        yield loaded


def side(pipe: Pipeline, **changes: Any) -> Side:
    return Side(pipe, Request.of("text2img", **{**SMALL, **changes}))


def test_pairs_are_what_the_pipeline_makes_by_hand(pipe: Pipeline) -> None:
    shelf, told = compare.InMemory(), []
    first, second = side(pipe), side(pipe, num_inference_steps=2, scheduler="DPM++", guidance_scale=2.0)
    found = compare.compare(first, second, CASES, shelf, lambda: told.append(1))
    assert len(told) == compare.steps(first, second, CASES) == 3 * (3 + 4 + 3 + 2)
    assert not found.without_cosine
    for place, (pair, case) in enumerate(zip(found.pairs, CASES, strict=True)):
        settings = (SMALL, {**SMALL, "num_inference_steps": 2, "scheduler": "DPM++", "guidance_scale": 2.0})
        ours = [pipe(case.prompt, seed=case.seed, **each).images[0] for each in settings]
        for which, picture in enumerate(ours):
            np.testing.assert_array_equal(shelf.picture(compare.SIDES[which], place), picture)
        pixels = [np.asarray(picture) for picture in ours]
        assert pair.case == case
        assert pair.psnr == pytest.approx(peak_signal_noise_ratio(*pixels, data_range=255))
        assert pair.ssim == pytest.approx(
            structural_similarity(
                *pixels, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
            )
        )
        embeds = [pipe.interpolate([picture], [1.0], seed=0).image_embeds[0].astype(np.float64) for picture in ours]
        expected = embeds[0] @ embeds[1] / math.sqrt((embeds[0] @ embeds[0]) * (embeds[1] @ embeds[1]))
        assert pair.cosine == pytest.approx(expected, abs=1e-12)
        assert min(pair.seconds) > 0
    assert not any(pair.identical for pair in found.pairs)


def test_cosines_are_those_of_transformers(shapes_pipe: Pipeline, shapes_checkpoint: Path, tmp_path: Path) -> None:
    prior = shapes_checkpoint / "prior"
    encoder = CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder", dtype=torch.float64).eval()
    processor = CLIPImageProcessor.from_pretrained(prior / "image_processor")
    shelf = compare.InMemory()
    cases = [Case("a large red circle in the middle of a blue background", 1)]
    few = {"num_inference_steps": 2, "prior_num_inference_steps": 2}
    found = compare.compare(side(shapes_pipe, **few), side(shapes_pipe, **few, guidance_scale=1.0), cases, shelf)
    pictures = [shelf.picture(which, 0) for which in compare.SIDES]
    pixels = processor(pictures, return_tensors="pt").pixel_values.double()
    with torch.no_grad():
        expected = torch.cosine_similarity(*encoder(pixels).image_embeds, dim=0)
    assert found.pairs[0].cosine == pytest.approx(float(expected), abs=1e-5)
    assert float(expected) < 0.999


def test_the_same_side_twice_is_identical(bundle: Path, pipe: Pipeline) -> None:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as other:
        found = compare.compare(side(pipe), side(other), CASES)
    assert found.identical == len(CASES)
    assert [pair.psnr for pair in found.pairs] == [math.inf] * 3
    assert [pair.ssim for pair in found.pairs] == [1.0] * 3
    assert [pair.cosine for pair in found.pairs] == pytest.approx([1.0] * 3, abs=1e-12)
    assert found.psnr() is None


def test_one_bundle_is_loaded_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = [Pipeline.load(bundle, "onnxruntime", threads=1) for _ in range(2)]
    before, seen = Components.component, set()

    def component(self: Components, key: Any) -> Any:
        found = before(self, key)
        seen.add(tuple(bool(pipe._components.loaded) for pipe in pipes))
        return found

    monkeypatch.setattr(Components, "component", component)
    compare.compare(side(pipes[0]), side(pipes[1]), CASES[:2])
    assert seen == {(True, False), (False, True)}
    assert pipes[1]._components.loaded == frozenset()
    assert pipes[0]._components.loaded == {"image_encoder"}


def test_pictures_of_any_task_with_a_prompt_are_compared(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with Pipeline.load(write_bundle(tmp_path / "all", GRAPHS | MORE_GRAPHS), "onnxruntime", threads=1) as pipe:
        asked = Request.of("img2img", image=image, strength=0.5, **SMALL)
        shelf = compare.InMemory()
        compare.compare(Side(pipe, asked), Side(pipe, asked.with_(strength=0.9)), CASES[:1], shelf)
        expected = pipe.img2img(CASES[0].prompt, image, strength=0.9, seed=CASES[0].seed, **SMALL).images[0]
    np.testing.assert_array_equal(shelf.picture(1, 0), expected)


def test_without_an_image_encoder_there_is_no_cosine_and_a_reason(tmp_path: Path, pipe: Pipeline) -> None:
    """That of the first side decides."""
    with Pipeline.load(write_bundle(tmp_path / "blind"), "onnxruntime", threads=1) as blind:
        found = compare.compare(side(blind), side(pipe), CASES[:1])
        assert "has no component for the role 'image_encoder'" in found.without_cosine
        assert found.pairs[0].cosine is None
        assert found.cosine() is None
        assert compare.compare(side(pipe), side(blind), CASES[:1]).pairs[0].cosine is not None


def test_without_memory_for_the_image_encoder_there_is_no_cosine_and_a_reason(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(self: Run, demand: Any) -> None:
        if tuple(demand.components) == ("image_encoder",):
            raise MemoryLimitError("It would take 20 GiB.")

    monkeypatch.setattr(Run, "require_memory", require)
    found = compare.compare(side(pipe), side(pipe, num_inference_steps=2), CASES[:1])
    assert found.without_cosine == "It would take 20 GiB."
    assert found.pairs[0].cosine is None


def refused(first: Side, second: Side, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> str:
    """Why a comparison is refused, before any picture is made."""
    with monkeypatch.context() as patch:
        patch.delattr(Pipeline, "pictures")
        with pytest.raises((InputError, BundleError, BackendError)) as error:
            compare.compare(first, second, cases)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_refused_before_the_work(
    bundle: Path, tmp_path: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = side(pipe)
    assert "no prompt" in refused(usual, usual, [], monkeypatch)
    assert "64x64 and the second of 128x64" in refused(usual, side(pipe, width=100), CASES, monkeypatch)
    assert "seed is -1" in refused(usual, usual, [*CASES, Case("a", -1)], monkeypatch)
    assert "not valid Unicode" in refused(usual, usual, [*CASES, Case("\udcff", 1)], monkeypatch)
    mix = Side(pipe, Request.of("mix", images_and_prompts=["a"]))
    assert "mix does not use prompt" in refused(usual, mix, CASES, monkeypatch)
    embed = Side(pipe, Request.of("embed", prompt="a"))
    assert "embed does not use output_type" in refused(usual, embed, CASES, monkeypatch)
    no_decoder = {name: graph for name, graph in GRAPHS.items() if name != "movq_decoder"}
    with Pipeline.load(write_bundle(tmp_path / "less", no_decoder), "onnxruntime") as less:
        assert "role 'movq_decoder'" in refused(usual, side(less), CASES, monkeypatch)
    with Pipeline.load(bundle, "onnxruntime", precision="bf16") as wrong:
        assert "bf16" in refused(usual, side(wrong), CASES, monkeypatch)


def test_statistics_are_of_the_pairs_that_have_the_measure() -> None:
    case = Case("a", 1)
    pairs = [
        Pair(case, 20.0, 0.5, 0.25, (1.0, 8.0)),
        Pair(case, math.inf, 1.0, 1.0, (2.0, 2.0)),
        Pair(case, 30.0, 0.75, 0.5, (6.0, 2.0)),
        Pair(case, 34.0, 0.25, 0.75, (3.0, 4.0)),
    ]
    found = Comparison(tuple(pairs), (1.0, 2.0))
    assert found.identical == 1
    assert found.psnr() == compare.Statistics(28.0, 30.0, 20.0)
    assert found.ssim() == compare.Statistics(0.625, 0.625, 0.25)
    assert found.cosine() == compare.Statistics(0.625, 0.625, 0.25)
    assert found.seconds(0) == compare.Statistics(3.0, 2.5, 6.0)
    assert found.seconds(1) == compare.Statistics(4.0, 3.0, 8.0)


def test_seconds_are_without_loading(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Components.component

    def slow(self: Components, key: Any) -> Any:
        time.sleep(0.2 * (key.name not in self.loaded))
        return before(self, key)

    monkeypatch.setattr(Components, "component", slow)
    found = compare.compare(side(pipe), side(pipe, num_inference_steps=2), CASES)
    assert found.load_seconds[0] > 0.8  # four components
    assert found.load_seconds[1] < 0.2  # of the same pipeline, which has them
    assert max(seconds for pair in found.pairs for seconds in pair.seconds) < 0.2
