"""The same call gives the same picture, whatever ran before: random calls beside themselves in a fresh pipeline."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Pipeline
from kandinsky22.arrays import Array
from tests.bfloat16 import bfloat16

from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

PROMPTS = ("a large red circle in the middle of a blue background", "a small yellow square", "a green star", "a fox")
SIZES = ((64, 64), (128, 64), (64, 128), (64, 192))
TASKS = ("text", "text", "img2img", "inpaint", "controlnet", "mix", "variations")
GUIDANCE: tuple[dict[str, Any], ...] = (
    {},
    {"guidance_scale": 1.0},
    {"guidance_interval": (0.0, 0.5)},
    {"guidance_scale": 7.0},
)
Call = Callable[[Pipeline], Array]

FEW, ALL = 8, 30
"""Calls of the fast suite, whose graphs are handmade and compiled in a moment, and of the slow one."""

BETWEEN_BATCHES = 1 / 255
"""How much a picture may differ from the same one alone where pictures are computed together."""

BACKENDS = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]


def random_calls(count: int, seed: int) -> list[tuple[str, Call]]:
    """Calls of every task, drawn by `seed`, each with its description: it differs in every shape that there is."""
    draw = np.random.default_rng(seed)
    return [_random_call(draw, number) for number in range(count)]


def _random_call(draw: np.random.Generator, number: int) -> tuple[str, Call]:
    task = TASKS[number % len(TASKS)]
    height, width = SIZES[draw.integers(len(SIZES))]
    prompts = [PROMPTS[draw.integers(len(PROMPTS))] for _ in range(draw.integers(1, 4))]
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": int(draw.integers(2, 5)),
        "prior_num_inference_steps": int(draw.integers(2, 4)),
        "seed": int(draw.integers(1000)),
        "output_type": "np",
        **GUIDANCE[draw.integers(len(GUIDANCE))],
    }
    picture = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 :, : width // 2] = 255
    calls: dict[str, Call] = {
        "text": lambda pipe: pipe(prompts, **options).images,
        "img2img": lambda pipe: pipe.img2img(prompts, picture, strength=0.7, **options).images,
        "inpaint": lambda pipe: pipe.inpaint(prompts, picture, mask, **options).images,
        "controlnet": lambda pipe: pipe.controlnet(prompts, picture, **options).images,
        "mix": lambda pipe: pipe.mix([prompts[0], picture], [0.4, 0.6], **options).images,
        "variations": lambda pipe: pipe.variations(picture, num_images_per_prompt=len(prompts), **options).images,
    }
    return f"{task} of {len(prompts)}: {options}", lambda pipe: np.asarray(calls[task](pipe))


@contextlib.contextmanager
def loaded(bundle: Path, backend: str, precision: str) -> Iterator[Pipeline]:
    """A pipeline; in bf16 one that is emulated where the processor has none."""
    with (
        bfloat16() if precision == "bf16" else contextlib.nullcontext(),
        Pipeline.load(bundle, backend, precision=precision, threads=1) as pipe,
    ):
        yield pipe


@pytest.fixture(scope="module")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small graphs for every task."""
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)


def _holds(bundle: Path, backend: str, precision: str, calls: list[tuple[str, Call]]) -> None:
    with loaded(bundle, backend, precision) as used:
        after_others = [call(used) for _, call in calls]
    for (told, call), picture in zip(calls, after_others, strict=True):
        with loaded(bundle, backend, precision) as fresh:
            alone = call(fresh)
        assert alone.std() > 0.01, f"a flat picture: nothing is compared: {told}"
        np.testing.assert_array_equal(picture, alone, err_msg=told)


@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_a_call_gives_what_it_gives_in_a_fresh_pipeline(handmade: Path, backend: str, precision: str) -> None:
    """To the bit: calls of other sizes, numbers of prompts, tasks, guidance and steps ran before."""
    _holds(handmade, backend, precision, random_calls(FEW, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_thirty_calls_give_what_they_give_in_fresh_pipelines(shapes_bundle: Path, backend: str, precision: str) -> None:
    _holds(shapes_bundle, backend, precision, random_calls(ALL, seed=1))


@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_a_picture_alone_is_what_it_is_beside_others(handmade: Path, backend: str, precision: str) -> None:
    _is_alone_what_it_is_beside_others(handmade, backend, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_a_trained_picture_alone_is_what_it_is_beside_others(shapes_bundle: Path, backend: str, precision: str) -> None:
    _is_alone_what_it_is_beside_others(shapes_bundle, backend, precision)


def _is_alone_what_it_is_beside_others(bundle: Path, backend: str, precision: str) -> None:
    """To the bit in bf16, and else within what one more rounding does."""
    bound = 0.0 if precision == "bf16" else BETWEEN_BATCHES
    options: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "prior_num_inference_steps": 2,
        "output_type": "np",
    }
    with loaded(bundle, backend, precision) as pipe:
        together = np.asarray(pipe(PROMPTS[:3], "a blue square", seed=[4, 9, 2], **options).images)
        for i, seed in enumerate((4, 9, 2)):
            alone = np.asarray(pipe(PROMPTS[i], "a blue square", seed=seed, **options).images)[0]
            assert np.abs(together[i] - alone).max() <= bound
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(together, 2)) > 0.05
