"""Spatial norms and pixel shuffles in blocks, against their definitions in float64 and the graphs before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22.arrays import Array
from kandinsky22.backends import Settings
from kandinsky22.backends.openvino.component import BACKEND, core
from kandinsky22.bundle.bundle import Bundle

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from openvino import opset12  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

from kandinsky22.backends.openvino import blocks, rewrites  # noqa: E402

CHANNELS, GROUPS, EPSILON, BATCH = 8, 2, 1e-6, 2
RNG = np.random.default_rng(0)
WEIGHT, BIAS = (RNG.normal(size=CHANNELS).astype(np.float32) for _ in range(2))
KERNEL = (RNG.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 8).astype(np.float32)


def maps(height: int, width: int) -> Any:
    return ops.parameter([BATCH, CHANNELS, height, width], np.float32)


def group_norm(value: Any) -> Any:
    return opset12.group_normalization(value, ops.constant(WEIGHT), ops.constant(BIAS), GROUPS, EPSILON)


def upsampled(small: Any, height: int, width: int, mode: str = "nearest") -> Any:
    size = ops.constant(np.array([BATCH, CHANNELS, height, width]))
    return ops.interpolate(small, size, mode, "sizes", [0] * 4, [0] * 4, "asymmetric", "floor")


def spatial_norm(value: Any, scale: Any, shift: Any, size: tuple[int, int], mode: str = "nearest") -> Any:
    return ops.add(ops.multiply(group_norm(value), upsampled(scale, *size, mode)), upsampled(shift, *size, mode))


def silu(value: Any) -> Any:
    return ops.multiply(value, ops.sigmoid(value))


def convolution(value: Any) -> Any:
    return ops.convolution(value, ops.constant(KERNEL), [1, 1], [1, 1], [1, 1], [1, 1])


def rewritten(model: Any) -> Any:
    rewrites.channels_last(model)
    blocks.maps_in_blocks(model)
    return model


def run(model: Any, *arrays: Array) -> list[Array]:
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return [np.array(value) for value in compiled(arrays).values()]


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def defined(x: Array, scale: Array, shift: Array) -> Array:
    """diffusers' SpatialNorm, in float64: the group norm, times and plus copies of the small maps' pixels."""
    groups = x.astype(np.float64).reshape(len(x), GROUPS, -1)
    normed = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + EPSILON)
    normed = normed.reshape(x.shape) * WEIGHT[:, None, None] + BIAS[:, None, None]
    block = np.ones((x.shape[2] // scale.shape[2], x.shape[3] // scale.shape[3]))
    result: Array = normed * np.kron(scale, block) + np.kron(shift, block)
    return result


@pytest.mark.parametrize("with_silu", [True, False])
@pytest.mark.parametrize(("size", "small"), [((6, 10), (6, 10)), ((12, 20), (6, 10)), ((24, 8), (3, 1))])
def test_a_spatial_norm_is_its_definition_and_its_small_maps_stay_small(
    size: tuple[int, int], small: tuple[int, int], with_silu: bool
) -> None:
    inputs = [maps(*size), maps(*small), maps(*small)]
    normed = spatial_norm(*inputs, size)
    model = rewritten(ov.Model([silu(normed) if with_silu else normed], inputs, "norm"))
    assert not kinds(model)["Interpolate"]
    arrays = [RNG.normal(1, 1, (BATCH, CHANNELS, *side)).astype(np.float32) for side in (size, small, small)]
    expected = defined(*arrays)
    expected = expected / (1 + np.exp(-expected)) if with_silu else expected
    np.testing.assert_allclose(run(model, *arrays)[0], expected, atol=2e-5)


def test_what_a_norm_gives_may_have_other_users_than_its_silu() -> None:
    inputs = [maps(8, 8), maps(4, 4), maps(4, 4)]
    normed = spatial_norm(*inputs, (8, 8))
    model = rewritten(ov.Model([silu(normed), ops.tanh(normed)], inputs, "two users"))
    arrays = [RNG.normal(size=(BATCH, CHANNELS, *side)).astype(np.float32) for side in ((8, 8), (4, 4), (4, 4))]
    expected = defined(*arrays)
    both = run(model, *arrays)
    np.testing.assert_allclose(both[0], expected / (1 + np.exp(-expected)), atol=2e-5)
    np.testing.assert_allclose(both[1], np.tanh(expected), atol=2e-5)


def residual_blocks() -> Any:
    """Two of MoVQ's residual blocks and the convolution behind them: maps that norms, sums and convolutions use."""
    x, scale, shift = inputs = [maps(12, 20), maps(6, 10), maps(6, 10)]
    for _ in range(2):
        hidden = convolution(silu(spatial_norm(x, scale, shift, (12, 20))))
        hidden = convolution(silu(spatial_norm(hidden, scale, shift, (12, 20))))
        x = ops.add(x, hidden)
    return ov.Model([convolution(x)], inputs, "blocks")


