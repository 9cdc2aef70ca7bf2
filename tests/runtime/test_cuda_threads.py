"""Threads that share a component on the GPU, on stand-ins: each gets its own results and times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, Output, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import Settings
from kandinsky22.backends.cuda.component import DeviceComponent
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle

from .fake_machines import MACHINES, AnyMachine, load
from .handmade import GRAPHS, MORE_GRAPHS, assert_same, feeds, write_bundle
from .test_threads import Call, mixed_calls

SIZES = [(8, 8), (8, 12), (12, 8), (16, 8), (9, 11), (10, 10)]
"""More than a component stays bound to."""
PATIENCE = 30
"""Seconds after which a test takes a thread for hanging."""


@pytest.fixture(params=MACHINES)
def machine(
    request: pytest.FixtureRequest, plain: Any, handmade_copy: Any, monkeypatch: pytest.MonkeyPatch
) -> AnyMachine:
    return MACHINES[request.param](handmade_copy, monkeypatch)


@pytest.fixture
def decoder(machine: AnyMachine) -> Iterator[DeviceComponent]:
    component = load(machine, "decoder_step")
    yield component
    component.close()


class InLoop:
    """A component that another thread loops over, until it is told to go on: it is held in its first step callback."""

    def __init__(self, component: DeviceComponent, steps: int = 4) -> None:
        self._entered, self._go_on = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.result: Future[dict[str, Array]] = self._pool.submit(component.loop, *feeds(steps), self._hold)

    def _hold(self, step: int, state: Mapping[str, Array]) -> None:
        if step == 0:
            self._entered.set()
            assert self._go_on.wait(PATIENCE)

    def __enter__(self) -> InLoop:
        assert self._entered.wait(PATIENCE)
        return self

    def __exit__(self, *error: object) -> None:
        self._go_on.set()
        self._pool.shutdown()

    def waits(self, call: Callable[[], object]) -> Future[object]:
        """Start a call in a third thread, which does not return before the loop has ended."""
        pool = ThreadPoolExecutor(1)
        future: Future[object] = pool.submit(call)
        pool.shutdown(wait=False)
        with pytest.raises(TimeoutError):
            future.result(0.2)
        return future


def test_eight_threads_get_their_own_results_and_times(decoder: DeviceComponent, plain: Any) -> None:
    cases = [(steps, size) for steps in (2, 3, 5) for size in SIZES]
    expected = {case: plain.loop(*feeds(*case)) for case in cases}
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait(PATIENCE)
        for case in np.random.default_rng(thread).permutation(np.arange(len(cases))):
            steps, size = cases[case]
            seen: list[int] = []
            assert_same(decoder.loop(*feeds(steps, size), lambda step, state: seen.append(step)), expected[steps, size])  # noqa: B023
            assert seen == list(range(steps))
            assert len(decoder.step_seconds) == steps

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, thread) for thread in range(8)]:
            future.result(10 * PATIENCE)


def test_eight_threads_run_one_component(machine: AnyMachine, handmade_bundle: Any) -> None:
    movq, start = load(machine, "movq_decoder"), threading.Barrier(8)
    latents = [feeds(2, size)[0]["latents"] for size in SIZES]
    cpu = CPU.load(handmade_bundle, "movq_decoder", Settings(threads=1))
    expected = [cpu.run({"latents": each}) for each in latents]

    def work(thread: int) -> None:
        start.wait(PATIENCE)
        for case in np.random.default_rng(thread).permutation(np.arange(len(SIZES))):
            assert_same(movq.run({"latents": latents[case]}), expected[case])

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, thread) for thread in range(8)]:
            future.result(10 * PATIENCE)
    movq.close()


def test_another_thread_s_loop_leaves_this_one_s_times_alone(decoder: DeviceComponent) -> None:
    decoder.loop(*feeds(3))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(decoder.loop, *feeds(5)).result(PATIENCE)
        assert pool.submit(lambda: len(decoder.step_seconds)).result(PATIENCE) == 5
    assert len(decoder.step_seconds) == 3


def test_closing_waits_for_the_loop_of_another_thread(machine: AnyMachine, plain: Any) -> None:
    decoder = load(machine, "decoder_step")
    with InLoop(decoder) as loop:
        closing = loop.waits(decoder.close)
    assert_same(loop.result.result(PATIENCE), plain.loop(*feeds(4)))
    closing.result(PATIENCE)
    assert not any(machine.cuda.alive().values())


def test_a_closed_component_says_so(machine: AnyMachine) -> None:
    decoder, movq = load(machine, "decoder_step"), load(machine, "movq_decoder")
    for component in (decoder, movq, movq):
        component.close()
    with pytest.raises(BackendError, match="component decoder_step was closed and cannot run; load it again"):
        decoder.loop(*feeds(2))
    with pytest.raises(BackendError, match="component movq_decoder was closed"):
        movq.run({"latents": feeds(2)[0]["latents"]})


def test_loading_waits_while_another_thread_queues_its_steps(
    machine: AnyMachine, decoder: DeviceComponent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It copies weights to the device, in a stream that a step may just be captured from."""
    queueing, go_on, loaded = threading.Event(), threading.Event(), []
    record = machine.cuda.cudaEventRecord

    def held(event: int, stream: int) -> Any:
        queueing.set()
        assert go_on.wait(PATIENCE)
        return record(event, stream)

    monkeypatch.setattr(machine.cuda, "cudaEventRecord", held)
    with ThreadPoolExecutor(2) as pool:
        looping = pool.submit(decoder.loop, *feeds(3))
        assert queueing.wait(PATIENCE)
        loading = pool.submit(lambda: loaded.append(load(machine, "movq_decoder")))
        with pytest.raises(TimeoutError):
            loading.result(0.2)
        go_on.set()
        looping.result(PATIENCE)
        loading.result(PATIENCE)
    loaded[0].close()


