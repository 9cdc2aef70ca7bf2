"""What rounding an activation does to a component's output, and which layers are better kept for it.

An error of a layer's own output says little about that: what a residual stream carries to the last convolution is not
smoothed by anything, and of a transformer's tokens only one may be read in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import Component, Role
from kandinsky22_export.quantise.formats import NumberFormat
from kandinsky22_export.quantise.layers import Layer
from kandinsky22_export.quantise.recording import Feeds
from kandinsky22_export.quantise.rewrite import rounding
from kandinsky22_export.quantise.session import session_of

SIDE = 32
"""Rows and columns of latents that a state is cut to: a quarter of a 512x512 picture takes a quarter of the time."""

SHARE, OF_PRIOR = 0.03, 0.1
"""How much of a component's work may be kept for its effect. The prior is 2 % of a picture: more of it costs less."""

UNFAIR, MUCH = 4.0, 0.1
"""How many times its share of the work must be what a layer has of the squared error, to be kept; and how much that is
at least."""

OF_EACH = 4
"""States of each range of timesteps, of components that see no picture."""

_SWITCHES = "rounded"


def few_of(ranges: Sequence[Sequence[Feeds]], component: Component) -> list[Feeds]:
    """The states that effects are found on: of each range of timesteps the middle one, and more where no picture is in
    it, since these are small, and differ more from prompt to prompt.
    """
    has_picture = any(side in spec.shape for spec in component.inputs for side in ("h", "w"))
    count = 1 if has_picture else OF_EACH
    return [states[place] for states in ranges for place in sorted({_place(states, i, count) for i in range(count)})]


def _place(states: Sequence[Feeds], index: int, count: int) -> int:
    """Where the middle of the `index`-th of so many parts is."""
    return (2 * index + 1) * len(states) // (2 * count)


def find_effects(
    path: Path,
    component: Component,
    layers: Sequence[Layer],
    scales: Mapping[str, float],
    into: NumberFormat,
    states: Sequence[Feeds],
    note: Callable[[str], None],
) -> dict[str, Array]:
    """Of each activation that has a scale, in their order: "effects" (n,), the error of the component's first output
    where it is rounded for these `layers`, relative and as root mean square; and "sizes" (n,), its numbers.

    An effect is that of the activation alone where it has `MUCH` of the squared error, and a share of its neighbours'
    together where these have less, see `halved`.
    """
    if not scales:
        return {"effects": np.zeros(0), "sizes": np.zeros(0)}
    running = _Switched(path, component.outputs[0].name, layers, scales, into)
    states = [_cut(feeds, component) for feeds in states]
    nothing = range(0)
    expected = [running.run(feeds, nothing) for feeds in states]

    def square(rounded: range) -> float:
        note(f"finding effects of rounding: {rounded.start + 1} to {rounded.stop} of {len(scales)}")
        pairs = zip(states, expected, strict=True)
        errors = [
            np.square(running.run(feeds, rounded) - exact).mean() / np.square(exact).mean() for feeds, exact in pairs
        ]
        return float(np.mean(errors))

    return {"effects": np.sqrt(halved(len(scales), square)), "sizes": running.sizes(states[0])}


def halved(count: int, square: Callable[[range], float]) -> Array:
    """What each of `count` neighbours has of a squared error, (count,), where `square` is that of some together.

    Roundings know nothing of each other, so that their squared errors add up. All are asked for together first, and
    what has `MUCH` of the error is halved, down to single ones; the others have even shares of what is theirs together,
    since none of them alone can have that much. Of 225 it takes some 40 runs.
    """
    found = {range(count): square(range(count))}
    while True:
        least = max(MUCH * sum(found.values()), np.finfo(float).tiny)
        wide = [each for each, together in found.items() if len(each) > 1 and together >= least]
        if not wide:
            break
        for each in wide:
            del found[each]
            middle = len(each) // 2
            found |= {half: square(half) for half in (each[:middle], each[middle:])}
    shares = np.zeros(count)
    for each, together in found.items():
        shares[each.start : each.stop] = together / len(each)
    return shares