def folded_upsampling() -> Any:
    """Pixel shuffles as `kandinsky22_export.graphs.rewrites.fold_upsampling` makes them, before a spatial norm."""
    x, scale, shift = inputs = [maps(7, 11), maps(3, 5), maps(3, 5)]
    stacked = ops.concat([ops.multiply(x, ops.constant(np.float32(number))) for number in range(1, 5)], 1)
    parts = []
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        part = sliced(stacked, 1, number * CHANNELS, CHANNELS)
        parts.append(ops.unsqueeze(sliced(sliced(part, 2, row, 6), 3, column, 10), ops.constant(2)))
    shape = ops.constant(np.array([BATCH, 4 * CHANNELS, 6, 10]))
    shuffled = ops.depth_to_space(ops.reshape(ops.concat(parts, 2), shape, False), "depth_first", 2)
    return ov.Model([convolution(spatial_norm(shuffled, scale, shift, (12, 20)))], inputs, "shuffle")


def sliced(value: Any, axis: int, first: int, count: int, step: int = 1) -> Any:
    start, stop, steps, axes = (ops.constant(np.array([n])) for n in (first, first + count * step, step, axis))
    return ops.slice(value, start, stop, steps, axes)


@pytest.mark.parametrize(
    ("make", "sides", "gone"),
    [(residual_blocks, ((12, 20), (6, 10)), "Interpolate"), (folded_upsampling, ((7, 11), (3, 5)), "DepthToSpace")],
)
def test_rewritten_graphs_give_what_the_graph_gave(
    make: Callable[[], Any], sides: tuple[tuple[int, int], tuple[int, int]], gone: str
) -> None:
    before, after = make(), make()
    rewritten(after)
    assert kinds(before)[gone]
    assert not kinds(after)[gone]
    arrays = [RNG.normal(size=(BATCH, CHANNELS, *side)).astype(np.float32) for side in (*sides, sides[1])]
    np.testing.assert_allclose(run(after, *arrays)[0], run(before, *arrays)[0], atol=2e-5)


@pytest.mark.parametrize(("mode", "size"), [("linear_onnx", (12, 20)), ("nearest", (9, 15))])
def test_other_upsamplings_are_left_as_they_are(mode: str, size: tuple[int, int]) -> None:
    """Those between pixels, and those by no whole number."""
    inputs = [maps(*size), maps(6, 10), maps(6, 10)]
    before = ov.Model([spatial_norm(*inputs, size, mode)], inputs, "other")
    after = ov.Model([spatial_norm(*inputs, size, mode)], inputs, "other")
    blocks.maps_in_blocks(after)
    assert kinds(after) == kinds(before)


def test_slices_with_steps_are_no_pixel_shuffle() -> None:
    x, scale, shift = inputs = [maps(12, 20), maps(3, 5), maps(3, 5)]
    parts = [
        ops.unsqueeze(sliced(sliced(x, 2, row, 6, 2), 3, column, 10, 2), ops.constant(2))
        for row in (0, 1)
        for column in (0, 1)
    ]
    shape = ops.constant(np.array([BATCH, 4 * CHANNELS, 6, 10]))
    shuffled = ops.depth_to_space(ops.reshape(ops.concat(parts, 2), shape, False), "depth_first", 2)
    model = rewritten(ov.Model([spatial_norm(shuffled, scale, shift, (12, 20))], inputs, "steps"))
    assert kinds(model)["DepthToSpace"] == 1
    arrays = [RNG.normal(size=(BATCH, CHANNELS, *side)).astype(np.float32) for side in ((12, 20), (3, 5), (3, 5))]
    np.testing.assert_allclose(run(model, *arrays)[0], defined(*arrays), atol=2e-5)


def test_movq_s_decoder_has_all_of_its_norms_and_shuffles_in_blocks(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter's graph has the form that is looked for."""
    found: list[Counter[str]] = []
    rewrite = blocks.maps_in_blocks

    def watched(model: Any) -> None:
        found.append(kinds(model))
        rewrite(model)
        found.append(kinds(model))

    monkeypatch.setattr(blocks, "maps_in_blocks", watched)
    component = BACKEND.load(Bundle(shapes_bundle), "movq_decoder", Settings("fp32", threads=1))
    component.run({"latents": np.zeros((1, 4, 8, 8), np.float32)})
    component.close()
    before, after = found
    for kind in ("Interpolate", "DepthToSpace"):
        assert (before[kind] > 0, after[kind]) == (True, 0)
