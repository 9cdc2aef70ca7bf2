"""Loops over two step graphs of one state: on stand-ins for the GPU they equal the plain loop's bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, Cancelled, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import Relay, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.sampling import forecast

from .fake_cuda import WAITING
from .fake_machines import MACHINES, SCHEDULES, AnyMachine, load
from .handmade import assert_same, feeds, write_bundle
from .relays import FORECAST, SHALLOW, STEPS, Graphs, Kind, assert_same_runs

EVERY_OTHER = "every other"


@pytest.fixture(scope="module", params=[FORECAST, SHALLOW], ids=lambda kind: kind.other)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


by_pattern = pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param(kind, steps, id=f"{kind.other}-{name}")
        for kind in (FORECAST, SHALLOW)
        for name, steps in kind.patterns.items()
    ],
    indirect=["kind"],
    scope="module",
)
"""Runs of every kind, and the steps that are skipped in each."""


def only(kind: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", [kind], indirect=True, ids=[kind.other], scope="module")


@pytest.fixture(scope="module")
def bundle_path(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "relay", kind.graphs)


@pytest.fixture(scope="module")
def plainly(kind: Kind, bundle_path: Path) -> Graphs:
    """Both graphs on the CPU, with the plain loop."""
    bundle = Bundle(bundle_path)
    step, other = (CPU.load(bundle, name, Settings(threads=1)) for name in ("decoder_step", kind.other))
    return step, other


@pytest.fixture(params=[(machine, when) for machine in MACHINES for when in SCHEDULES], ids="-".join)
def machine(
    request: pytest.FixtureRequest, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, plainly: Graphs
) -> AnyMachine:
    name, when = request.param
    return MACHINES[name](Bundle(bundle_path), monkeypatch, SCHEDULES[when])


@pytest.fixture
def both(kind: Kind, machine: AnyMachine) -> Iterator[Graphs]:
    """Both graphs on the stand-in."""
    components: Any = load(machine, "decoder_step"), load(machine, kind.other)
    yield components
    for component in components:
        component.close()
    assert not any(machine.cuda.alive().values())


@by_pattern
def test_the_last_state_is_the_plain_loop_s(both: Graphs, plainly: Graphs, kind: Kind, steps: tuple[int, ...]) -> None:
    for size in ((8, 12), (12, 8), (8, 12)):
        assert_same(kind.looped(both, steps, size=size), kind.looped(plainly, steps, size=size))


@by_pattern
def test_a_callback_sees_what_the_plain_loop_shows(
    both: Graphs, plainly: Graphs, kind: Kind, steps: tuple[int, ...]
) -> None:
    ours, theirs = kind.watched(both, steps, {}), kind.watched(plainly, steps, {})
    assert_same_runs(ours, theirs)
    for step, arrays in theirs[1]:
        assert arrays.keys() == kind.seen | ({"model"} if step not in steps else set())


@pytest.mark.parametrize("when", [{0}, {1}, {3}, {4}, {7, 8}, {8}, set(range(STEPS))], ids=str)
@by_pattern
def test_a_callback_replaces_the_state_before_steps_of_either_kind(
    both: Graphs, plainly: Graphs, kind: Kind, steps: tuple[int, ...], when: set[int]
) -> None:
    def flipped(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"latents": np.flip(arrays["latents"], 0) * np.float32(0.5)}

    replacing = dict.fromkeys(when, flipped)
    assert_same_runs(kind.watched(both, steps, replacing), kind.watched(plainly, steps, replacing))


@only(FORECAST)
@pytest.mark.parametrize(("when", "is_read"), [(1, True), (3, True), (4, False)])
def test_a_callback_replaces_what_is_kept(both: Graphs, plainly: Graphs, kind: Kind, when: int, is_read: bool) -> None:
    """After step 4, what is kept there is replaced by step 5's before a forecast reads it."""
    steps = kind.patterns[EVERY_OTHER]
    replacing = {when: lambda arrays: {"model_1": -arrays["model_1"]}}
    ours, theirs = kind.watched(both, steps, replacing), kind.watched(plainly, steps, replacing)
    assert_same_runs(ours, theirs)
    assert np.array_equal(ours[0]["latents"], kind.looped(plainly, steps)["latents"]) == (not is_read)


@only(FORECAST)
def test_forecasts_of_the_plain_loop_are_steps_by_hand(plainly: Graphs, kind: Kind) -> None:
    """Run by run, with the two outputs kept by hand and their weights from the formula."""
    steps = kind.patterns["two in a row"]
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
    found = kind.looped(plainly, steps)
    np.testing.assert_allclose(found["latents"], latents, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["x0_before"], x0, rtol=1e-6, atol=1e-6)


