"""Depth maps by an ONNX network: what it is given, and what is made of its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import PIL.Image
import pytest

from kandinsky22 import InputError
from kandinsky22.images import depth


def model(folder: Path, source: str, result: str, body: str) -> Path:
    text = f'<ir_version: 10, opset_import: ["" : 20]>\ndepth (float[{source}] x) => (float[{result}] y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), folder / "depth.onnx")
    return folder / "depth.onnx"


MEAN = "axis = Constant <value_ints = [1]> () y = ReduceMean <keepdims = 0> (x, axis)"
MEAN_OF_FOUR = "axis = Constant <value_ints = [1]> () y = ReduceMean <keepdims = 1> (x, axis)"
RAMP = PIL.Image.fromarray(np.repeat(np.arange(0, 240, 3, dtype=np.uint8)[None], 60, axis=0))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("source", "result", "body"),
    [("1,3,H,W", "1,H,W", MEAN), ("1,3,42,56", "1,1,42,56", MEAN_OF_FOUR)],
)
def test_nearer_is_brighter_from_0_to_1(
    source: str, result: str, body: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "openvino":
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # as where it is not installed
    found = depth.estimate(model(tmp_path, source, result, body), RAMP)
    assert found.shape == (60, 80, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    np.testing.assert_allclose(found[30, :, 0], np.linspace(0, 1, 80), rtol=0, atol=0.03)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_network_sees_a_normalised_picture_of_the_documented_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def loaded(_: Path) -> Any:
        return lambda values: seen.append(values) or values[:, 0], (None, 3, None, None)

    monkeypatch.setattr(depth, "_loaded", loaded)
    depth.estimate(tmp_path / "any.onnx", RAMP)
    (values,) = seen
    assert values.shape == (1, 3, 518, 686)  # 60x80: 518 and 690.7, to the nearest multiple of 14
    assert values.dtype == np.float32
    level = values[0, :, 259, 343] * np.array(depth.DEVIATION) + np.array(depth.MEAN)
    np.testing.assert_allclose(level, np.asarray(RAMP)[30, 40] / 255, rtol=0, atol=0.01)


FLAT = "zero = Constant <value_floats = [0.0]> () z = Mul (x, zero) " + MEAN.replace("(x,", "(z,")
WRONG_SHAPE = "shape = Constant <value_ints = [1, 8, 7]> () y = Reshape (x, shape)"


@pytest.mark.parametrize(
    ("source", "result", "body", "message"),
    [
        ("1,3,H,W", "1,3,H,W", "y = Identity (x)", "expected one depth a pixel"),
        ("1,3,H,W", "1,H,W", FLAT, "sees no depth"),
        ("1,1,H,W", "1,1,H,W", "y = Identity (x)", "takes an input of shape (1, 1, None, None); expected (1, 3,"),
        ("1,3,8,W", "1,8,W", WRONG_SHAPE, "fails on an input of (1, 3, 8,"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(source: str, result: str, body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        depth.estimate(model(tmp_path, source, result, body), RAMP)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
