"""A pipeline that threads share: every call returns its own pictures and timings, or one clear sentence."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, Output, Pipeline
from kandinsky22.arrays import Array

from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

THREADS = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[:40, :24] = 255

Call = Callable[[Pipeline], Output]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["kept", "low memory"])
def pipe(request: pytest.FixtureRequest, backend: str, bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, backend, precision="fp32", threads=1, low_memory=request.param) as loaded:
        yield loaded


def mixed_calls(count: int) -> list[Call]:
    """Tasks, sizes, prompts, steps and guidance, drawn at random."""
    draw = random.Random(0)
    tasks: list[Callable[[Pipeline, dict[str, Any]], Output]] = [
        lambda pipe, more: pipe(["a", "red"][: draw_of(more)], **more),
        lambda pipe, more: pipe.img2img("red", PIXELS, strength=0.6, **more),
        lambda pipe, more: pipe.inpaint("blue", PIXELS, MASK, **more),
        lambda pipe, more: pipe.controlnet("a", PIXELS, **more),
        lambda pipe, more: pipe.mix(["a", PIXELS], [0.5, 0.5], **more),
        lambda pipe, more: pipe.variations(PIXELS, **more),
    ]

    def draw_of(more: dict[str, Any]) -> int:
        return 1 + more["seed"] % 2

    def call(task: Any, more: dict[str, Any]) -> Call:
        return lambda pipe: task(pipe, more)

    def options() -> dict[str, Any]:
        return {
            "height": draw.choice([64, 128]),
            "width": draw.choice([64, 128]),
            "num_inference_steps": draw.choice([2, 3]),
            "prior_num_inference_steps": 2,
            "guidance_scale": draw.choice([1.0, 4.0]),
            "seed": draw.randrange(1000),
            "output_type": "np",
        }

    return [call(draw.choice(tasks), options()) for _ in range(count)]


@pytest.mark.parametrize("count", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_every_call_of_every_thread_is_right(pipe: Pipeline, count: int) -> None:
    """Its pictures to the bit, and its own timings: one component runs at a time, so together they fit into the time
    that has passed."""
    calls = mixed_calls(count)
    alone = [call(pipe) for call in calls]
    busy: list[float] = []

    def work(thread: int) -> None:
        order = list(range(count))
        random.Random(thread).shuffle(order)
        for place in order:
            output = calls[place](pipe)
            np.testing.assert_array_equal(output.images, alone[place].images)
            timings = {name: seconds for name, seconds in output.timings.items() if name not in ("load", "wait")}
            assert set(timings) == set(alone[place].timings) - {"load"}
            assert min(timings.values()) > 0
            assert sum(output.timings.values()) <= 2 * output.timings["total"]
            busy.append(sum(output.timings.values()) - output.timings["total"] - output.timings.get("wait", 0))

    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(work, thread) for thread in range(THREADS)]:
            done.result(timeout=300)
    assert len(busy) == THREADS * count
    assert sum(busy) <= time.perf_counter() - started


def test_threads_wait_for_each_other_and_say_so(bundle: Path) -> None:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as pipe:
        started, go_on = threading.Event(), threading.Event()

        def hold(*_: object) -> None:
            started.set()
            go_on.wait(60)

        options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(lambda: pipe("a", seed=0, callback_on_step_end=hold, **options))
            started.wait(60)
            second = threads.submit(lambda: pipe("a", seed=0, **options))
            assert not second.done()
            threading.Timer(0.3, go_on.set).start()
            assert second.result(60).timings["wait"] > 0.1 > first.result(60).timings.get("wait", 0)
        np.testing.assert_array_equal(first.result().images[0], second.result().images[0])


def test_a_callback_may_use_other_components_and_not_the_one_that_it_is_called_from(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    expected = pipe.embed("red", prior_num_inference_steps=2, seed=1)
    seen: list[Array] = []

    def embed(*_: object) -> None:
        seen.append(pipe.embed("red", prior_num_inference_steps=2, seed=1).image_embeds)

    plain = pipe("a", seed=0, output_type="np", **options)
    looked = pipe("a", seed=0, output_type="np", callback_on_step_end=embed, **options)
    np.testing.assert_array_equal(looked.images, plain.images)
    for found in seen:
        np.testing.assert_array_equal(found, expected.image_embeds)
    assert len(seen) == 2

    def again(*_: object) -> None:
        pipe("b", seed=0, **options)

    with pytest.raises(BackendError, match="decoder_step is in a loop: its step callback cannot run it"):
        pipe("a", seed=0, callback_on_step_end=again, **options)
    with pytest.raises(BackendError, match="prior_step is in a loop"):
        pipe("a", seed=0, prior_callback_on_step_end=again, **options)
    with pytest.raises(BackendError, match="its step callback cannot close the pipeline"):
        pipe("a", seed=0, callback_on_step_end=lambda *_: pipe.close(), **options)
    np.testing.assert_array_equal(pipe("a", seed=0, output_type="np", **options).images, plain.images)


def test_closing_waits_for_who_is_running(bundle: Path) -> None:
    pipe = Pipeline.load(bundle, "onnxruntime", threads=1)
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3, "prior_num_inference_steps": 2}
    started = threading.Event()

    def slow(*_: object) -> None:
        started.set()
        threading.Event().wait(0.05)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: pipe("a", seed=0, output_type="np", callback_on_step_end=slow, **options))
        started.wait(60)
        pipe.close()
        images = running.result(60).images
    np.testing.assert_array_equal(images, pipe("a", seed=0, output_type="np", **options).images)
    pipe.close()
