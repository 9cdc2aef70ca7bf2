"""Winograd's convolutions for OpenVINO against the definition of a convolution in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kandinsky22 import memory
from kandinsky22.arrays import Array
from kandinsky22.backends.openvino.component import core

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from openvino import opset13 as ops  # noqa: E402

from kandinsky22.backends.openvino import winograd  # noqa: E402
from kandinsky22.backends.openvino.winograd import F2, F4, Points  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(params=[F4, F2], ids=["F4", "F2"])
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions are rewritten too, by one of the algorithms."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", {request.param: 1})


def kernels(channels_out: int, channels_in: int, side: int = 3) -> Array:
    return RNG.normal(size=(channels_out, channels_in, side, side)).astype(np.float16)


def convolution(weights: Array, shape: tuple[int, ...], stride: int = 1, pad: int = 1, dilation: int = 1) -> Any:
    """A model of one convolution with weights in half precision, as `in_float32` leaves them."""
    maps = ops.parameter(list(shape), np.float32)
    widened = ops.convert(ops.constant(weights), "f32")
    widened.get_rt_info()["decompression_0"] = ""
    return ov.Model([ops.convolution(maps, widened, [stride] * 2, [pad] * 2, [pad] * 2, [dilation] * 2)], [maps])


def run(model: Any, maps: Array, given: dict[str, Any] | None = None) -> Array:
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    kernels = {name: constant.tensor_view for name, constant in (given or {}).items()}
    return np.array(compiled({0: maps, **kernels})[0])


def convolved(maps: Array, weights: Array) -> Array:
    """The definition, in float64, with zeros beyond the border."""
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    result: Array = np.einsum("bchwyx,kcyx->bkhw", windows, weights.astype(np.float64), optimize=True)
    return result


def kinds(model: Any) -> set[str]:
    return {node.get_type_name() for node in model.get_ordered_ops()}


@pytest.mark.parametrize(("points", "outputs"), [(F4, 4), (F2, 2)])
def test_the_matrices_correlate(points: Points, outputs: int) -> None:
    out, kernel, tile = winograd.matrices(points)
    side = outputs + 2
    assert (out.shape, kernel.shape, tile.shape) == ((outputs, side), (side, 3), (side, side))
    for _ in range(20):
        pixels, taps = RNG.normal(size=side), RNG.normal(size=3)
        np.testing.assert_allclose(out @ ((kernel @ taps) * (tile @ pixels)), np.correlate(pixels, taps), atol=1e-14)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("band", [64 << 20, 20_000, 1], ids=["one band", "some bands", "a row of tiles a band"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 16, 16), (2, 5, 13, 30), (3, 4, 21, 9), (1, 3, 4, 4), (1, 2, 1, 1), (1, 6, 5, 4)]
)
def test_it_is_a_convolution(shape: tuple[int, ...], band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LARGEST_BAND", band)
    weights, maps = kernels(7, shape[1]), RNG.normal(size=shape).astype(np.float32)
    model = convolution(weights, shape)
    given = winograd.winograd(model)
    assert "Convolution" not in kinds(model)
    assert [each.get_any_name() for each in model.inputs[1:]] == list(given)
    expected = convolved(maps, weights)
    np.testing.assert_allclose(run(model, maps, given), expected, atol=1e-5 * np.abs(expected).max())


def test_rounding_errors_stay_small() -> None:
    """Those of the published sizes: five times a plain convolution's, and a hundredth of a step of 255."""
    shape, weights = (1, 256, 32, 32), kernels(256, 256)
    maps = RNG.normal(size=shape).astype(np.float32)
    plain, model = convolution(weights, shape), convolution(weights, shape)
    given = winograd.winograd(model)
    assert given
    expected = convolved(maps, weights)
    errors = [np.abs(run(plain, maps) - expected), np.abs(run(model, maps, given) - expected)]
    spread = expected.std()
    assert errors[1].mean() < 2e-6 * spread
    assert errors[1].max() < 3e-5 * spread
    assert errors[1].mean() > errors[0].mean()


@pytest.mark.usefixtures("any_size")
def test_convolutions_of_one_model_share_what_they_can() -> None:
    maps = ops.parameter([1, 4, 8, 8], np.float32)
    first, second = (kernels(count, 4).astype(np.float32) for count in (4, 6))
    once = ops.convolution(maps, ops.constant(first), [1, 1], [1, 1], [1, 1], [1, 1])
    model = ov.Model([ops.convolution(once, ops.constant(second), [1, 1], [1, 1], [1, 1], [1, 1])], [maps])
    given = winograd.winograd(model)
    assert len(model.inputs) == 3
    array = RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)
    expected = convolved(convolved(array, first), second)
    np.testing.assert_allclose(run(model, array, given), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    "how", [{"stride": 2}, {"pad": 0}, {"pad": 2, "dilation": 2}, {"side": 1, "pad": 0}, {"side": 5, "pad": 2}], ids=str
)
def test_other_convolutions_are_left_alone(how: dict[str, int]) -> None:
    how = dict(how)
    model = convolution(kernels(4, 4, how.pop("side", 3)), (1, 4, 16, 16), **how)
    assert not winograd.is_for(model)
    assert winograd.winograd(model) == {}
    assert "Convolution" in kinds(model)


@pytest.mark.usefixtures("any_size")
def test_kernels_that_are_computed_are_left_alone() -> None:
    maps, weights = ops.parameter([1, 4, 8, 8], np.float32), ops.parameter([4, 4, 3, 3], np.float32)
    model = ov.Model([ops.convolution(maps, weights, [1, 1], [1, 1], [1, 1], [1, 1])], [maps, weights])
    assert winograd.winograd(model) == {}


@pytest.mark.usefixtures("any_size")
def test_maps_of_unknown_size_are_left_alone() -> None:
    model = convolution(kernels(4, 4), (1, 4, -1, 16))
    assert winograd.is_for(model)
    assert winograd.winograd(model) == {}


@pytest.mark.parametrize(
    ("channels", "shape", "tiles"),
    [
        (256, (1, 32, 32), 36),
        (256, (1, 29, 29), 36),
        (256, (1, 28, 28), 16),
        (256, (2, 16, 16), 16),
        (256, (2, 14, 16), None),
        (320, (1, 16, 16), None),
        (128, (1, 64, 64), None),
    ],
)
def test_it_is_for_wide_convolutions_of_large_maps(channels: int, shape: tuple[int, ...], tiles: int | None) -> None:
    """By the tiles of 6x6 where there are enough, or those of 4x4; else by none."""
    batch, *sides = shape
    model = convolution(kernels(channels, channels), (batch, channels, *sides))
    assert winograd.is_for(model) == (channels >= 256)
    assert bool(winograd.winograd(model)) == (tiles is not None)
    places = [node.get_output_shape(0)[0] for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert not tiles or places[0] == tiles


def test_the_estimate_of_memory_knows_the_smallest_map() -> None:
    out = len(F2) - 1
    assert memory.COSTS["openvino", "fp32"].mapped_from == winograd.FEWEST_TILES[F2] * out**2
