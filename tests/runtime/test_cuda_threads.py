"""Threads that share a component on the GPU, on stand-ins: each gets its own results and times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError
from kandinsky22.arrays import Array
from kandinsky22.backends import Settings
from kandinsky22.backends.cuda.component import DeviceComponent
from kandinsky22.backends.onnxruntime import CPU

from .fake_machines import MACHINES, AnyMachine, load
from .handmade import assert_same, feeds

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


def test_loading_waits_for_the_loop_of_another_thread(machine: AnyMachine, decoder: DeviceComponent) -> None:
    """It copies weights to the device, in a stream that a step may just be captured from."""
    loaded: list[DeviceComponent] = []
    with InLoop(decoder) as loop:
        loading = loop.waits(lambda: loaded.append(load(machine, "movq_decoder")))
    loading.result(PATIENCE)
    loaded[0].close()


def test_a_callback_that_runs_the_component_it_is_in_is_told_so(decoder: DeviceComponent, plain: Any) -> None:
    inputs = {name: array for part in feeds(2) for name, array in part.items()}
    for call in (lambda: decoder.run(inputs), lambda: decoder.loop(*feeds(2))):
        with pytest.raises(BackendError, match="decoder_step is in a loop: its step callback cannot run it"):
            decoder.loop(*feeds(3), lambda step, state: call())  # noqa: B023
    with pytest.raises(BackendError, match="its step callback cannot close it; raise Cancelled"):
        decoder.loop(*feeds(3), lambda step, state: decoder.close())  # type: ignore[arg-type, func-returns-value]
    assert_same(decoder.loop(*feeds(3)), plain.loop(*feeds(3)))


def test_the_device_has_one_lock_however_often_it_is_made(machine: AnyMachine) -> None:
    """Who waits for a device that is closed meanwhile must not run beside who made it anew."""
    locks = []
    for _ in range(2):
        decoder = load(machine, "decoder_step")
        locks.append(decoder.gpu.lock)
        decoder.close()
    assert locks[0] is locks[1] is machine.shared_gpu.turn