def test_another_component_runs_in_another_thread_during_a_callback(
    machine: AnyMachine, decoder: DeviceComponent, plain: Any, handmade_bundle: Any
) -> None:
    """The callback may wait for that thread: were the GPU not free, both would wait for ever."""
    movq, latents = load(machine, "movq_decoder"), feeds(2, (16, 16))[0]["latents"]  # a larger arena, which moves
    expected = CPU.load(handmade_bundle, "movq_decoder", Settings(threads=1)).run({"latents": latents})
    with ThreadPoolExecutor(1) as pool:

        def wait(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
            assert_same(pool.submit(movq.run, {"latents": latents}).result(PATIENCE), expected)
            return {"latents": -state["latents"]} if step == 1 else None

        ours = decoder.loop(*feeds(4), wait)
    theirs = plain.loop(*feeds(4), lambda step, state: {"latents": -state["latents"]} if step == 1 else None)
    assert_same(ours, theirs)
    movq.close()


def test_a_callback_that_runs_the_component_it_is_in_is_told_so(decoder: DeviceComponent, plain: Any) -> None:
    inputs = {name: array for part in feeds(2) for name, array in part.items()}
    for call in (lambda: decoder.run(inputs), lambda: decoder.loop(*feeds(2))):
        with pytest.raises(BackendError, match="decoder_step is in a loop: its step callback cannot run it"):
            decoder.loop(*feeds(3), lambda step, state: call())  # noqa: B023
    with pytest.raises(BackendError, match="its step callback cannot close it; raise Cancelled"):
        decoder.loop(*feeds(3), lambda step, state: decoder.close())  # type: ignore[arg-type, func-returns-value]
    assert_same(decoder.loop(*feeds(3)), plain.loop(*feeds(3)))


def test_the_device_has_one_turn_however_often_it_is_made(machine: AnyMachine) -> None:
    """Who waits for a device that is closed meanwhile must not run beside who made it anew."""
    turns = []
    for _ in range(2):
        decoder = load(machine, "decoder_step")
        turns.append(decoder.gpu.turn)
        decoder.close()
    assert turns[0] is turns[1]


# Whole pipelines.


@pytest.fixture(params=MACHINES)
def whole_machine(
    request: pytest.FixtureRequest, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AnyMachine:
    """With every graph that a task needs."""
    return MACHINES[request.param](Bundle(write_bundle(tmp_path / "tasks", GRAPHS | MORE_GRAPHS)), monkeypatch)


def in_threads(calls: Sequence[Call], pipes: Sequence[Pipeline]) -> list[Output]:
    """The outputs of all calls by each of eight threads, which go through them in an order of their own."""
    found: list[Output] = [None] * 8 * len(calls)  # type: ignore[list-item]

    def work(thread: int) -> None:
        for place in np.random.default_rng(thread).permutation(len(calls)):
            found[thread * len(calls) + place] = calls[place](pipes[thread % len(pipes)])

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, thread) for thread in range(8)]:
            future.result(10 * PATIENCE)
    return found


@pytest.mark.parametrize("low_memory", [False, True], ids=["kept", "low memory"])
@pytest.mark.parametrize("count", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_eight_threads_share_a_pipeline(whole_machine: AnyMachine, low_memory: bool, count: int) -> None:
    calls = mixed_calls(count)
    with whole_machine.pipeline(low_memory=low_memory) as pipe:
        alone = [call(pipe) for call in calls]
        for ours, theirs in zip(in_threads(calls, [pipe]), alone * 8, strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images)
            assert set(theirs.timings) - {"load"} <= set(ours.timings)
            parts = {name: seconds for name, seconds in ours.timings.items() if name != "total"}
            assert min(parts.values()) > 0
    assert not any(whole_machine.cuda.alive().values())


def test_two_pipelines_share_the_gpu(whole_machine: AnyMachine) -> None:
    calls = mixed_calls(3)
    with whole_machine.pipeline() as one, whole_machine.pipeline() as other:
        alone = [call(one) for call in calls]
        for ours, theirs in zip(in_threads(calls, [one, other]), alone * 8, strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images)
    assert not any(whole_machine.cuda.alive().values())


def test_a_callback_calls_a_pipeline_that_another_thread_is_in(whole_machine: AnyMachine) -> None:
    """Each has a turn of its own, and both need the one GPU."""
    quick: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 6, "prior_num_inference_steps": 2}
    over = threading.Event()
    with whole_machine.pipeline() as one, whole_machine.pipeline() as other, ThreadPoolExecutor(2) as pool:

        def busy() -> None:
            while not over.is_set():
                other("red", seed=2, **quick)

        def call() -> Output:
            return one("a", seed=0, callback_on_step_end=lambda *_: other("a", seed=1, **quick) and None, **quick)

        expected = one("a", seed=0, **quick)
        background, called = pool.submit(busy), pool.submit(call)
        try:
            np.testing.assert_array_equal(called.result(PATIENCE).images[0], expected.images[0])
        finally:
            over.set()
        background.result(PATIENCE)