def worst(
    layers: Sequence[Layer], scales: Mapping[str, float], found: Mapping[str, Array], role: Role
) -> frozenset[str]:
    """Names of those `layers`, which would be quantised, that have far more of the error than of the work.

    Together they are within the share of the work for that. Layers that read the same activation are kept together: it
    is rounded for all of them or for none.
    """
    sizes, effects = (dict(zip(scales, found[name].tolist(), strict=True)) for name in ("sizes", "effects"))
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.activation, []).append(layer)
    work = _shares({name: sum(_work(layer, sizes[name]) for layer in read) for name, read in readers.items()})
    error = _shares({name: effects[name] ** 2 for name in readers})
    left, kept = OF_PRIOR if role is Role.PRIOR else SHARE, set()
    for name in sorted(readers, key=lambda name: error[name] / work[name], reverse=True):
        if error[name] >= max(MUCH, UNFAIR * work[name]) and work[name] <= left:
            left -= work[name]
            kept |= {layer.name for layer in readers[name]}
    return frozenset(kept)


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    """Each amount as a share of all."""
    whole = sum(amounts.values()) or 1.0
    return {name: amount / whole for name, amount in amounts.items()}


def _work(layer: Layer, size: float) -> float:
    """Products of a layer whose activation has so many numbers, without what strides leave out."""
    channels = layer.shape[1 - layer.axis]
    return size / channels * layer.parameters


def _cut(feeds: Feeds, component: Component) -> Feeds:
    """What a component was fed, for the upper left of the picture alone."""
    cut = {}
    for spec in component.inputs:
        array = feeds[spec.name]
        for axis, dim in enumerate(spec.shape):
            factor, _, side = dim.rpartition("*") if isinstance(dim, str) else ("", "", "")
            if side in ("h", "w"):
                array = array.take(range(min(array.shape[axis], SIDE * int(factor or 1))), axis)
        cut[spec.name] = array
    return cut


class _Switched:
    """A graph in which each activation can be rounded or not."""

    def __init__(
        self, path: Path, output: str, layers: Sequence[Layer], scales: Mapping[str, float], into: NumberFormat
    ) -> None:
        model = onnx.load(path, load_external_data=False)
        graph, self._names, self._output = model.graph, list(scales), output
        weight = next(each for each in graph.initializer if each.name == layers[0].weight)
        dtype = helper.tensor_dtype_to_np_dtype(weight.data_type)
        before = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        readers = {layer.name for layer in layers}
        for node in before:
            if node.name in readers:
                node.input[0] = f"{node.input[0]}/chosen"
        made = {
            name: _switch(graph, name, place, np.array(scale, dtype), into)
            for place, (name, scale) in enumerate(scales.items())
        }
        nodes = [node for each in graph.input for node in made.get(each.name, ())]
        for node in before:
            nodes.append(node)
            nodes += [switch for name in node.output for switch in made.get(name, ())]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [len(scales)]))
        graph.output.extend(helper.make_empty_tensor_value_info(f"{name}/size") for name in scales)
        self._session = session_of(model, path, "switched")

    def run(self, feeds: Feeds, rounded: range) -> Array:
        """The component's output where some activations are rounded."""
        output: Array = self._session.run([self._output], feeds | self._switches(rounded))[0]
        return np.asarray(output, np.float64)

    def sizes(self, feeds: Feeds) -> Array:
        """How many numbers each activation has."""
        found = self._session.run([f"{name}/size" for name in self._names], feeds | self._switches(range(0)))
        return np.array(found, np.float64)

    def _switches(self, rounded: range) -> Feeds:
        return {_SWITCHES: np.isin(np.arange(len(self._names)), rounded)}


def _switch(graph: onnx.GraphProto, name: str, place: int, scale: Array, into: NumberFormat) -> list[NodeProto]:
    """Nodes from an activation to "NAME/chosen", which is rounded where its switch is on, and to "NAME/size"."""
    graph.initializer.append(numpy_helper.from_array(np.array(place, np.int64), f"{name}/place"))
    return [
        *rounding(graph, name, scale, into),
        helper.make_node("Gather", [_SWITCHES, f"{name}/place"], [f"{name}/switch"]),
        helper.make_node("Where", [f"{name}/switch", f"{name}/float", name], [f"{name}/chosen"]),
        helper.make_node("Size", [name], [f"{name}/size"]),
    ]
