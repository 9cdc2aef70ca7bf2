"""How much quantising a layer costs: its own output, from what it really sees, in eight bits beside float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from kandinsky22.arrays import Array
from kandinsky22_export.quantise.formats import NumberFormat
from kandinsky22_export.quantise.layers import Layer
from kandinsky22_export.quantise.rewrite import quantised_weight


@torch.no_grad()
def layer_error(
    layer: Layer, node: onnx.NodeProto, activation: Array, weight: Array, scale: float, into: NumberFormat
) -> float:
    """Root of the mean squared error of a layer's output without its bias, over that of the output itself."""
    seen, exact = np.ascontiguousarray(activation, np.float32), np.array(weight, np.float32)  # it may not be written to
    numbers, scales = quantised_weight(exact, layer.axis, np.dtype(np.float32), into)
    shape = [-1 if axis == layer.axis else 1 for axis in range(numbers.ndim)]
    rounded = into.decode(into.encode(seen / np.float32(scale))) * np.float32(scale)
    expected = _output(node, seen, exact)
    found = _output(node, rounded, into.decode(numbers) * scales.reshape(shape))
    power = float(expected.square().mean())
    return float((found - expected).square().mean() / power) ** 0.5 if power else 0.0


def _output(node: onnx.NodeProto, activation: Array, kernel: Array) -> Tensor:
    """What a layer makes of its activation, without the bias."""
    seen, weight = torch.from_numpy(activation), torch.from_numpy(kernel)
    if node.op_type == "MatMul":
        return seen @ weight
    attributes: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = torch.nn.functional.pad(seen, (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        padded,
        weight,
        stride=tuple(attributes.get("strides", (1, 1))),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )
