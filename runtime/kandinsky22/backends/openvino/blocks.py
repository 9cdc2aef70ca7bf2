"""Spatial norms and pixel shuffles for OpenVINO in float32 without moving large maps; exact but for rounding.

MoVQ's spatial norm (Zheng and others, MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation, 2022)
multiplies and adds nearest upsamplings of small maps, two a norm, each as large as the map. Where sizes are known, a
map (B, h * n, w * m, C) is (B * h, n, w, m, C) as well, in blocks of n x m pixels, over which a small map
(B * h, 1, w, 1, C) is spread without being written out. Five dimensions, not six: that is the most that OpenVINO rounds
to int8 by a kernel of its own. docs/benchmarks.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import opset13 as ops

from kandinsky22.arrays import Array
from kandinsky22.backends.openvino.rewrites import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    Node,
    Value,
    integers,
    of_kind,
    order,
    replace,
    source,
)


def maps_in_blocks(model: Any) -> None:
    """Let what spatial norms multiply and add stay small, and maps around them keep their channels last.

    For MoVQ's decoder, after Winograd's convolutions; a model without spatial norms is left as it is.
    """
    norms = _spatial_norms(model)
    if norms:
        _pixel_shuffles(model)
    for node in norms:
        found = _spatial_norm(node)  # what is around it may have been made anew
        if found is not None:
            _spread(node, *found)
    for node in of_kind(model, "Add") if norms else ():
        if _is_sum(node) and any(_is_turned(part) for part in node.input_values()):
            _blocks(node.output(0), node.get_output_shape(0)[2:])
    model.validate_nodes_and_infer_types()


def has_spatial_norms(model: Any) -> bool:
    """Whether `maps_in_blocks` does anything with a model of known shapes."""
    return bool(_spatial_norms(model))


def _spatial_norms(model: Any) -> list[Node]:
    return [node for node in of_kind(model, "Add") if _spatial_norm(node)]


def _spread(node: Node, maps: Value, scale: Value, shift: Value) -> None:
    """Make a spatial norm anew, in blocks of pixels that have one scale and shift; with the SiLU behind it."""
    small, shape = scale.get_shape()[2:], maps.get_shape()
    inner = _affine(maps)
    if inner is not None:  # the group norm's own factor and offset join those on the small map
        maps, factor, offset = inner
        scale, shift = ops.multiply(factor, scale), ops.add(ops.multiply(offset, scale), shift)
    silu, sums = _silu_behind(node), _sums_of_rows(maps)
    blocks = _blocks(maps, small)
    for each in sums:
        _sum_of_blocks(each, blocks, shape)
    numbers = [_last(each, (shape[0] * small[0], 1, small[1], 1, shape[1])) for each in (scale, shift)]
    result = ops.add(ops.multiply(blocks, numbers[0]), numbers[1])
    _turn_back(silu or node, ops.swish(result) if silu else result, shape)


def _blocks(maps: Value, small: Sequence[int]) -> Value:
    """Maps (B, C, h * n, w * m) as (B * h, n, w, m, C); sums of two maps are made anew so, for all who use them.

    OpenVINO turns a map around for nothing where nobody else uses what it is turned to: what is left behind is a
    reshaping, whose result may have many users. It fuses a sum with the convolution before it, which hinders that.
    """
    node, shape = source(maps).get_node(), maps.get_shape()
    if _is_turned(maps):
        turned = node.input_value(0)
    elif _is_sum(node):
        result = ops.add(*(_blocks(part, small) for part in node.input_values()))
        _turn_back(node, result, shape)
        return result.output(0)
    else:
        turned = ops.transpose(maps, integers(*CHANNELS_LAST)).output(0)
    batch, channels, height, width = shape
    down, across = small
    whole = integers(batch * down, height // down, across, width // across, channels)
    return ops.reshape(turned, whole, False).output(0)


def _is_turned(value: Value) -> bool:
    """Whether it is a map whose channels were last before."""
    node = source(value).get_node()
    return node.get_type_name() == "Transpose" and order(node) == CHANNELS_FIRST


def _is_sum(node: Node) -> bool:
    """Whether it adds two maps."""
    if node.get_type_name() != "Add":
        return False
    first, second = node.input_values()
    return first.get_shape() == second.get_shape() and len(first.get_shape()) == 4


def _turn_back(node: Node, blocks: Node, shape: Sequence[int]) -> None:
    """Let each user of a node's maps (B, C, H, W) take them from blocks, whose channels are last."""
    batch, channels, height, width = shape
    for user in node.output(0).get_target_inputs():
        maps = ops.reshape(blocks, integers(batch, height, width, channels), False)
        user.replace_source_output(ops.transpose(maps, integers(*CHANNELS_FIRST)).output(0))


def _sums_of_rows(maps: Value) -> list[Node]:
    """The sums over rows that a group norm needs, (B, C, H, 1)."""
    users = [user.get_node() for user in source(maps).get_target_inputs()]
    return [node for node in users if node.get_type_name() in ("ReduceSum", "ReduceL2")]


def _sum_of_blocks(node: Node, blocks: Value, shape: Sequence[int]) -> None:
    """Make a sum over the rows of maps anew, of blocks whose channels are last."""
    reduce = ops.reduce_sum if node.get_type_name() == "ReduceSum" else ops.reduce_l2
    batch, channels, height, _ = shape
    sums = ops.reshape(reduce(blocks, integers(2, 3), True), integers(batch, height, 1, channels), False)
    replace(node, ops.transpose(sums, integers(*CHANNELS_FIRST)))


