"""Rewrites for OpenVINO against NumPy in float64 and against the graphs before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kandinsky22.arrays import Array
from kandinsky22.backends.openvino.component import core

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from openvino import opset13 as ops  # noqa: E402

from kandinsky22.backends.openvino import rewrites  # noqa: E402

CHANNELS, GROUPS, EPSILON = 8, 2, 1e-5
RNG = np.random.default_rng(0)
WEIGHT, BIAS = (RNG.normal(size=CHANNELS).astype(np.float32) for _ in range(2))


def run(model: Any, *arrays: Array) -> Array:
    """The first output of a model in float32."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return np.array(compiled(arrays)[0])


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def maps(channels: int = CHANNELS) -> Any:
    return ops.parameter([-1, channels, -1, -1], np.float32)


def group_norm(value: Any) -> Any:
    from openvino import opset12

    return opset12.group_normalization(value, ops.constant(WEIGHT), ops.constant(BIAS), GROUPS, EPSILON)


def normalised(array: Array) -> Array:
    """Wu and He, Group Normalization (2018), equation 2, in float64."""
    groups = array.astype(np.float64).reshape(len(array), GROUPS, -1)
    normed = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + EPSILON)
    normed = normed.reshape(array.shape)
    result: Array = normed * WEIGHT[:, None, None] + BIAS[:, None, None]
    return result


def plain_norm() -> Any:
    x = maps()
    return ov.Model([group_norm(x)], [x], "norm")


def scaled_norm() -> Any:
    """As in the UNet's residual blocks, whose scale and shift come from the timestep."""
    x, scale, shift = maps(), ops.parameter([-1, CHANNELS, 1, 1], np.float32), ops.parameter([-1, CHANNELS, 1, 1])
    scaled = ops.multiply(group_norm(x), ops.add(scale, ops.constant(np.float32(1))))
    return ov.Model([ops.add(scaled, shift)], [x, scale, shift], "scaled")


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (3, 8, 5, 9), (2, 8, 128, 96), (2, 8, 1, 1)])
@pytest.mark.parametrize("mean", [0, 30])
def test_group_norm_is_its_definition(shape: tuple[int, ...], mean: float) -> None:
    x = RNG.normal(mean, 1, shape).astype(np.float32)
    model = plain_norm()
    rewrites.channels_last(model)
    assert not kinds(model)["GroupNormalization"]
    np.testing.assert_allclose(run(model, x), normalised(x), atol=2e-5 * (1 + mean**2 / 20), rtol=1e-4)


def test_group_norm_of_equal_pixels_is_its_bias() -> None:
    model = plain_norm()
    rewrites.channels_last(model)
    x = np.full((1, CHANNELS, 6, 6), 0.1, np.float32)
    np.testing.assert_allclose(run(model, x), np.broadcast_to(BIAS[:, None, None], x.shape), atol=1e-3)


def test_sums_over_large_maps_keep_their_digits() -> None:
    x = RNG.normal(1, 1, (1, CHANNELS, 512, 512)).astype(np.float32)
    model = plain_norm()
    rewrites.channels_last(model)
    assert np.abs(run(model, x) - normalised(x)).max() < 5e-6


def test_scale_and_shift_join_the_norm() -> None:
    model = scaled_norm()
    rewrites.channels_last(model)
    x, scale, shift = (RNG.normal(size=(2, CHANNELS, *side)).astype(np.float32) for side in ((6, 7), (1, 1), (1, 1)))
    over_maps = [
        node for node in model.get_ordered_ops() if is_map(node) and node.get_type_name() in ("Add", "Multiply")
    ]
    assert len(over_maps) == 2  # one multiplication and one addition of whole maps are left
    np.testing.assert_allclose(run(model, x, scale, shift), normalised(x) * (1 + scale) + shift, atol=2e-5)


def is_map(node: Any) -> bool:
    shape = node.get_output_partial_shape(0)
    return shape.rank.get_length() == 4 and shape[2].is_dynamic and shape[3].is_dynamic


