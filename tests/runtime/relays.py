"""What the tests of relays run: a step graph and the one that takes some of its steps, in loops that are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import LoadedComponent, Relay
from kandinsky22.sampling import forecast, shallow

from .handmade import SHALLOW_GRAPHS, SKIPPING_GRAPHS, assert_same, feeds

STEPS = 9
Graphs = tuple[LoadedComponent, LoadedComponent]
Seen = list[tuple[int, dict[str, Array]]]
OnStep = Callable[[int, Mapping[str, Array]], "Mapping[str, Array] | None"]
Replacing = Mapping[int, Callable[[Mapping[str, Array]], Mapping[str, Array]]]


@dataclass(frozen=True)
class Kind:
    """A way of skipping: `other` takes the steps of each of the `patterns`, `loop` runs both, `graphs` are a bundle's.

    A callback sees arrays of the names `seen` after each step, and "model" in any case after one that is not skipped.
    """

    skip: str
    other: str
    graphs: Mapping[str, Any]
    seen: frozenset[str]
    patterns: Mapping[str, tuple[int, ...]]
    loop: Callable[[Graphs, tuple[int, ...], OnStep | None, tuple[int, int]], dict[str, Array]]

    def looped(
        self, graphs: Graphs, steps: tuple[int, ...], on_step: OnStep | None = None, size: tuple[int, int] = (8, 12)
    ) -> dict[str, Array]:
        """The last state of a run whose `steps` are skipped."""
        return self.loop(graphs, steps, on_step, size)

    def watched(self, graphs: Graphs, steps: tuple[int, ...], replacing: Replacing) -> tuple[dict[str, Array], Seen]:
        """The last state, and what a callback saw that replaces parts of the state after some steps."""
        seen: Seen = []

        def look(step: int, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
            seen.append((step, {name: array.copy() for name, array in arrays.items()}))
            return replacing[step](arrays) if step in replacing else None

        return self.looped(graphs, steps, look), seen


def assert_same_runs(ours: tuple[dict[str, Array], Seen], theirs: tuple[dict[str, Array], Seen]) -> None:
    """Of two watched runs: the last states, and what was seen after each step, are the same to the bit."""
    assert_same(ours[0], theirs[0])
    assert [step for step, _ in ours[1]] == [step for step, _ in theirs[1]] == list(range(STEPS))
    for (_, mine), (_, reference) in zip(ours[1], theirs[1], strict=True):
        assert_same(mine, reference)


def _forecast(
    graphs: Graphs, steps: tuple[int, ...], on_step: OnStep | None, size: tuple[int, int]
) -> dict[str, Array]:
    state, per_step, constants = feeds(STEPS, size)
    timesteps = per_step["timestep"][:, 0].astype(np.int64)
    return graphs[0].loop(
        state | forecast.nothing_kept(state["latents"], 4),
        per_step | {"forecast_weights": list(forecast.weights(timesteps, steps))},
        constants,
        on_step,
        Relay((graphs[1],), forecast.legs(STEPS, steps)),
    )


def _shallow(graphs: Graphs, steps: tuple[int, ...], on_step: OnStep | None, size: tuple[int, int]) -> dict[str, Array]:
    state, per_step, constants = feeds(STEPS, size)
    kept = shallow.nothing_kept(graphs[1].component, len(state["latents"]), 2, size)
    relay = Relay((graphs[1],), shallow.legs(STEPS, steps))
    return graphs[0].loop(state | kept, per_step, constants, on_step, relay)


FORECAST = Kind(
    "forecast:3",
    "decoder_forecast",
    SKIPPING_GRAPHS,
    frozenset({"latents", "x0_before", "model_0", "model_1"}),
    {
        "none": (),
        "every other": (2, 4, 6),
        "two in a row": (2, 3, 5, 6),
        "the last": (4, 8),
        "all but two": (2, 3, 4, 5, 6, 7, 8),
    },
    _forecast,
)
SHALLOW = Kind(
    "shallow:3",
    "decoder_step_shallow",
    SHALLOW_GRAPHS,
    frozenset({"latents", "x0_before", "features", "model"}),
    {
        "none": (),
        "every other": (1, 3, 5, 7),
        "two in a row": (1, 2, 4, 5, 7, 8),
        "all but the first": (1, 2, 3, 4, 5, 6, 7, 8),
    },
    _shallow,
)
