"""Loops over two step graphs of one state: on stand-ins for the GPU they equal the plain loop's bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, Cancelled, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import LoadedComponent, Relay, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.sampling import forecast

from .fake_cuda import WAITING
from .fake_machines import MACHINES, SCHEDULES, AnyMachine, load
from .handmade import SKIPPING_GRAPHS, assert_same, feeds, write_bundle

STEPS = 9
FORECAST: dict[str, tuple[int, ...]] = {
    "none": (),
    "every other": (2, 4, 6),
    "two in a row": (2, 3, 5, 6),
    "the last": (4, 8),
    "all but two": (2, 3, 4, 5, 6, 7, 8),
}
"""Steps of which the network is not run."""
Seen = list[tuple[int, dict[str, Array]]]
OnStep = Callable[[int, Mapping[str, Array]], "Mapping[str, Array] | None"]


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "skipping", SKIPPING_GRAPHS)


@pytest.fixture(scope="module")
def plainly(bundle_path: Path) -> tuple[LoadedComponent, LoadedComponent]:
    """Step and forecast on the CPU, with the plain loop."""
    bundle = Bundle(bundle_path)
    step, other = (CPU.load(bundle, name, Settings(threads=1)) for name in ("decoder_step", "decoder_forecast"))
    return step, other


@pytest.fixture(params=[(kind, when) for kind in MACHINES for when in SCHEDULES], ids="-".join)
def machine(
    request: pytest.FixtureRequest, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, plainly: Any
) -> AnyMachine:
    kind, when = request.param
    return MACHINES[kind](Bundle(bundle_path), monkeypatch, SCHEDULES[when])


@pytest.fixture
def both(machine: AnyMachine) -> Iterator[tuple[LoadedComponent, LoadedComponent]]:
    """Step and forecast on the stand-in."""
    components: Any = load(machine, "decoder_step"), load(machine, "decoder_forecast")
    yield components
    for component in components:
        component.close()
    assert not any(machine.cuda.alive().values())


def looped(
    graphs: tuple[LoadedComponent, LoadedComponent],
    steps: tuple[int, ...],
    on_step: OnStep | None = None,
    size: tuple[int, int] = (8, 12),
) -> dict[str, Array]:
    """The last state of a run whose `steps` are forecast."""
    state, per_step, constants = feeds(STEPS, size)
    timesteps = per_step["timestep"][:, 0].astype(np.int64)
    return graphs[0].loop(
        state | forecast.nothing_kept(state["latents"], 4),
        per_step | {"forecast_weights": list(forecast.weights(timesteps, steps))},
        constants,
        on_step,
        Relay((graphs[1],), forecast.legs(STEPS, steps)),
    )


@pytest.mark.parametrize("steps", FORECAST.values(), ids=FORECAST)
def test_the_last_state_is_the_plain_loop_s(both: Any, plainly: Any, steps: tuple[int, ...]) -> None:
    for size in ((8, 12), (12, 8), (8, 12)):
        assert_same(looped(both, steps, size=size), looped(plainly, steps, size=size))


@pytest.mark.parametrize("steps", FORECAST.values(), ids=FORECAST)
def test_a_callback_sees_what_the_plain_loop_shows(both: Any, plainly: Any, steps: tuple[int, ...]) -> None:
    ours, theirs = watched(both, steps, {}), watched(plainly, steps, {})
    assert_same_runs(ours, theirs)
    for step, arrays in theirs[1]:
        assert arrays.keys() - {"model"} == {"latents", "x0_before", "model_0", "model_1"}
        assert ("model" in arrays) == (step not in steps)


@pytest.mark.parametrize("when", [{0}, {1}, {3}, {4}, {7, 8}, {8}, set(range(STEPS))], ids=str)
@pytest.mark.parametrize("steps", FORECAST.values(), ids=FORECAST)
def test_a_callback_replaces_the_state_before_steps_of_either_kind(
    both: Any, plainly: Any, steps: tuple[int, ...], when: set[int]
) -> None:
    def flipped(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"latents": np.flip(arrays["latents"], 0) * np.float32(0.5)}

    replacing = dict.fromkeys(when, flipped)
    assert_same_runs(watched(both, steps, replacing), watched(plainly, steps, replacing))


@pytest.mark.parametrize(("when", "is_read"), [(1, True), (3, True), (4, False)])
def test_a_callback_replaces_what_is_kept(both: Any, plainly: Any, when: int, is_read: bool) -> None:
    """After step 4, what is kept there is replaced by step 5's before a forecast reads it."""
    steps = FORECAST["every other"]
    replacing = {when: lambda arrays: {"model_1": -arrays["model_1"]}}
    ours, theirs = watched(both, steps, replacing), watched(plainly, steps, replacing)
    assert_same_runs(ours, theirs)
    assert np.array_equal(ours[0]["latents"], looped(plainly, steps)["latents"]) == (not is_read)


