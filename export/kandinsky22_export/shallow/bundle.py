"""The shallow steps of a bundle's decoders, in place: where each is cut is chosen first, and cut is what is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import DECODERS, FEATURES, SHALLOWS, Component, Cut, GraphCheck, Manifest, Role
from kandinsky22.errors import ExportError
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.quantise.recording import Feeds
from kandinsky22_export.quantise.session import session
from kandinsky22_export.shallow import cuts
from kandinsky22_export.shallow.choice import PLACES, choose, pairs, pairs_of
from kandinsky22_export.tracing.comparison import BOUNDS, relative_error
from kandinsky22_export.tracing.export_graph import save

MOST = 4
"""Prompts that are painted to compare branches: their errors hardly differ from prompt to prompt."""

NAMES: Mapping[Role, str] = {
    Role.DECODER: "decoder_step_shallow",
    Role.CONTROLNET_DECODER: "decoder_step_shallow_controlnet",
    Role.INPAINT_DECODER: "decoder_step_shallow_inpaint",
}
"""Names of the components, by the role of the decoder that they are cut from."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Where a decoder is cut, and states of a run to compare both graphs on."""

    cut: Cut
    states: list[Feeds]


def keep_pairs(component: Component, fed: list[Feeds], number: int) -> list[Feeds]:
    """Of a decoder's run for one of the first prompts, what `hand_out_features` takes. It is a `recording.Keep`."""
    return pairs_of(fed) if number < MOST and component.role in DECODERS else []


def hand_out_features(
    folder: Path, manifest: Manifest, fed: dict[str, list[Feeds]], note: OnProgress
) -> tuple[Manifest, dict[str, Chosen]]:
    """Let the decoders of the bundle in `folder` hand out the features at which they are cut best, by their names.

    `fed` has the states that `keep_pairs` kept, by the names of decoders; it is emptied on the way. Raises ExportError
    where a decoder cannot be cut.
    """
    components, chosen = dict(manifest.components), {}
    for name, component in manifest.components.items():
        if component.role not in DECODERS:
            continue
        note(name, "choosing where its shallow step is cut")
        path, seen = folder / component.files[0], pairs(fed.pop(name))
        found = choose(path, component, seen)
        if found is None:
            raise ExportError(
                f"{name} has no branch at which a shallow step could be cut: its UNet joins nothing at the size of the "
                "latents; export it without --shallow."
            )
        features, cut = found
        model = onnx.load(path, load_external_data=False)
        spec = cuts.hand_out(model, component, features)
        path.write_bytes(model.SerializeToString())
        components[name] = dataclasses.replace(component, outputs=(*component.outputs, spec))
        chosen[name] = Chosen(cut, [pair.now for pair in seen[: len(PLACES)]])
    return dataclasses.replace(manifest, components=components), chosen


def add_shallow_steps(folder: Path, manifest: Manifest, chosen: Mapping[str, Chosen], note: OnProgress) -> Manifest:
    """Write the shallow step of each chosen decoder of the bundle in `folder`; the manifest with them.

    Raises ExportError where one computes something else than its decoder does behind the cut.
    """
    components: dict[str, Component] = {}
    for name, component in manifest.components.items():
        components[name] = component
        if name in chosen:
            shallow = NAMES[component.role]
            note(shallow, "cutting")
            components[shallow] = _shallow_step(folder, shallow, component, chosen[name])
    return dataclasses.replace(manifest, components=components)


def _shallow_step(folder: Path, name: str, decoder: Component, chosen: Chosen) -> Component:
    whole, graph = folder / decoder.files[0], folder / f"onnx/{name}.onnx"
    spec = next(output for output in decoder.outputs if output.name == FEATURES)
    model = onnx.load(whole)
    cuts.cut_off(model, spec)
    inputs = {each.name for each in model.graph.input}
    # Its weights a second time: they are a few percent of the decoder's.
    save(model, graph, f"{name}.onnx.data")
    specs = {each.name: each for each in (*decoder.inputs, spec)}
    quantisation = decoder.quantisation
    if quantisation is not None:
        nodes = {node.name for node in model.graph.node}
        kept = {layer: error for layer, error in quantisation.kept.items() if layer in nodes}
        quantisation = dataclasses.replace(quantisation, layers=_quantised_layers(model), kept=kept)
    component = dataclasses.replace(
        decoder,
        role=SHALLOWS[decoder.role],
        files=(f"onnx/{name}.onnx", f"onnx/{name}.onnx.data"),
        inputs=tuple(specs[each.name] for each in model.graph.input),
        outputs=tuple(output for output in decoder.outputs if output.name != FEATURES),
        parameters=sum(int(np.prod(each.dims)) for each in model.graph.initializer),
        per_step=tuple(each for each in decoder.per_step if each in inputs),
        quantisation=quantisation,
        cut=chosen.cut,
    )
    checks = _compare(name, whole, graph, component, chosen.states)
    return dataclasses.replace(component, checks=tuple(checks))


def _quantised_layers(model: onnx.ModelProto) -> int:
    """How many convolutions and products have weights of eight bits."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    return sum(set(node.input[:2]) <= dequantised for node in layers)


def _compare(name: str, whole: Path, graph: Path, component: Component, states: list[Feeds]) -> list[GraphCheck]:
    """The manifest's record of how far a shallow step is from its decoder, given the features of the same step."""
    full, shallow = session(whole), session(graph)
    names = [output.name for output in component.outputs]
    bound, found = BOUNDS[component.precision], []
    for state in states:
        *expected, features = full.run([*names, FEATURES], state)
        fed: dict[str, Array] = {**state, FEATURES: features}
        given = shallow.run(names, {spec.name: fed[spec.name] for spec in component.inputs})
        error = max(relative_error(ours, theirs) for ours, theirs in zip(given, expected, strict=True))
        if not error <= bound:  # a NaN is an excess too
            raise ExportError(
                f"The graph of {name} differs from the decoder that it is cut from: it is off by {error:.1e} of its "
                f"largest value, where {bound:.0e} is allowed; nothing was kept."
            )
        (_, _, *sizes), (branches, rows) = state["latents"].shape, state["image_embeds"].shape[:2]
        found.append(GraphCheck({"B": rows, "G": branches, "h": sizes[0], "w": sizes[1]}, error, bound))
    return found
