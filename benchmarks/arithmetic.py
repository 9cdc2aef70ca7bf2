"""How much a graph computes: FLOP counted from its convolutions, matrix products and attentions.

Counted from the exported graph at given sizes, with a multiplication and an addition as two. Everything else
(normalisation, activation, addition) is left out: it is below one percent of the arithmetic, and bound by memory.
OpenVINO reads the graph and infers the shapes; nothing is run, and the weights are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino

Shape = tuple[int, ...]


def flop(graph: Path, shapes: Mapping[str, Shape]) -> int:
    """FLOP of one run of an ONNX file on inputs of these shapes. Raises ValueError where a shape stays unknown."""
    model = openvino.Core().read_model(graph)
    model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
    return sum(COUNTED[node.get_type_name()](node) for node in model.get_ops() if node.get_type_name() in COUNTED)


def _shape(port: Any) -> Shape:
    if port.partial_shape.is_dynamic:
        raise ValueError(f"the shape of {port.get_node().get_friendly_name()} is unknown")
    return tuple(port.shape)


def _convolution(node: Any) -> int:
    return 2 * math.prod(_shape(node.output(0))) * math.prod(_shape(node.input(1).get_source_output())[1:])


def _matmul(node: Any) -> int:
    left = _shape(node.input(0).get_source_output())
    return 2 * math.prod(_shape(node.output(0))) * left[-2 if node.get_attributes()["transpose_a"] else -1]


def _attention(node: Any) -> int:
    query, key, value = (_shape(node.input(index).get_source_output()) for index in range(3))
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


COUNTED = {"Convolution": _convolution, "MatMul": _matmul, "ScaledDotProductAttention": _attention}