Replacing = Mapping[int, Callable[[Mapping[str, Array]], Mapping[str, Array]]]


def watched(graphs: Any, steps: tuple[int, ...], replacing: Replacing) -> tuple[dict[str, Array], Seen]:
    seen: Seen = []

    def look(step: int, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
        seen.append((step, {name: array.copy() for name, array in arrays.items()}))
        return replacing[step](arrays) if step in replacing else None

    return looped(graphs, steps, look), seen


def assert_same_runs(ours: tuple[dict[str, Array], Seen], theirs: tuple[dict[str, Array], Seen]) -> None:
    assert_same(ours[0], theirs[0])
    assert [step for step, _ in ours[1]] == [step for step, _ in theirs[1]] == list(range(STEPS))
    for (_, mine), (_, reference) in zip(ours[1], theirs[1], strict=True):
        assert_same(mine, reference)


def test_the_plain_loop_is_steps_by_hand(plainly: Any) -> None:
    """Run by run, with the two outputs kept by hand and their weights from the formula."""
    steps = FORECAST["two in a row"]
    state, per_step, constants = feeds(STEPS)
    latents, x0, outputs = state["latents"], state["x0_before"], []
    for step in range(STEPS):
        timestep = float(per_step["timestep"][step, 0])
        fed = {"latents": latents, "x0_before": x0, "noise": per_step["noise"][step]}
        fed["coefficients"] = per_step["coefficients"][step]
        if step in steps:
            (before, m_before), (last, m_last) = outputs[-2:]
            reach = (timestep - last) / (last - before)
            fed |= {"model_0": m_last, "model_1": m_before, "thresholding": constants["thresholding"]}
            given = plainly[1].run(fed | {"forecast_weights": np.array([1 + reach, -reach], np.float32)})
        else:
            given = plainly[0].run({**fed, **constants, "timestep": per_step["timestep"][step]})
            outputs.append((timestep, given["model"]))
        latents, x0 = given["latents_next"], given["x0"]
    found = looped(plainly, steps)
    np.testing.assert_allclose(found["latents"], latents, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["x0_before"], x0, rtol=1e-6, atol=1e-6)


def test_between_steps_of_either_kind_the_host_only_queues_work(both: Any, machine: AnyMachine) -> None:
    looped(both, FORECAST["every other"])  # captures
    before = len(machine.cuda.calls)
    looped(both, FORECAST["every other"])
    calls = machine.cuda.calls[before:]
    timed = (
        "cudaEventCreateWithFlags",
        (machine.cuda.cudaEventDefault,),
    )  # the marks of steps
    marks = [place for place, call in enumerate(calls) if call == timed]
    assert len(marks) == STEPS + 1
    between = {name for name, _ in calls[marks[0] : marks[-1]]}
    assert between <= {"cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventCreateWithFlags", "cudaEventRecord"}
    assert not between & WAITING


def test_a_callback_stops_the_loop_and_both_graphs_run_again(both: Any, plainly: Any, machine: AnyMachine) -> None:
    steps = FORECAST["every other"]
    looped(both, steps)
    before = machine.cuda.alive()

    def stop(step: int, state: Mapping[str, Array]) -> None:
        if step == 4:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        looped(both, steps, stop)
    assert machine.cuda.alive() == before
    assert_same(looped(both, steps), looped(plainly, steps))


@pytest.mark.parametrize("which", [0, 1])
def test_a_callback_can_run_neither_of_them(both: Any, which: int) -> None:
    with pytest.raises(BackendError, match=r"decoder_(step|forecast) is in a loop: its step callback cannot run it"):
        looped(both, (2, 4), lambda step, state: both[which].loop(*feeds()))
    looped(both, (2, 4))


def test_a_relay_of_other_backends_or_lengths_is_an_error(both: Any, plainly: Any) -> None:
    with pytest.raises(TypeError, match="expected all of one backend"):
        looped((both[0], plainly[1]), (2,))
    state, per_step, constants = feeds(STEPS)
    with pytest.raises(ValueError, match="2 legs for 9 steps; expected one a step"):
        plainly[0].loop(state, per_step, constants, None, Relay((plainly[1],), forecast.legs(2, ())))


def test_threads_that_run_either_graph_wait_for_each_other(both: Any, plainly: Any) -> None:
    """Whoever has a component waits for the GPU; a loop must not have the GPU and wait for a component."""
    steps = FORECAST["every other"]
    expected = looped(plainly, steps)
    looped(both, steps)  # binds and captures
    draw = np.random.default_rng(0)
    fed = {
        spec.name: draw.standard_normal(spec.resolve({"B": 2, "h": 8, "w": 12})).astype(np.float32)
        for spec in both[1].component.inputs
    }
    alone, ended = plainly[1].run(fed), threading.Event()

    def run() -> None:
        while not ended.is_set():
            assert_same(both[1].run(fed), alone)

    other = threading.Thread(target=run, daemon=True)
    loops = threading.Thread(
        target=lambda: [assert_same(looped(both, steps), expected) for _ in range(15)], daemon=True
    )
    other.start()
    loops.start()
    loops.join(60)
    hung = loops.is_alive()
    ended.set()
    other.join(60)
    assert not hung
    assert not other.is_alive()


# Whole calls

QUICK: dict[str, Any] = {"height": 64, "width": 128, "num_inference_steps": 12, "prior_num_inference_steps": 2}
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("__call__", {"prompt": ["a red circle", "green"], "scheduler": "DPM++"}),
    "half guided": ("__call__", {"prompt": ["a red circle", "green"], "guidance_interval": (0, 0.5)}),
    "img2img": ("img2img", {"prompt": "green", "image": PICTURE, "strength": 0.75}),
    "inpaint": ("inpaint", {"prompt": "green", "image": PICTURE, "mask_image": PICTURE[..., 0] > 128}),
    "controlnet": ("controlnet", {"prompt": "green", "hint": PICTURE}),
}


@pytest.fixture(scope="module")
def on_cpu(bundle_path: Path) -> dict[str, Any]:
    """The latents of CALLS on the CPU."""
    with Pipeline.load(bundle_path, "onnxruntime", threads=1) as pipe:
        return {name: called(pipe, name, "forecast:3") for name in CALLS}


def called(pipe: Pipeline, name: str, skip: str) -> Any:
    task, given = CALLS[name]
    return getattr(pipe, task)(**given, seed=3, output_type="latent", skip=skip, **QUICK).images


@pytest.mark.parametrize("low_memory", [False, True])
def test_pictures_equal_the_cpu_s(on_cpu: dict[str, Any], machine: AnyMachine, low_memory: bool) -> None:
    with machine.pipeline(low_memory=low_memory) as pipe:
        for name, expected in on_cpu.items():
            np.testing.assert_array_equal(called(pipe, name, "forecast:3"), expected)
            assert not np.array_equal(called(pipe, name, "none"), expected)
