"""OpenVINO's bfloat16 for tests on every processor: its own where it has one, else a graph that rounds as it does.

OpenVINO computes in bfloat16 with AMX or AVX-512 BF16, emulates it with AVX-512, which users are refused, and ignores
it elsewhere. There `rounded` stands for it: float32 whose values are rounded to bfloat16 where OpenVINO's CPU plugin
would keep them so (its `Graph::EnforceInferencePrecision`): inputs and outputs of nodes, but not what it computes in
one kernel, nor what follows the last significant node. That is a model of its rounding, not its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from openvino import Model, Type
from openvino import opset13 as ops

from kandinsky22.backends.openvino import component
from kandinsky22.backends.openvino.float32 import Part

SIGNIFICANT = {"Convolution", "MatMul", "Interpolate"}
"""At these a walk from the outputs ends, along which the plugin leaves float32."""

FUSED = {"Add", "Subtract", "Multiply", "Divide", "Sigmoid", "Swish", "Gelu", "Sqrt", "Maximum", "Minimum", "Exp"}
"""Computed in one kernel with what they follow."""

MOVING = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Broadcast", "Pad"}

EXACT = {"Parameter", "Constant", "Result", "Convert", "ConvertLike", "ShapeOf", "Range"}


@contextmanager
def bfloat16() -> Iterator[None]:
    """Let OpenVINO take bf16 here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component, "_has_bf16", lambda: True)
        if not _computes_in_bfloat16():
            patch.setattr(component.OpenVinoComponent, "_compile_part", _compile_rounded)
        yield


def _computes_in_bfloat16() -> bool:
    """Whether OpenVINO does so on this processor, with its instructions or by emulation."""
    doubled = ops.multiply(ops.parameter([1], np.float32), np.float32(2))
    model = Model([doubled], [doubled.input_value(0).get_node()])
    compiled = component.core().compile_model(model, component.DEVICE, {"INFERENCE_PRECISION_HINT": "bf16"})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT") == Type.bf16)


def _compile_rounded(_: component.OpenVinoComponent, part: Part) -> Any:
    model = part.model
    if part.precision == "bf16":
        model = rounded(model.clone())
    # OpenVINO 2026.4.1 crashes in its snippets for group norms of known shapes on AVX2, where no user's graph has any.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "SNIPPETS_MODE": "DISABLE"}
    return component.core().compile_model(model, component.DEVICE, options)


def rounded(model: Any) -> Any:
    """The model itself, whose values are rounded as the plugin would."""
    left = _left_in_float32(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() in EXACT or node.get_friendly_name() in left:
            continue
        for number, value in enumerate(node.input_values()):
            if value.get_element_type() == Type.f32 and _is_rounded_input(node, value.get_node(), left):
                node.input(number).replace_source_output(rounded_value(value))
        for output in node.outputs():
            users = output.get_target_inputs()
            if output.get_element_type() == Type.f32 and _is_rounded_output(node, [user.get_node() for user in users]):
                new = rounded_value(output)
                for user in users:
                    user.replace_source_output(new)
    model.validate_nodes_and_infer_types()
    return model


def rounded_value(value: Any) -> Any:
    """A value rounded to the eight bits of bfloat16's mantissa, to nearest: Veltkamp's split (Dekker 1971).

    Beyond 1e30 it is cut, where masks stand for infinity.
    """
    value = ops.clamp(value, -1e30, 1e30)
    scaled = ops.multiply(value, ops.constant(np.float32(2**16 + 1)))
    return ops.subtract(scaled, ops.subtract(scaled, value)).output(0)


def _left_in_float32(model: Any) -> set[str]:
    """Names of the nodes between the outputs and the last significant nodes."""
    left: set[str] = set()
    todo = list(model.get_results())
    while todo:
        for value in todo.pop().input_values():
            node = value.get_node()
            if node.get_type_name() not in SIGNIFICANT and node.get_friendly_name() not in left:
                left.add(node.get_friendly_name())
                todo.append(node)
    return left


def _is_rounded_input(node: Any, source: Any, left: set[str]) -> bool:
    """Whether what `source` gives in float32 is rounded for a node."""
    if _is_constant(source):
        return node.get_type_name() in SIGNIFICANT
    if source.get_type_name() == "Parameter":
        return node.get_type_name() not in FUSED
    return source.get_friendly_name() in left


def _is_rounded_output(node: Any, users: list[Any]) -> bool:
    """Whether a node writes its result for its users in bfloat16."""
    kinds = {user.get_type_name() for user in users}
    if node.get_type_name() in MOVING or kinds == {"Result"}:
        return False
    computes_on = node.get_type_name() in FUSED | SIGNIFICANT
    return not (computes_on and len(users) == 1 and kinds < FUSED)


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "ConvertLike", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")
