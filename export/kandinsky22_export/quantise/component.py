"""One component's graph: calibrated, its sensitive layers found, written with Q/DQ pairs, compared with what it was."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import Component, Quantisation
from kandinsky22.errors import ExportError
from kandinsky22_export.progress import OnStage
from kandinsky22_export.quantise.effects import few_of, find_effects, worst
from kandinsky22_export.quantise.errors import layer_error
from kandinsky22_export.quantise.formats import NumberFormat
from kandinsky22_export.quantise.layers import Layer, find_layers
from kandinsky22_export.quantise.ranges import Magnitudes, best_scale, packed, unpacked
from kandinsky22_export.quantise.recording import Feeds
from kandinsky22_export.quantise.rewrite import insert_pairs
from kandinsky22_export.quantise.session import session, session_of
from kandinsky22_export.resuming import ARRAYS, Saved, numbers_of
from kandinsky22_export.tracing.export_graph import save, write_variant

RANGES = 3
"""Parts of the timesteps whose activations are counted apart, since they drift along a run."""

SENSITIVE = 0.12
"""Relative error of a layer's output from which it stays in floating point."""

BOUND = 0.3
"""Relative error of a component's first output from which the export is refused: its pictures would be others."""


def quantise_component(
    folder: Path,
    name: str,
    component: Component,
    fed: Sequence[Feeds],
    into: NumberFormat,
    note: OnStage,
    saved: Saved | None = None,
) -> Component:
    """Write a component of the bundle in `folder` anew, with its weights in eight bits.

    `fed` are what it was fed in real runs. What takes long is taken from `saved` where it is there, and kept in it.
    Raises ExportError where it computes something else then.
    """
    path, saved = folder / component.files[0], saved or Saved()
    ranges = _by_timestep(fed)
    note("computing references")
    expected = _outputs(path, component, fed)
    layers = find_layers(onnx.load(path, load_external_data=False))
    scales = _scales(path, name, layers, ranges, into, note, saved)
    middles = [states[len(states) // 2] for states in ranges]
    errors = saved.get(
        f"{name}_errors",
        numbers_of([layer.name for layer in layers]),
        lambda: _errors(path, layers, scales, into, middles, note),
        lambda: note("sensitive layers found before"),
    )
    chosen = _sensitive(layers, errors)
    others = [layer for layer in layers if layer.name not in chosen]
    read = {layer.activation: scales[layer.activation] for layer in others}
    found = saved.get(
        f"{name}_effects",
        ARRAYS,
        lambda: find_effects(path, component, others, read, into, few_of(ranges, component), note),
        lambda: note("effects of rounding found before"),
    )
    chosen |= worst(others, read, found, component.role)
    kept = {name: error for name, error in errors.items() if name in chosen}
    note("writing")
    model = onnx.load(path)
    insert_pairs(model, [layer for layer in layers if layer.name not in kept], scales, into)
    _write(folder, component, model)
    del model
    note("comparing with what it was")
    error = _error(expected, _outputs(path, component, fed))
    if not error <= BOUND:  # a NaN is an excess too
        raise ExportError(
            f"{name} in {into.name} is off by {error:.2f} of its output, where {BOUND} is allowed; calibrate it on "
            "prompts of its own kind (--calibration), or take precision fp16."
        )
    quantised = Quantisation(into.name, len(layers) - len(kept), kept, len(fed), error)
    return dataclasses.replace(component, quantisation=quantised)


def _by_timestep(fed: Sequence[Feeds]) -> list[list[Feeds]]:
    """What a component was fed, by ranges of timesteps from high to low; all in one where there are none."""
    if "timestep" not in fed[0]:
        return [list(fed)]
    ordered = sorted(fed, key=lambda feeds: -float(feeds["timestep"][0]))
    parts = (ordered[len(ordered) * part // RANGES : len(ordered) * (part + 1) // RANGES] for part in range(RANGES))
    return [part for part in parts if part]


def _scales(
    path: Path,
    name: str,
    layers: Sequence[Layer],
    ranges: Sequence[Sequence[Feeds]],
    into: NumberFormat,
    note: OnStage,
    saved: Saved,
) -> dict[str, float]:
    """The scale of each activation that layers read; how often magnitudes were there is kept by range of timesteps."""
    names = list(dict.fromkeys(layer.activation for layer in layers))
    opened = functools.cache(lambda: _Activations(path, names))
    total, done = sum(map(len, ranges)), 0
    seen: dict[str, list[Magnitudes]] = {each: [] for each in names}
    for number, states in enumerate(ranges):

        def counted(begin: int = done, states: Sequence[Feeds] = states) -> dict[str, Array]:
            found = {each: Magnitudes() for each in names}
            for place, feeds in enumerate(states, begin + 1):
                note(f"calibrating {place} of {total}")
                for each, values in opened().run(feeds):
                    found[each].add(values)
            return packed(found)

        done += len(states)
        told = functools.partial(note, f"calibrated before: {done} of {total}")
        arrays: dict[str, Array] = saved.get(f"{name}_range_{number + 1}", ARRAYS, counted, told)
        for each, magnitudes in unpacked(arrays).items():
            seen[each].append(magnitudes)
    return {each: best_scale(magnitudes, into) for each, magnitudes in seen.items()}


def _errors(
    path: Path,
    layers: Sequence[Layer],
    scales: Mapping[str, float],
    into: NumberFormat,
    states: Sequence[Feeds],
    note: OnStage,
) -> dict[str, float]:
    """The relative error of each layer's output: the largest of these states."""
    note("finding sensitive layers")
    model = onnx.load(path)
    weights = {each.name: each for each in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    by_activation: dict[str, list[Layer]] = {}
    for layer in layers:
        by_activation.setdefault(layer.activation, []).append(layer)
    errors = dict.fromkeys((layer.name for layer in layers), 0.0)
    session = _Activations(path, list(by_activation))
    for feeds in states:
        for name, values in session.run(feeds):
            for layer in by_activation[name]:
                weight = numpy_helper.to_array(weights[layer.weight])
                error = layer_error(layer, nodes[layer.name], values, weight, scales[name], into)
                errors[layer.name] = max(errors[layer.name], error)
    return errors


def _sensitive(layers: Sequence[Layer], errors: Mapping[str, float]) -> frozenset[str]:
    """Names of the layers that round badly, and of a graph's first and last convolution.

    These cost next to nothing, all that is drawn comes in through the one, and what the other rounds nothing smoothes.
    """
    convolutions = [layer.name for layer in layers if layer.kind == "Conv"]
    badly = [name for name, error in errors.items() if error > SENSITIVE]
    return frozenset([*convolutions[:1], *convolutions[-1:], *badly])


def _write(folder: Path, component: Component, model: onnx.ModelProto) -> None:
    """Replace a component's files: its graph, its data, and the variants, which are edited from the graph."""
    graph, data = (folder / name for name in component.files[:2])
    for file in (graph, data):
        file.unlink()
    save(model, graph, data.name)
    for variant in component.variants:
        write_variant(graph, variant)


class _Activations:
    """A graph that hands out what is inside it."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        model = onnx.load(path, load_external_data=False)
        inputs = {each.name for each in model.graph.input}
        self._given = [name for name in names if name in inputs]
        self._inside = [name for name in names if name not in inputs]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in self._inside)
        self._session = session_of(model, path, "activations")

    def run(self, feeds: Feeds) -> Iterator[tuple[str, Array]]:
        """Names and values of the activations."""
        for name in self._given:
            yield name, feeds[name]
        yield from zip(self._inside, self._session.run(self._inside, feeds), strict=True)


def _outputs(path: Path, component: Component, fed: Sequence[Feeds]) -> list[Array]:
    """The first output for each of a few feeds."""
    running, name = session(path), component.outputs[0].name
    return [running.run([name], feeds)[0] for feeds in fed[:: max(1, len(fed) // 6)]]


def _error(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Root of the mean squared difference over that of what is expected; of the worst of several."""
    pairs = zip(expected, found, strict=True)
    return max(float(np.sqrt(np.square(b - a).mean() / np.square(a).mean())) for a, b in pairs)
