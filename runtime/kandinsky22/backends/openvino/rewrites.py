"""Exact rewrites of a graph for OpenVINO's CPU plugin, made when it is loaded: the same numbers but for rounding.

OpenVINO computes convolutions with the channels of a pixel side by side ("channels last" in memory, whatever the order
of the dimensions is called) and turns maps around where a neighbour cannot take that. Its group normalisation, its
transposed products and its pixel shuffle cannot; written as below they can. docs/benchmarks.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops

Node = Any
Value = Any
"""An output of a node: openvino.Output."""

CHANNELS_LAST = [0, 2, 3, 1]
CHANNELS_FIRST = [0, 3, 1, 2]
SWAPPED = [0, 2, 1]


def in_float32(model: Any) -> None:
    """Let a graph in half precision compute in float32 over the same weights; any other is left as it is.

    Given a graph in half precision, OpenVINO makes a float32 copy of all weights before it packs them for the
    processor. Given a graph in float32 that converts its half-precision weights, it takes them from the file, mapped
    into memory, one by one: the form of its own compressed models, whose conversions carry the same mark. Loading the
    published UNet then peaks at 4.9 GiB instead of 7.5, of which 2.4 are the file's.
    """
    for node in model.get_ordered_ops():
        if node.get_output_size() != 1 or node.get_output_element_type(0) != Type.f16:
            continue
        kind, users = node.get_type_name(), node.output(0).get_target_inputs()
        if kind == "Constant":
            widened = ops.convert(node, "f32")
            widened.get_rt_info()["decompression_0"] = ""
        elif kind == "Convert":
            widened = ops.convert(node.input_value(0), "f32")
        else:
            continue  # it takes the type of its inputs
        for user in users:
            user.replace_source_output(widened.output(0))
    model.validate_nodes_and_infer_types()


def without_rounding(model: Any) -> None:
    """Let a quantised graph compute in floating point: its activations are no longer rounded to int8.

    Its weights are what they were rounded to, times their scales.
    """
    for node in list(of_kind(model, "FakeQuantize")):
        last = node
        while last.get_type_name() != "Multiply":  # the scale; before it come conversions and the offset
            (user,) = last.output(0).get_target_inputs()
            last = user.get_node()
        for user in last.output(0).get_target_inputs():
            user.replace_source_output(node.input_value(0))
    model.validate_nodes_and_infer_types()


def channels_last(model: Any) -> None:
    """Keep maps as convolutions leave them, from the first to the last; for graphs that compute in float32.

    Not for bfloat16: OpenVINO would round the sums of a group normalisation to eight bits.
    """
    for rewrite in (_group_norms, _maps_to_tokens, _tokens_to_maps, _pixel_shuffles):
        rewrite(model)
        model.validate_nodes_and_infer_types()


def plain_attention(model: Any) -> None:
    """Attention as two products and a softmax. Masks and causal attention are left.

    It takes memory for the scores: for graphs whose attention comes in parts. The second product is made turned around,
    values times scores: with as many numbers to be summed up as there are pixels, OpenVINO's kernel is at 0.6 of the
    processor's speed for scores times values, and at 0.9 so.
    """
    for node in of_kind(model, "ScaledDotProductAttention"):
        query, key, value = (node.input_value(place) for place in range(3))
        wide = value.get_partial_shape()[3]
        if node.get_attributes()["causal"] or wide.is_dynamic or not _masks_nothing(node):
            continue
        scale = (
            node.input_value(4) if node.get_input_size() > 4 else ops.constant(np.float32(wide.get_length() ** -0.5))
        )
        scores = ops.softmax(ops.matmul(ops.multiply(query, scale), key, False, True), 3)
        replace(node, ops.transpose(ops.matmul(value, scores, True, True), integers(0, 1, 3, 2)))
    model.validate_nodes_and_infer_types()


def one_more_query(model: Any) -> None:
    """Attention with as many queries as heads, with one query more, whose result is dropped; for graphs in bfloat16.

    OpenVINO 2026.4.1 fuses attention with the transpositions around it. In bfloat16 it writes what the fused kernel
    gives over the queries, where both have the same shape: (pictures, queries, heads, width) is what comes in,
    (pictures, heads, queries, width) what goes out. Queries that are still to be read are then results already, which
    is wrong by 0.5 to 0.9 of the largest value, and by another number each time where threads share a picture.
    """
    for node in list(of_kind(model, "ScaledDotProductAttention")):
        shape = node.input_value(0).get_partial_shape()
        if shape.is_dynamic or len(shape) != 4 or shape[1] != shape[2]:
            continue
        queries = shape[2].get_length()
        _repeat_last(node.input(0), 2)
        if node.get_input_size() > 3:
            mask = node.input_value(3).get_partial_shape()
            if len(mask) > 1 and mask[len(mask) - 2] != 1:
                _repeat_last(node.input(3), len(mask) - 2)
        users = node.output(0).get_target_inputs()
        asked = ops.slice(node, integers(0), integers(queries), integers(1), integers(2))
        for user in users:
            user.replace_source_output(asked.output(0))
    model.validate_nodes_and_infer_types()


def _repeat_last(taken: Any, axis: int) -> None:
    """Let an input of a node have its last entry along an axis twice."""
    value = taken.get_source_output()
    last = ops.slice(value, integers(-1), integers(np.iinfo(np.int64).max), integers(1), integers(axis))
    taken.replace_source_output(ops.concat([value, last], axis).output(0))


def _group_norms(model: Any) -> None:
    """Group normalisations as one multiplication and one addition a channel; what scales or shifts the result, too."""
    for node in of_kind(model, "GroupNormalization"):
        maps, weight, bias = (source(node.input_value(place)) for place in range(3))
        tokens = _rank(maps) == 3
        if tokens:  # attention normalises maps whose height and width are one dimension already
            maps = _reshaped_from_map(maps)
        if maps is None or _rank(maps) != 4 or weight.get_partial_shape().is_dynamic:
            continue
        channels = weight.get_partial_shape()[0].get_length()
        found = None if tokens else _affine_behind(node, channels)
        last, scale, shift = found or (node, None, None)
        attributes = node.get_attributes()
        normed = _normalised(maps, attributes["num_groups"], attributes["epsilon"], weight, bias, scale, shift)
        replace(last, ops.reshape(normed, integers(0, channels, -1), True) if tokens else normed)


def _normalised(
    maps: Value, groups: int, epsilon: float, weight: Value, bias: Value, scale: Value | None, shift: Value | None
) -> Node:
    """Maps (B, C, H, W) normalised by group; then times `scale` plus `shift`, (B, C, 1, 1), where given.

    Sums are taken along rows first and then over the rows, which keeps float32 exact enough on large maps: one sum over
    all 512 x 512 pixels loses six times as much.
    """
    channels = weight.get_partial_shape()[0].get_length()
    by_group, constant_by_group = (integers(batch, groups, channels // groups) for batch in (0, 1))

    def mean_of_groups(sums_of_rows: Node) -> Node:
        means = ops.reshape(ops.reduce_mean(sums_of_rows, integers(2), keep_dims=True), by_group, True)
        return ops.divide(ops.reduce_mean(means, integers(2), keep_dims=True), width)

    width = ops.convert(ops.gather(ops.shape_of(maps), integers(3), ops.constant(np.int64(0))), "f32")
    mean = mean_of_groups(ops.reduce_sum(maps, integers(3), keep_dims=True))
    length = ops.reduce_l2(maps, integers(3), keep_dims=True)
    variance = ops.subtract(mean_of_groups(ops.multiply(length, length)), ops.multiply(mean, mean))
    variance = ops.maximum(variance, ops.constant(np.float32(0)))  # rounding takes it below where all pixels are equal
    deviation = ops.sqrt(ops.add(variance, ops.constant(np.float32(epsilon))))
    factor = ops.divide(ops.reshape(weight, constant_by_group, False), deviation)
    offset = ops.subtract(ops.reshape(bias, constant_by_group, False), ops.multiply(mean, factor))
    if scale is not None and shift is not None:
        scale, shift = ops.reshape(scale, by_group, True), ops.reshape(shift, by_group, True)
        factor, offset = ops.multiply(factor, scale), ops.add(ops.multiply(offset, scale), shift)
    return ops.add(ops.multiply(maps, _as_map(factor, channels)), _as_map(offset, channels))


def _as_map(numbers: Node, channels: int) -> Node:
    """A number a channel as a map (B, C, 1, 1) that is laid out like those of convolutions: by a convolution with one.

    OpenVINO gives a multiplication the layout that most of its inputs have.
    """
    ones = ops.constant(np.ones((channels, 1, 1, 1, 1), np.float32))
    maps = ops.reshape(numbers, integers(0, channels, 1, 1), True)
    return ops.group_convolution(maps, ones, [1, 1], [0, 0], [0, 0], [1, 1])


def _affine_behind(node: Node, channels: int) -> tuple[Node, Value, Value] | None:
    """The addition that ends `node * scale + shift`, with scale and shift, where both are a number a channel."""
    multiplied = _only_user(node, "Multiply")
    scale = multiplied and _per_channel(multiplied, node, channels)
    added = scale and _only_user(multiplied, "Add")
    shift = added and _per_channel(added, multiplied, channels)
    return (added, scale, shift) if shift else None


def _only_user(node: Node, kind: str) -> Node | None:
    """The one node that uses a result, if it is of a kind; conversions to the same type are looked through."""
    users = node.output(0).get_target_inputs()
    if len(users) != 1:
        return None
    user = next(iter(users)).get_node()
    if user.get_type_name() == "Convert" and source(user.output(0)).get_node() is not user:
        return _only_user(user, kind)
    return user if user.get_type_name() == kind else None


def _per_channel(node: Node, beside: Node, channels: int) -> Value | None:
    """The input of a node that is not `beside`, if its shape is (B, channels, 1, 1)."""
    name = beside.get_friendly_name()
    others = [value for value in node.input_values() if source(value).get_node().get_friendly_name() != name]
    if len(others) != 1 or _rank(others[0]) != 4:
        return None
    sizes = [size.get_length() if size.is_static else None for size in others[0].get_partial_shape()]
    return others[0] if sizes[1:] == [channels, 1, 1] else None


def _maps_to_tokens(model: Any) -> None:
    """(B, C, H, W) as (B, C, HW) and transposed: transposed to (B, H, W, C) first, once for all products behind."""
    for node in of_kind(model, "Transpose"):
        maps = _reshaped_from_map(source(node.input_value(0)))
        channels = node.get_output_partial_shape(0)[node.get_output_partial_shape(0).rank.get_length() - 1]
        if order(node) == SWAPPED and maps is not None and channels.is_static:
            tokens = ops.transpose(maps, integers(*CHANNELS_LAST))
            replace(node, ops.reshape(tokens, integers(0, -1, channels.get_length()), True))


def _tokens_to_maps(model: Any) -> None:
    """(B, HW, C) transposed and as (B, C, H, W): as (B, H, W, C) and transposed, which costs nothing."""
    for node in of_kind(model, "Reshape"):
        transposed = source(node.input_value(0)).get_node()
        if _rank(node.output(0)) != 4 or transposed.get_type_name() != "Transpose" or order(transposed) != SWAPPED:
            continue
        shape = ops.gather(node.input_value(1), integers(*CHANNELS_LAST), ops.constant(np.int64(0)))
        tokens = ops.reshape(transposed.input_value(0), shape, False)
        replace(node, ops.transpose(tokens, integers(*CHANNELS_FIRST)))


def _pixel_shuffles(model: Any) -> None:
    """Maps stacked channel by channel and shuffled into one: joined one after the other, which copies whole pixels."""
    for node in of_kind(model, "DepthToSpace"):
        attributes = node.get_attributes()
        stacked = source(node.input_value(0)).get_node()
        joined = stacked.input_value(0).get_node() if stacked.get_type_name() == "Reshape" else None
        if joined is None or joined.get_type_name() != "Concat" or attributes["mode"] != "depth_first":
            continue
        parts = [value.get_node() for value in joined.input_values()]
        if len(parts) != attributes["block_size"] ** 2 or any(part.get_type_name() != "Unsqueeze" for part in parts):
            continue
        maps = ops.concat([part.input_value(0) for part in parts], 1)
        replace(node, ops.depth_to_space(maps, "blocks_first", attributes["block_size"]))


def _masks_nothing(attention: Node) -> bool:
    """Whether it has no mask, or the one number zero (which stands for none where there is a scale)."""
    if attention.get_input_size() < 4:
        return True
    mask = source(attention.input_value(3)).get_node()
    if mask.get_type_name() == "ConvertLike":
        mask = mask.input_value(0).get_node()
    return mask.get_type_name() == "Constant" and not np.any(mask.get_data())


def of_kind(model: Any, kind: str) -> Iterator[Node]:
    """Its nodes of a kind, in an order in which they can be computed."""
    return (node for node in model.get_ordered_ops() if node.get_type_name() == kind)


def replace(node: Node, new: Node) -> None:
    """Let all that use a node use another one."""
    for user in node.output(0).get_target_inputs():
        user.replace_source_output(new.output(0))


def source(value: Value) -> Value:
    """Where a value comes from, through conversions that change nothing."""
    node = value.get_node()
    if node.get_type_name() == "Convert" and node.get_input_element_type(0) == value.get_element_type():
        return source(node.input_value(0))
    return value


def _reshaped_from_map(value: Value) -> Value | None:
    """The map (B, C, H, W) that `value`, (B, C, HW), was."""
    node = value.get_node()
    if node.get_type_name() != "Reshape" or _rank(value) != 3:
        return None
    maps = source(node.input_value(0))
    same = _rank(maps) == 4 and maps.get_partial_shape()[1] == value.get_partial_shape()[1]
    return maps if same and value.get_partial_shape()[1].is_static else None


def _rank(value: Value) -> int | None:
    rank = value.get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else None


def order(transpose: Node) -> list[int]:
    """The order of dimensions that a transposition makes; empty where it is not known."""
    node = transpose.input_value(1).get_node()
    return list(node.get_data()) if node.get_type_name() == "Constant" else []


def constant_behind(value: Value) -> Node | None:
    """The constant that it is, or that is converted into it; None where it is computed."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        return constant_behind(node.input_value(0))
    return node if node.get_type_name() == "Constant" else None


def integers(*numbers: int) -> Node:
    """A constant, (n,) in int64."""
    return ops.constant(np.array(numbers, np.int64))
