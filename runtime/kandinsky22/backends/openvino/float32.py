"""What stays in float32 where a graph is computed in bfloat16: parts of it that are compiled for themselves.

Given bfloat16, OpenVINO rounds what passes between nearly all nodes to eight bits. Two places cannot bear it and cost
next to nothing in float32. Angles of a time embedding reach 1000, where bfloat16 counts in fours: sine and cosine of
the quickest are noise then. And what a network puts out is scaled by guidance and scheduler, and its rounding with it:
as the output of a part it leaves the last convolution as it was summed up.

MoVQ's decoder in int8 gains more: its convolutions are of bytes, so that bfloat16 is for the products of its attention
alone. What none of these is made of stays in float32, where spatial norms move no large maps (`blocks`).
docs/benchmarks.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from kandinsky22.backends.openvino.rewrites import Node, Value, of_kind, replace

HEAVY = frozenset(
    ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention", "GroupNormalization", "MVN")
)
"""Kinds of nodes that take a network's time: what follows the last of them is the scheduler's."""

PRODUCTS = frozenset(("MatMul", "ScaledDotProductAttention"))
"""Kinds of nodes that multiply matrices that are not convolutions."""

CUT = "cut_{}"
"""Names of the values that pass from part to part."""


@dataclass(frozen=True)
class Part:
    """A model, the precision that it is computed in, and the names of its inputs and outputs, in the model's order."""

    model: Any
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def parts(model: Any, outputs: Sequence[str], *, until_products: bool = False) -> list[Part]:
    """A model of known shapes, cut for bfloat16: sines of embeddings, the network, what comes after it.

    The network alone is in bfloat16; `until_products` lets it end with the last product of matrices. `outputs` are the
    names of the model's results, in order. The parts run in this order and take their inputs from the model's and from
    the outputs of those before; there is none without nodes. The model is taken apart and cannot be used afterwards.
    """
    _shapes_as_constants(model)
    stages = _stages_until_products(model) if until_products else _stages(model)
    ends: list[dict[str, Value]] = [{} for _ in Stage]
    for name, result in zip(outputs, model.get_results(), strict=True):
        ends[stages[_name(result.input_value(0).get_node())]][name] = result.input_value(0)
    inputs = [_own_inputs(model, stages, stage) for stage in Stage]
    for number, (value, stage) in enumerate(_crossing(model, stages)):
        name = CUT.format(number)
        ends[stage][name] = value
        for later in Stage[stage + 1 :]:
            inputs[later] += _through(value, name, stages, later)
    return [
        Part(
            Model([ops.result(value) for value in ends[stage].values()], inputs[stage], f"{model.get_name()}_{stage}"),
            "bf16" if stage == NETWORK else "fp32",
            tuple(parameter.get_friendly_name() for parameter in inputs[stage]),
            tuple(ends[stage]),
        )
        for stage in Stage
        if ends[stage]
    ]


SINES, NETWORK, AFTER = Stage = range(3)


def _shapes_as_constants(model: Any) -> None:
    """Let nothing depend on an input through its shape alone."""
    for node in of_kind(model, "ShapeOf"):
        if node.get_input_partial_shape(0).is_static:
            shape = np.array(node.input_value(0).get_shape(), node.get_output_element_type(0).to_dtype())
            replace(node, ops.constant(shape))


def _stages(model: Any) -> dict[str, int]:
    """The stage of each node by its name, of those that depend on inputs; the inputs themselves have none."""
    order = [node for node in model.get_ordered_ops() if node.get_type_name() not in ("Parameter", "Result")]
    given = {_name(parameter) for parameter in model.get_parameters()}
    stages: dict[str, int] = {}
    behind: set[str] = set()  # of a heavy node, or it itself
    for node in order:
        sources = {_name(value.get_node()) for value in node.input_values()}
        if sources & (given | stages.keys()):
            stages[_name(node)] = NETWORK
        if node.get_type_name() in HEAVY or sources & behind:
            behind.add(_name(node))
    for node in reversed([node for node in order if _name(node) in stages]):
        users = [stages.get(_name(user), AFTER) for output in node.outputs() for user in _users(output)]
        is_sine = node.get_type_name() in ("Sin", "Cos") and _name(node) not in behind
        if is_sine or (users and set(users) == {SINES}):
            stages[_name(node)] = SINES
        elif node.get_type_name() not in HEAVY and set(users) <= {AFTER}:
            stages[_name(node)] = AFTER
    return stages


def _stages_until_products(model: Any) -> dict[str, int]:
    """The same, where the network is the products of matrices and what they are made of."""
    order = [node for node in model.get_ordered_ops() if node.get_type_name() not in ("Parameter", "Result")]
    given = {_name(parameter) for parameter in model.get_parameters()}
    stages: dict[str, int] = {}
    for node in order:
        if {_name(value.get_node()) for value in node.input_values()} & (given | stages.keys()):
            stages[_name(node)] = AFTER
    taken: set[str] = set()  # by the network
    for node in reversed([node for node in order if _name(node) in stages]):
        if node.get_type_name() in PRODUCTS or _name(node) in taken:
            stages[_name(node)] = NETWORK
            taken |= {_name(value.get_node()) for value in node.input_values()}
    return stages


def _crossing(model: Any, stages: dict[str, int]) -> Iterator[tuple[Value, int]]:
    """Values that a later stage uses, with the stage that they come from."""
    for node in [node for node in model.get_ordered_ops() if _name(node) in stages]:
        stage = stages[_name(node)]
        for output in node.outputs():
            if any(stages.get(_name(user), stage) > stage for user in _users(output)):
                yield output, stage


def _own_inputs(model: Any, stages: dict[str, int], stage: int) -> list[Node]:
    """Inputs of the model that a stage uses, as inputs of its own."""
    return [
        taken
        for parameter in model.get_parameters()
        for taken in _through(parameter.output(0), _name(parameter), stages, stage)
    ]


def _through(value: Value, name: str, stages: dict[str, int], stage: int) -> list[Node]:
    """An input called `name` that takes a value's place for all its users in a stage; none where it has none there."""
    users = [user for user in value.get_target_inputs() if stages.get(_name(user.get_node())) == stage]
    if not users:
        return []
    parameter = ops.parameter(value.get_shape(), value.get_element_type(), name=name)
    parameter.output(0).set_names({name})
    for user in users:
        user.replace_source_output(parameter.output(0))
    return [parameter]


def _users(output: Value) -> list[Node]:
    return [user.get_node() for user in output.get_target_inputs()]


def _name(node: Node) -> str:
    return str(node.get_friendly_name())
