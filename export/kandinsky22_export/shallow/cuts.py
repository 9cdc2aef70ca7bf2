"""Where a decoder's graph can be cut, and what is left of it on this side of a cut.

A UNet joins what comes up from its lower levels with what it kept on the way down: a Concat a residual block. Of such a
Concat at the size of the latents, the first half are features of everything below. They change little from step to
step; given those of an earlier step, what is left are a few layers of the top level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnx import NodeProto, TensorProto, helper

from kandinsky22.bundle.manifest import FEATURES, Component, TensorSpec

_OUT, _IN = "features_out", "features_in"
"""What names of nodes begin with that hand features out, and take them in."""


def branches(model: onnx.ModelProto) -> list[str]:
    """Names of the features at which a decoder's step can be cut, by branch: 0 leaves the fewest layers to be run.

    Empty where the network has no joints of the latents' size with convolutions before and behind.
    """
    graph = model.graph
    sizes = _sizes(model)
    height, width = sizes["latents"][2:]
    above = _tensors_above(graph, [node.output[0] for node in graph.node if node.op_type == "Conv"][-1:])
    found = []
    for node in graph.node:
        if node.op_type == "Concat" and len(node.input) == 2 and node.output[0] in above:
            joined = [sizes.get(name, ()) for name in node.input]
            if all(len(each) == 4 and each[2:] == (height, width) for each in joined) and _convolved(graph, node):
                found.append(node.input[0])
    return found[::-1]


def hand_out(model: onnx.ModelProto, component: Component, features: str) -> TensorSpec:
    """Let a decoder's step hand features out as one more output; what the manifest says of it.

    They are float32 (G, B, C, h, w), as `image_embeds` (G, B, E) have branches and pictures.
    """
    channels = _sizes(model)[features][1]
    assert isinstance(channels, int)
    spec = TensorSpec(FEATURES, "float32", ("G", "B", channels, *component.inputs[0].shape[2:]))
    names = {name: f"{_OUT}/{name}" for name in ("cast", "rows", "map", "shape")}
    model.graph.node.extend(
        [
            helper.make_node("Cast", [features], [names["cast"]], names["cast"], to=TensorProto.FLOAT),
            helper.make_node("Shape", ["image_embeds"], [names["rows"]], names["rows"], start=0, end=2),
            helper.make_node("Shape", [features], [names["map"]], names["map"], start=1),
            helper.make_node("Concat", [names["rows"], names["map"]], [names["shape"]], names["shape"], axis=0),
            helper.make_node("Reshape", [names["cast"], names["shape"]], [FEATURES], f"{_OUT}/split"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, spec.shape))
    return spec


def cut_off(model: onnx.ModelProto, spec: TensorSpec) -> None:
    """Leave of a decoder's step what is behind the features that it hands out, which become an input in their place.

    External data need not be loaded.
    """
    graph = model.graph
    handing = {node.name: node for node in graph.node if node.name.startswith(f"{_OUT}/")}
    features = handing[f"{_OUT}/cast"].input[0]
    kept = [output for output in graph.output if output.name != FEATURES]
    needed = _tensors_above(graph, [output.name for output in kept], until={features})
    nodes = [node for node in graph.node if node.name not in handing and needed & set(node.output) - {features}]
    entering = list(_taking_in(features, _type_of(model, features)))
    inputs = [each for each in graph.input if each.name in needed]
    inputs.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, spec.shape))
    weights = [each for each in graph.initializer if each.name in needed]
    shapes = [each for each in graph.value_info if each.name in needed]
    for field, values in (
        (graph.node, [*entering, *nodes]),
        (graph.input, inputs),
        (graph.output, kept),
        (graph.initializer, weights),
        (graph.value_info, shapes),
    ):
        del field[:]
        field.extend(values)


def _taking_in(features: str, kind: int) -> Iterator[NodeProto]:
    """Nodes that make of the input (G, B, C, h, w) what the graph calls `features` (G·B, C, h, w)."""
    names = {name: f"{_IN}/{name}" for name in ("rows", "map", "shape", "joined")}
    minus_one = helper.make_tensor(names["rows"], TensorProto.INT64, [1], [-1])
    yield helper.make_node("Constant", [], [names["rows"]], names["rows"], value=minus_one)
    yield helper.make_node("Shape", [FEATURES], [names["map"]], names["map"], start=2)
    yield helper.make_node("Concat", [names["rows"], names["map"]], [names["shape"]], names["shape"], axis=0)
    yield helper.make_node("Reshape", [FEATURES, names["shape"]], [names["joined"]], names["joined"])
    yield helper.make_node("Cast", [names["joined"]], [features], f"{_IN}/cast", to=kind)


def _tensors_above(graph: onnx.GraphProto, names: Collection[str], until: Collection[str] = ()) -> set[str]:
    """These tensors and all that they are made of; what is made before those of `until` is left out."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name in makers and name not in until:
                waiting.extend(makers[name].input)
    return found


def _convolved(graph: onnx.GraphProto, node: NodeProto) -> bool:
    """Whether a convolution comes before a joint; none does before latents and a hint are joined."""
    above = _tensors_above(graph, node.input[:1])
    return any(each.op_type == "Conv" and each.output[0] in above for each in graph.node)


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from model.graph.value_info
    yield from model.graph.input
    yield from model.graph.output


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shapes of tensors, with names for sizes that vary."""
    return {
        value.name: tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in _values(model)
    }


def _type_of(model: onnx.ModelProto, name: str) -> int:
    return next(int(value.type.tensor_type.elem_type) for value in _values(model) if value.name == name)
