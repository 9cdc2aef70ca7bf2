"""Which branch a decoder's step is cut at: the shallowest that is not much worse than the best, on real runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import FEATURES, Component, Cut
from kandinsky22_export.quantise.recording import Feeds
from kandinsky22_export.quantise.session import session_of
from kandinsky22_export.shallow import cuts

TOLERANCE = 1.25
"""How many times the error of the best branch that of the chosen one may be. Each branch costs about twice the one
before it, and the errors of neighbours are close: see docs/benchmarks.md."""

PLACES = (0.2, 0.5, 0.8)
"""Where in a run features are compared, as shares of its steps."""


class Pair(NamedTuple):
    """What a decoder is fed in two neighbouring steps of a run."""

    before: Feeds
    now: Feeds


def pairs_of(fed: Sequence[Feeds]) -> list[Feeds]:
    """Of what a decoder was fed in a run, neighbours at PLACES, one after the other: see `pairs`."""
    places = [max(1, round(share * (len(fed) - 1))) for share in PLACES]
    return [fed[place + side] for place in places for side in (-1, 0)]


def pairs(kept: Sequence[Feeds]) -> list[Pair]:
    """The neighbours that `pairs_of` has kept of one run or several."""
    return [Pair(before, now) for before, now in zip(kept[::2], kept[1::2], strict=True)]


def choose(path: Path, component: Component, seen: Sequence[Pair]) -> tuple[str, Cut] | None:
    """Name of the features at which the step in `path` is cut, and the record; None where it has no branches.

    A branch's error is that of the network's guided output, relative and as root mean square, where a step uses the
    features of the step before it.
    """
    found = cuts.branches(onnx.load(path, load_external_data=False))
    if not found:
        return None
    own = _features(path, found, seen)
    errors = [_error(path, component, features, own, seen) for features in found]
    branch = next(place for place, error in enumerate(errors) if error <= TOLERANCE * min(errors))
    return found[branch], Cut(branch, tuple(errors), len(seen))


class _Full(NamedTuple):
    """What a full step gives: the network's output, and features of the step before by name."""

    model: Array
    before: Mapping[str, Array]


def _features(path: Path, found: Sequence[str], seen: Sequence[Pair]) -> list[_Full]:
    """Of each pair, the output of the second step and the features of the first."""
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in found)
    running = session_of(model, path, "cut")
    return [
        _Full(
            running.run(["model"], pair.now)[0],
            dict(zip(found, running.run(list(found), pair.before), strict=True)),
        )
        for pair in seen
    ]


def _error(path: Path, component: Component, features: str, own: Sequence[_Full], seen: Sequence[Pair]) -> float:
    """The error where the step is cut at these features."""
    model = onnx.load(path, load_external_data=False)
    spec = cuts.hand_out(model, component, features)
    cuts.cut_off(model, spec)
    taken = {each.name for each in model.graph.input}
    running = session_of(model, path, "cut")
    wrong = right = 0.0
    for full, pair in zip(own, seen, strict=True):
        given = full.before[features]
        branches = pair.now["image_embeds"].shape[:2]
        fed = {name: array for name, array in pair.now.items() if name in taken}
        fed[FEATURES] = given.astype(np.float32).reshape(*branches, *given.shape[1:])
        (output,) = running.run(["model"], fed)
        wrong += float(np.square(output - full.model, dtype=np.float64).sum())
        right += float(np.square(full.model, dtype=np.float64).sum())
    return float(np.sqrt(wrong / right))
