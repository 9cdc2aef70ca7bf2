"""Loops over full and shallow steps: on stand-ins for the GPU they equal the plain loop's bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Cancelled, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import LoadedComponent, Relay, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.sampling import shallow

from .fake_cuda import WAITING
from .fake_machines import MACHINES, SCHEDULES, AnyMachine, load
from .handmade import SHALLOW_GRAPHS, assert_same, feeds, write_bundle
from .test_relay import CALLS, OnStep, Replacing, Seen, assert_same_runs, called

STEPS = 9
SHALLOW: dict[str, tuple[int, ...]] = {
    "none": (),
    "every other": (1, 3, 5, 7),
    "two in a row": (1, 2, 4, 5, 7, 8),
    "all but the first": (1, 2, 3, 4, 5, 6, 7, 8),
}
"""Steps of which the top level alone is run."""


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "shallow", SHALLOW_GRAPHS)


@pytest.fixture(scope="module")
def plainly(bundle_path: Path) -> tuple[LoadedComponent, LoadedComponent]:
    """Step and shallow step on the CPU, with the plain loop."""
    bundle = Bundle(bundle_path)
    step, other = (CPU.load(bundle, name, Settings(threads=1)) for name in ("decoder_step", "decoder_step_shallow"))
    return step, other


@pytest.fixture(params=[(kind, when) for kind in MACHINES for when in SCHEDULES], ids="-".join)
def machine(
    request: pytest.FixtureRequest, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, plainly: Any
) -> AnyMachine:
    kind, when = request.param
    return MACHINES[kind](Bundle(bundle_path), monkeypatch, SCHEDULES[when])


@pytest.fixture
def both(machine: AnyMachine) -> Iterator[tuple[LoadedComponent, LoadedComponent]]:
    """Step and shallow step on the stand-in."""
    components: Any = load(machine, "decoder_step"), load(machine, "decoder_step_shallow")
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
    """The last state of a run whose `steps` are shallow."""
    state, per_step, constants = feeds(STEPS, size)
    kept = shallow.nothing_kept(graphs[1].component, len(state["latents"]), 2, size)
    relay = Relay((graphs[1],), shallow.legs(STEPS, steps))
    return graphs[0].loop(state | kept, per_step, constants, on_step, relay)


def watched(graphs: Any, steps: tuple[int, ...], replacing: Replacing) -> tuple[dict[str, Array], Seen]:
    seen: Seen = []

    def look(step: int, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
        seen.append((step, {name: array.copy() for name, array in arrays.items()}))
        return replacing[step](arrays) if step in replacing else None

    return looped(graphs, steps, look), seen


@pytest.mark.parametrize("steps", SHALLOW.values(), ids=SHALLOW)
def test_the_last_state_is_the_plain_loop_s(both: Any, plainly: Any, steps: tuple[int, ...]) -> None:
    for size in ((8, 12), (12, 8), (8, 12)):
        assert_same(looped(both, steps, size=size), looped(plainly, steps, size=size))


@pytest.mark.parametrize("steps", SHALLOW.values(), ids=SHALLOW)
def test_a_callback_sees_what_the_plain_loop_shows(both: Any, plainly: Any, steps: tuple[int, ...]) -> None:
    ours, theirs = watched(both, steps, {}), watched(plainly, steps, {})
    assert_same_runs(ours, theirs)
    for _, arrays in theirs[1]:
        assert arrays.keys() == {"latents", "x0_before", "model", "features"}


@pytest.mark.parametrize("when", [{0}, {1}, {3}, {4}, {7, 8}, {8}, set(range(STEPS))], ids=str)
@pytest.mark.parametrize("steps", SHALLOW.values(), ids=SHALLOW)
def test_a_callback_replaces_the_state_before_steps_of_either_kind(
    both: Any, plainly: Any, steps: tuple[int, ...], when: set[int]
) -> None:
    def flipped(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"latents": np.flip(arrays["latents"], 0) * np.float32(0.5)}

    replacing = dict.fromkeys(when, flipped)
    assert_same_runs(watched(both, steps, replacing), watched(plainly, steps, replacing))


def test_the_plain_loop_is_steps_by_hand(plainly: Any) -> None:
    """Run by run, with the features of the last full step kept by hand."""
    steps = SHALLOW["two in a row"]
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
    found = looped(plainly, steps)
    np.testing.assert_array_equal(found["latents"], latents)
    np.testing.assert_array_equal(found["x0_before"], x0)
    np.testing.assert_array_equal(found["features"], features)
    assert not np.array_equal(looped(plainly, ())["latents"], latents)


def test_between_steps_of_either_kind_the_host_only_queues_work(both: Any, machine: AnyMachine) -> None:
    looped(both, SHALLOW["every other"])  # captures
    before = len(machine.cuda.calls)
    looped(both, SHALLOW["every other"])
    calls = machine.cuda.calls[before:]
    timed = ("cudaEventCreateWithFlags", (machine.cuda.cudaEventDefault,))  # the marks of steps
    marks = [place for place, call in enumerate(calls) if call == timed]
    assert len(marks) == STEPS + 1
    between = {name for name, _ in calls[marks[0] : marks[-1]]}
    assert between <= {"cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventCreateWithFlags", "cudaEventRecord"}
    assert not between & WAITING


def test_a_callback_stops_the_loop_and_both_graphs_run_again(both: Any, plainly: Any, machine: AnyMachine) -> None:
    steps = SHALLOW["every other"]
    looped(both, steps)
    before = machine.cuda.alive()

    def stop(step: int, state: Mapping[str, Array]) -> None:
        if step == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        looped(both, steps, stop)
    assert machine.cuda.alive() == before
    assert_same(looped(both, steps), looped(plainly, steps))


@pytest.fixture(scope="module")
def on_cpu(bundle_path: Path) -> dict[str, Any]:
    """The latents of CALLS on the CPU."""
    with Pipeline.load(bundle_path, "onnxruntime", threads=1) as pipe:
        return {name: called(pipe, name, "shallow") for name in CALLS}


@pytest.mark.parametrize("low_memory", [False, True])
def test_pictures_equal_the_cpu_s(on_cpu: dict[str, Any], machine: AnyMachine, low_memory: bool) -> None:
    with machine.pipeline(low_memory=low_memory) as pipe:
        for name, expected in on_cpu.items():
            np.testing.assert_array_equal(called(pipe, name, "shallow:3"), expected)
            assert not np.array_equal(called(pipe, name, "none"), expected)