def test_a_norm_that_others_use_too_stays_apart_from_its_scale() -> None:
    x, scale = maps(), ops.parameter([-1, CHANNELS, 1, 1], np.float32)
    norm = group_norm(x)
    model = ov.Model([ops.add(ops.add(ops.multiply(norm, scale), scale), norm)], [x, scale], "two users")
    rewrites.channels_last(model)
    array, factor = (RNG.normal(size=(2, CHANNELS, *side)).astype(np.float32) for side in ((4, 4), (1, 1)))
    expected = normalised(array) * (1 + factor) + factor
    np.testing.assert_allclose(run(model, array, factor), expected, atol=2e-5)


def attention_block() -> Any:
    """A map as tokens, normalised, through a product, and back to a map: as diffusers' attention does it."""
    x = maps()
    tokens = ops.reshape(x, ops.constant(np.array([0, CHANNELS, -1])), True)
    normed = ops.transpose(group_norm(tokens), ops.constant(np.array([0, 2, 1])))
    matrix = np.random.default_rng(1).normal(size=(CHANNELS, CHANNELS)).astype(np.float32)
    out = ops.transpose(ops.matmul(normed, ops.constant(matrix), False, False), ops.constant(np.array([0, 2, 1])))
    return ov.Model([ops.add(ops.reshape(out, ops.shape_of(x), False), x)], [x], "attention")


def pixel_shuffle() -> Any:
    """Four maps, stacked channel by channel and shuffled into one of twice the size, as torch exports it."""
    x = maps()
    parts = [ops.unsqueeze(ops.add(x, ops.constant(np.float32(number))), ops.constant(2)) for number in range(4)]
    stacked = ops.concat(parts, 2)
    small = ops.shape_of(x)
    shape = ops.multiply(small, ops.constant(np.array([1, 4, 1, 1])))
    return ov.Model([ops.depth_to_space(ops.reshape(stacked, shape, False), "depth_first", 2)], [x], "shuffle")


@pytest.mark.parametrize(
    ("make", "gone"),
    [(attention_block, "GroupNormalization"), (pixel_shuffle, "Unsqueeze"), (scaled_norm, "GroupNormalization")],
)
def test_rewritten_graphs_give_what_the_graph_gave(make: Callable[[], Any], gone: str) -> None:
    before, after = make(), make()
    rewrites.channels_last(after)
    assert not kinds(after)[gone]
    arrays = [RNG.normal(size=(2, CHANNELS, 6, 10)).astype(np.float32)]
    arrays += [RNG.normal(size=(2, CHANNELS, 1, 1)).astype(np.float32) for _ in before.inputs[1:]]
    np.testing.assert_allclose(run(after, *arrays), run(before, *arrays), atol=2e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_plain_attention_is_its_definition(parts: int) -> None:
    wide, seen = 16, 6
    shapes = [[-1, 2, -1, wide]] * (parts + 2)
    inputs = [ops.parameter(shape, np.float32) for shape in shapes]
    *queries, key, value = inputs
    zero = ops.constant(np.float32(0))
    model = ov.Model(
        [ops.concat([ops.scaled_dot_product_attention(query, key, value, zero) for query in queries], 2)], inputs, "a"
    )
    rewrites.plain_attention(model)
    found = kinds(model)
    assert (found["ScaledDotProductAttention"], found["MatMul"], found["Softmax"]) == (0, 2 * parts, parts)
    arrays = [RNG.normal(size=(3, 2, seen, wide)).astype(np.float32) for _ in inputs]
    k, v = (array.astype(np.float64) for array in arrays[-2:])
    expected = []
    for query in arrays[:-2]:
        scores = np.exp(query.astype(np.float64) @ k.swapaxes(2, 3) / np.sqrt(wide))
        expected.append(scores / scores.sum(-1, keepdims=True) @ v)
    np.testing.assert_allclose(run(model, *arrays), np.concatenate(expected, 2), atol=2e-6)


def test_attention_with_a_mask_is_left_as_it_is() -> None:
    inputs = [ops.parameter([1, 2, 4, 8], np.float32) for _ in range(3)]
    mask = ops.constant(np.triu(np.full((4, 4), -1e9, np.float32), 1))
    model = ov.Model([ops.scaled_dot_product_attention(*inputs, mask)], inputs, "masked")
    rewrites.plain_attention(model)
    assert kinds(model)["ScaledDotProductAttention"] == 1