def _spatial_norm(node: Node) -> tuple[Value, Value, Value] | None:
    """Maps, scale and shift where a node is `maps * upsampled scale + upsampled shift`; the latter two small."""
    for product, shift in _both_ways(node):
        small_shift = _upsampled(shift)
        if small_shift is None or product.get_node().get_type_name() != "Multiply":
            continue
        for maps, scale in _both_ways(product.get_node()):
            small_scale = _upsampled(scale)
            if small_scale is not None and small_scale.get_shape() == small_shift.get_shape():
                return maps, small_scale, small_shift
    return None


def _upsampled(value: Value) -> Value | None:
    """The map that `value` is a nearest upsampling of, by whole numbers: every pixel becomes a block of its copies."""
    node = source(value).get_node()
    if node.get_type_name() != "Interpolate" or value.get_partial_shape().is_dynamic:
        return None
    attributes, small, large = node.get_attributes(), node.input_value(0), value.get_shape()
    copies = attributes["mode"] == "nearest" and attributes["coordinate_transformation_mode"] == "asymmetric"
    whole = [to % of == 0 for of, to in zip(small.get_shape(), large, strict=True)]
    same = list(small.get_shape())[:2] == list(large)[:2]
    return small if copies and attributes["nearest_mode"] == "floor" and all(whole) and same else None


def _affine(maps: Value) -> tuple[Value, Value, Value] | None:
    """Maps, factor and offset where `maps` are `maps * factor + offset` with a number a channel, (B, C, 1, 1)."""
    node = source(maps).get_node()
    if node.get_type_name() != "Add" or len(node.output(0).get_target_inputs()) != 1:
        return None
    product, offset = node.input_values()
    if product.get_node().get_type_name() != "Multiply":
        return None
    inner, factor = product.get_node().input_values()
    numbers = all(list(each.get_shape())[2:] == [1, 1] for each in (factor, offset))
    return (inner, factor, offset) if numbers else None


def _silu_behind(node: Node) -> Node | None:
    """The node that ends `x * sigmoid(x)`, where nothing else uses `x`."""
    users = {user.get_node().get_type_name(): user.get_node() for user in node.output(0).get_target_inputs()}
    if users.keys() != {"Multiply", "Sigmoid"}:
        return None
    multiplied = {value.get_node().get_friendly_name() for value in users["Multiply"].input_values()}
    both = {node.get_friendly_name(), users["Sigmoid"].get_friendly_name()}
    return users["Multiply"] if multiplied == both else None


def _last(maps: Value, shape: Sequence[int]) -> Node:
    """(B, C, H, W) with the channels last, in another shape."""
    return ops.reshape(ops.transpose(maps, integers(*CHANNELS_LAST)), integers(*shape), False)


def _both_ways(node: Node) -> list[tuple[Value, Value]]:
    first, second = (source(value) for value in node.input_values())
    return [(first, second), (second, first)]


def _pixel_shuffles(model: Any) -> None:
    """Four maps cut out of one and shuffled into one of twice the size: one copy of whole pixels."""
    for node in of_kind(model, "DepthToSpace"):
        attributes, joined = node.get_attributes(), node.input_value(0).get_node()
        if (attributes["mode"], attributes["block_size"], joined.get_type_name()) != ("blocks_first", 2, "Concat"):
            continue
        cuts = [_cut(value) for value in joined.input_values()]
        names = {whole.get_node().get_friendly_name() for whole, _ in cuts}
        maps, (batch, channels, height, width) = cuts[0][0], node.get_output_shape(0)
        whole = list(maps.get_shape())
        if len(names) != 1 or whole[1] % channels or any(at[0] or at[1] % channels for _, at in cuts):
            continue
        rows = _shuffled([at for _, at in cuts], (batch, channels, height, width), whole)
        pixels = _last(maps, (int(np.prod(whole)) // channels, channels))
        shuffled = ops.gather(pixels, ops.constant(rows.astype(np.int32)), integers(0))
        shuffled = ops.reshape(shuffled, integers(batch, height, width, channels), False)
        replace(node, ops.transpose(shuffled, integers(*CHANNELS_FIRST)))


def _cut(value: Value) -> tuple[Value, list[int]]:
    """The map (B, C, H, W) that `value` is cut out of, and where it begins there."""
    start = [0, 0, 0, 0]
    while value.get_node().get_type_name() == "Slice":
        data, begin, _, step, axes = value.get_node().input_values()
        begins, steps, along = (_known(each) for each in (begin, step, axes))
        if not begins or min(begins) < 0 or set(steps) != {1} or len(along) != len(begins):
            break
        for axis, first in zip(along, begins, strict=True):
            start[axis] += first
        value = source(data)
    return value, start


def _known(value: Value) -> list[int]:
    """The integers of a constant, or of one that is repeated; none of anything else."""
    node = value.get_node()
    if node.get_type_name() == "Broadcast":
        return _known(node.input_value(0))
    return [int(number) for number in node.get_data()] if node.get_type_name() == "Constant" else []


def _shuffled(starts: Sequence[Sequence[int]], shape: Sequence[int], whole: Sequence[int]) -> Array:
    """Which of the rows of `channels` numbers of the whole map, channels last, are the shuffled pixels, in order."""
    batch, channels, height, width = shape
    _, stacked, rows, columns = whole
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    starts_of = np.array(starts)[(y % 2) * 2 + x % 2]  # (height, width, 4)
    row, column = y // 2 + starts_of[..., 2], x // 2 + starts_of[..., 3]
    picture = np.arange(batch)[:, None, None]
    pixel = (picture * rows + row) * columns + column
    result: Array = (pixel * (stacked // channels) + starts_of[..., 1] // channels).reshape(-1)
    return result