@only(SHALLOW)
def test_shallow_steps_of_the_plain_loop_are_steps_by_hand(plainly: Graphs, kind: Kind) -> None:
    """Run by run, with the features of the last full step kept by hand."""
    steps = kind.patterns["two in a row"]
    state, per_step, constants = feeds(STEPS)
    latents, x0, features = state["latents"], state["x0_before"], None
    for step in range(STEPS):
        fed = {**constants, "latents": latents, "x0_before": x0, **{name: per_step[name][step] for name in per_step}}
        if step in steps:
            given = plainly[1].run({**fed, "features": features})
        else:
            given = plainly[0].run(fed)
            features = given["features"]
        latents, x0 = given["latents_next"], given["x0"]
    found = kind.looped(plainly, steps)
    np.testing.assert_array_equal(found["latents"], latents)
    np.testing.assert_array_equal(found["x0_before"], x0)
    np.testing.assert_array_equal(found["features"], features)
    assert not np.array_equal(kind.looped(plainly, ())["latents"], latents)


def test_between_steps_of_either_kind_the_host_only_queues_work(both: Graphs, kind: Kind, machine: AnyMachine) -> None:
    kind.looped(both, kind.patterns[EVERY_OTHER])  # captures
    before = len(machine.cuda.calls)
    kind.looped(both, kind.patterns[EVERY_OTHER])
    calls = machine.cuda.calls[before:]
    timed = ("cudaEventCreateWithFlags", (machine.cuda.cudaEventDefault,))  # the marks of steps
    marks = [place for place, call in enumerate(calls) if call == timed]
    assert len(marks) == STEPS + 1
    between = {name for name, _ in calls[marks[0] : marks[-1]]}
    assert between <= {"cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventCreateWithFlags", "cudaEventRecord"}
    assert not between & WAITING


def test_a_callback_stops_the_loop_and_both_graphs_run_again(
    both: Graphs, plainly: Graphs, kind: Kind, machine: AnyMachine
) -> None:
    steps = kind.patterns[EVERY_OTHER]
    kind.looped(both, steps)
    before = machine.cuda.alive()

    def stop(step: int, state: Mapping[str, Array]) -> None:
        if step == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        kind.looped(both, steps, stop)
    assert machine.cuda.alive() == before
    assert_same(kind.looped(both, steps), kind.looped(plainly, steps))


@pytest.mark.parametrize("which", [0, 1])
def test_a_callback_can_run_neither_of_them(both: Graphs, kind: Kind, which: int) -> None:
    with pytest.raises(BackendError, match=r"decoder_\w+ is in a loop: its step callback cannot run it"):
        kind.looped(both, (2, 4), lambda step, state: both[which].loop(*feeds()))
    kind.looped(both, (2, 4))


@only(FORECAST)
def test_a_relay_of_other_backends_or_lengths_is_an_error(both: Graphs, plainly: Graphs, kind: Kind) -> None:
    with pytest.raises(TypeError, match="expected all of one backend"):
        kind.looped((both[0], plainly[1]), (2,))
    state, per_step, constants = feeds(STEPS)
    with pytest.raises(ValueError, match="2 legs for 9 steps; expected one a step"):
        plainly[0].loop(state, per_step, constants, None, Relay((plainly[1],), forecast.legs(2, ())))


@only(FORECAST)
def test_threads_that_run_either_graph_wait_for_each_other(both: Graphs, plainly: Graphs, kind: Kind) -> None:
    """Whoever has a component waits for the GPU; a loop must not have the GPU and wait for a component."""
    steps = kind.patterns[EVERY_OTHER]
    expected = kind.looped(plainly, steps)
    kind.looped(both, steps)  # binds and captures
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
        target=lambda: [assert_same(kind.looped(both, steps), expected) for _ in range(15)], daemon=True
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
def on_cpu(kind: Kind, bundle_path: Path) -> dict[str, Any]:
    """The latents of CALLS on the CPU."""
    with Pipeline.load(bundle_path, "onnxruntime", threads=1) as pipe:
        return {name: called(pipe, name, kind.skip) for name in CALLS}


def called(pipe: Pipeline, name: str, skip: str) -> Any:
    task, given = CALLS[name]
    return getattr(pipe, task)(**given, seed=3, output_type="latent", skip=skip, **QUICK).images


@pytest.mark.parametrize("low_memory", [False, True])
def test_pictures_equal_the_cpu_s(on_cpu: dict[str, Any], machine: AnyMachine, kind: Kind, low_memory: bool) -> None:
    with machine.pipeline(low_memory=low_memory) as pipe:
        for name, expected in on_cpu.items():
            np.testing.assert_array_equal(called(pipe, name, kind.skip), expected)
            assert not np.array_equal(called(pipe, name, "none"), expected)
