"""Step graphs with outputs that are no state, on stand-ins for the GPU: on_step sees what the plain loop shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError
from kandinsky22.arrays import Array
from kandinsky22.backends import LoadedComponent, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle.bundle import Bundle

from .fake_machines import MACHINES, SCHEDULES, load
from .handmade import DECODER_STEP, GRAPHS, assert_same, feeds, write_bundle

TALKATIVE_STEP = DECODER_STEP.replace("float[B,4,h,w] x0)", "float[B,4,h,w] x0, float[B,4,h,w] m, float[G,B] weighted)")
"""The step that also gives its network's output, in the shape of the state, and guidance, in a shape of its own."""
Seen = list[tuple[int, dict[str, Array]]]


@pytest.fixture
def talkative(tmp_path: Path) -> Bundle:
    return Bundle(write_bundle(tmp_path / "talkative", {**GRAPHS, "decoder_step": TALKATIVE_STEP}))


@pytest.fixture
def plainly(talkative: Bundle) -> LoadedComponent:
    return CPU.load(talkative, "decoder_step", Settings(threads=1))


@pytest.fixture(params=[(kind, when) for kind in MACHINES for when in SCHEDULES], ids="-".join)
def component(
    request: pytest.FixtureRequest, plainly: LoadedComponent, talkative: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Any:
    kind, when = request.param
    machine = MACHINES[kind](talkative, monkeypatch, SCHEDULES[when])
    loaded = load(machine, "decoder_step")
    yield loaded
    loaded.close()
    assert not any(machine.cuda.alive().values())


@pytest.mark.parametrize("when", [set(), {0}, {2, 3}, {5}], ids=str)
def test_on_step_sees_them_beside_the_state(component: Any, plainly: LoadedComponent, when: set[int]) -> None:
    def watched(loaded: LoadedComponent) -> tuple[dict[str, Array], Seen]:
        seen: Seen = []

        def look(step: int, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
            seen.append((step, {name: array.copy() for name, array in arrays.items()}))
            return {"latents": -arrays["latents"]} if step in when else None

        return loaded.loop(*feeds(), look), seen

    (ours, we_saw), (theirs, they_saw) = watched(component), watched(plainly)
    assert_same(ours, theirs)
    assert ours.keys() == {"latents", "x0_before"}
    assert [step for step, _ in we_saw] == [step for step, _ in they_saw] == list(range(6))
    for (_, mine), (_, reference) in zip(we_saw, they_saw, strict=True):
        assert_same(mine, reference)
        assert {name: array.shape for name, array in mine.items()} == {
            "latents": (2, 4, 8, 12),
            "x0_before": (2, 4, 8, 12),
            "m": (2, 4, 8, 12),
            "weighted": (2, 2),
        }


def test_nobody_looks_and_the_last_state_is_the_same(component: Any, plainly: LoadedComponent) -> None:
    for size in ((8, 12), (12, 8)):
        assert_same(component.loop(*feeds(5, size)), plainly.loop(*feeds(5, size)))


def test_they_are_the_network_s_own(component: Any) -> None:
    """By NumPy: `m` is tanh of latents, pull of the embeddings, and time."""
    state, per_step, constants = feeds(1)
    found: dict[str, Array] = {}
    component.loop(state, per_step, constants, lambda step, arrays: found.update(arrays))
    weighted = constants["image_embeds"].astype(np.float64).mean(2) * constants["guidance"].astype(np.float64)[:, None]
    time = per_step["timestep"][0] + constants["ranks"].sum() * constants["rank_weight"]
    m = np.tanh(state["latents"] + weighted.sum(0)[:, None, None, None] + 0.001 * time)
    np.testing.assert_allclose(found["weighted"], weighted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["m"], m, rtol=1e-4, atol=1e-5)


def test_what_is_no_state_cannot_be_replaced(component: Any, plainly: LoadedComponent) -> None:
    for loaded in (component, plainly):
        with pytest.raises(BackendError, match=r"callback replaced m; expected parts of latents, x0_before\.$"):
            loaded.loop(*feeds(), lambda step, arrays: {"m": arrays["m"]})
    assert_same(component.loop(*feeds()), plainly.loop(*feeds()))
