"""A graph with Q/DQ pairs: the form of quantised graphs that all backends read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from kandinsky22.arrays import Array
from kandinsky22_export.quantise.layers import Layer
from kandinsky22_export.quantise.ranges import STEPS

SMALLEST = np.float32(2.0**-24)
"""Of scales: the smallest number of half precision that is none but zero."""


def quantised_weight(weight: Array, axis: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """A weight as int8, and a scale of type `dtype` for each of its output channels along `axis`."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    scale: Array = np.maximum(largest / STEPS, SMALLEST).astype(dtype)
    shape = [-1 if each == axis else 1 for each in range(weight.ndim)]
    numbers = np.rint(weight / scale.astype(np.float32).reshape(shape)).clip(-STEPS, STEPS).astype(np.int8)
    return numbers, scale


def insert_pairs(model: onnx.ModelProto, layers: Sequence[Layer], scales: Mapping[str, float]) -> None:
    """Let layers take activations and weights through Q/DQ pairs; the weights become int8.

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
                scale = np.array(scales[layer.activation], dtype)
                nodes.append(_quantise(graph, layer.activation, scale))
                nodes.append(_dequantise(layer.activation, f"{layer.activation}/int8"))
            numbers, per_channel = quantised_weight(numpy_helper.to_array(tensor).astype(np.float32), layer.axis, dtype)
            tensor.CopyFrom(numpy_helper.from_array(numbers, layer.weight))
            _constants(graph, layer.weight, per_channel)
            nodes.append(_dequantise(layer.weight, layer.weight, axis=layer.axis))
            node.input[0], node.input[1] = f"{layer.activation}/float", f"{layer.weight}/float"
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the graph owns those it has
    del graph.node[:]
    graph.node.extend(copies)


def _quantise(graph: onnx.GraphProto, name: str, scale: Array) -> NodeProto:
    _constants(graph, name, scale)
    inputs = [name, f"{name}/scale", f"{name}/zero"]
    return helper.make_node("QuantizeLinear", inputs, [f"{name}/int8"], f"{name}/quantise")


def _dequantise(name: str, numbers: str, **axis: int) -> NodeProto:
    inputs = [numbers, f"{name}/scale", f"{name}/zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], f"{name}/dequantise", **axis)


def _constants(graph: onnx.GraphProto, name: str, scale: Array) -> None:
    """The scale of a tensor, and its offset, which is zero."""
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}/zero"))
