"""How much quantising a layer costs: its own output, from what it really sees, in int8 beside float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from kandinsky22.arrays import Array
from kandinsky22_export.quantise.layers import Layer
from kandinsky22_export.quantise.ranges import STEPS
from kandinsky22_export.quantise.rewrite import quantised_weight


@torch.no_grad()
def layer_error(layer: Layer, node: onnx.NodeProto, activation: Array, weight: Array, scale: float) -> float:
    """Root of the mean squared error of a layer's output without its bias, over that of the output itself."""
    seen = torch.from_numpy(np.ascontiguousarray(activation, np.float32))
    exact = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    rounded = torch.clamp(torch.round(seen / scale), -STEPS - 1, STEPS) * scale
    numbers, scales = quantised_weight(exact.numpy(), layer.axis, np.dtype(np.float32))
    shape = [-1 if axis == layer.axis else 1 for axis in range(numbers.ndim)]
    expected = _output(node, seen, exact)
    found = _output(node, rounded, torch.from_numpy(numbers * scales.reshape(shape)))
    power = float(expected.square().mean())
    return float((found - expected).square().mean() / power) ** 0.5 if power else 0.0


def _output(node: onnx.NodeProto, seen: Tensor, weight: Tensor) -> Tensor:
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
