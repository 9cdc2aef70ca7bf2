"""A graph with Q/DQ pairs: the form of quantised graphs that all backends read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from kandinsky22.arrays import Array
from kandinsky22_export.quantise.formats import NumberFormat
from kandinsky22_export.quantise.layers import Layer

SMALLEST = np.float32(2.0**-24)
"""Of scales: the smallest number of half precision that is none but zero."""


def quantised_weight(weight: Array, axis: int, dtype: np.dtype[Any], into: NumberFormat) -> tuple[Array, Array]:
    """A weight in a format of eight bits, and a scale of type `dtype` for each output channel along `axis`."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    scale: Array = np.maximum(largest / into.largest, SMALLEST).astype(dtype)
    shape = [-1 if each == axis else 1 for each in range(weight.ndim)]
    return into.encode(weight / scale.astype(np.float32).reshape(shape)), scale


def insert_pairs(
    model: onnx.ModelProto, layers: Sequence[Layer], scales: Mapping[str, float], into: NumberFormat
) -> None:
    """Let layers take activations and weights through Q/DQ pairs; the weights become numbers of eight bits.

    Activations have one scale a tensor, of `scales` by the tensors' names, and no offset, which is what TensorRT takes;
    weights have one an output channel. What is not quantised stays in the type of the weights, which are in the model.
    """
    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    chosen = {layer.name: layer for layer in layers}
    nodes: list[NodeProto] = []
    quantised: set[str] = set()
    for node in graph.node:
        layer = chosen.get(node.name)
        if layer is not None:
            tensor = weights[layer.weight]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if layer.activation not in quantised:
                quantised.add(layer.activation)
                nodes += rounding(graph, layer.activation, np.array(scales[layer.activation], dtype), into)
            weight = numpy_helper.to_array(tensor).astype(np.float32)
            numbers, per_channel = quantised_weight(weight, layer.axis, dtype, into)
            tensor.CopyFrom(_tensor(layer.weight, numbers, into))
            _constants(graph, layer.weight, per_channel, into)
            nodes.append(_dequantise(layer.weight, layer.weight, axis=layer.axis))
            node.input[0], node.input[1] = f"{layer.activation}/float", f"{layer.weight}/float"
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the graph owns those it has
    del graph.node[:]
    graph.node.extend(copies)


def rounding(graph: onnx.GraphProto, name: str, scale: Array, into: NumberFormat) -> list[NodeProto]:
    """Nodes from an activation to "NAME/float", what is left of it in eight bits; their constants are in the graph."""
    return [_quantise(graph, name, scale, into), _dequantise(name, f"{name}/{into.name}")]


def _quantise(graph: onnx.GraphProto, name: str, scale: Array, into: NumberFormat) -> NodeProto:
    _constants(graph, name, scale, into)
    inputs = [name, f"{name}/scale", f"{name}/zero"]
    return helper.make_node("QuantizeLinear", inputs, [f"{name}/{into.name}"], f"{name}/quantise")


def _dequantise(name: str, numbers: str, axis: int | None = None) -> NodeProto:
    inputs = [numbers, f"{name}/scale", f"{name}/zero"]
    node = helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], f"{name}/dequantise")
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _constants(graph: onnx.GraphProto, name: str, scale: Array, into: NumberFormat) -> None:
    """The scale of a tensor, and its offset, which is zero."""
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
    graph.initializer.append(_tensor(f"{name}/zero", np.zeros(scale.shape, into.dtype), into))


def _tensor(name: str, numbers: Array, into: NumberFormat) -> onnx.TensorProto:
    return helper.make_tensor(name, into.onnx_type, numbers.shape, numbers.tobytes(), raw=True)
