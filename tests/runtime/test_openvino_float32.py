"""What stays in float32 when a graph is computed in bfloat16, and that pictures of one run do not see each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22.arrays import Array
from kandinsky22.backends import Settings, onnxruntime
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.measure import inputs

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from openvino import Model
from openvino import opset13 as ops

from kandinsky22.backends.openvino import component, float32
from tests.bfloat16 import bfloat16, rounded_value

STEPS = ("prior_step", "decoder_step", "decoder_step_inpaint", "decoder_step_controlnet")
SCHEDULER = {"coefficients", "noise", "x0_before", "guidance", "thresholding"}


def feeds_of(bundle: Bundle, name: str, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    sizes = {"B": batch, "G": 2, "h": 8, "w": 16}
    resolved = {spec.name: spec.resolve(sizes) for spec in bundle.component(name).inputs}
    return inputs.feeds(bundle, name, resolved, seed)


def parts_of(bundle: Bundle, name: str) -> list[float32.Part]:
    model = component.core().read_model(bundle.graph(name))
    model.reshape({key: list(array.shape) for key, array in feeds_of(bundle, name).items()})
    return float32.parts(model, [spec.name for spec in bundle.component(name).outputs])


def kinds(part: float32.Part) -> set[str]:
    return {str(node.get_type_name()) for node in part.model.get_ordered_ops()}


@pytest.mark.parametrize("name", STEPS)
def test_sines_and_the_scheduler_are_in_float32_and_the_network_is_not(shapes_bundle: Path, name: str) -> None:
    sines, network, after = parts_of(Bundle(shapes_bundle), name)
    assert [part.precision for part in (sines, network, after)] == ["fp32", "bf16", "fp32"]
    assert sines.inputs == ("timestep",)
    assert {"Sin", "Cos"} <= kinds(sines)
    assert not {"Sin", "Cos"} & (kinds(network) | kinds(after))
    assert set(after.inputs) >= SCHEDULER
    assert not set(network.inputs) & {*SCHEDULER, "timestep"}
    assert not kinds(after) & float32.HEAVY
    assert kinds(network) >= {"MatMul", "ScaledDotProductAttention"}
    (model,) = network.outputs
    assert set(after.inputs) & {model}
    assert after.outputs == ("latents_next", "x0", "model")[: 2 if name == "prior_step" else 3]


@pytest.mark.parametrize("name", ["decoder_forecast", "decoder_forecast_controlnet", "decoder_forecast_inpaint"])
def test_a_forecast_is_in_float32(shapes_bundle: Path, name: str) -> None:
    (after,) = parts_of(Bundle(shapes_bundle), name)
    assert after.precision == "fp32"
    assert after.outputs == ("latents_next", "x0")


@pytest.mark.parametrize("name", ["movq_decoder", "movq_encoder", "hint_encoder"])
def test_maps_leave_the_last_convolution_unrounded(shapes_bundle: Path, name: str) -> None:
    network, after = parts_of(Bundle(shapes_bundle), name)
    assert (network.precision, after.precision) == ("bf16", "fp32")
    last = [result.input_value(0).get_node().get_type_name() for result in network.model.get_results()]
    assert last == ["Convolution"]
    assert not kinds(after) & float32.HEAVY


def test_a_decoder_of_bytes_is_in_bf16_until_its_last_product_alone(int8_bundle: Path) -> None:
    model = component.core().read_model(Bundle(int8_bundle).graph("movq_decoder"))
    model.reshape({"latents": [1, 4, 8, 16]})
    network, after = float32.parts(model, ["image"], until_products=True)
    assert (network.precision, after.precision) == ("bf16", "fp32")
    assert kinds(network) & float32.PRODUCTS
    assert not kinds(after) & float32.PRODUCTS
    assert {"Convolution", "GroupNormalization"} <= kinds(after)
    assert after.outputs == ("image",)


def test_a_decoder_of_bytes_in_two_parts_is_what_it_is_in_one(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in float32, beside the whole: where rounding to bytes falls on another side, pixels differ a little."""
    bundle, feeds = Bundle(int8_bundle), feeds_of(Bundle(int8_bundle), "movq_decoder")
    compiled: list[str] = []

    def in_float32(_: Any, part: float32.Part) -> Any:
        compiled.append(part.precision)
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        return component.core().compile_model(part.model, component.DEVICE, options)

    monkeypatch.setattr(component, "_has_int8", lambda: True)
    monkeypatch.setattr(component.OpenVinoComponent, "_compile_part", in_float32)
    found = []
    for has_bf16 in (False, True):
        monkeypatch.setattr(component, "_has_bf16", lambda has_bf16=has_bf16: has_bf16)
        found.append(component.BACKEND.load(bundle, "movq_decoder", Settings("int8", 1)).run(feeds)["image"])
    assert compiled == ["fp32", "bf16", "fp32"]
    assert np.sqrt(np.square(found[1] - found[0]).mean()) < 2e-3


@pytest.mark.parametrize("name", [*STEPS, "text_encoder", "movq_decoder"])
def test_the_parts_together_compute_what_the_graph_does(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All of them in float32, against ONNX Runtime."""
    bundle = Bundle(shapes_bundle)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "SNIPPETS_MODE": "DISABLE"}

    def in_float32(_: Any, part: float32.Part) -> Any:
        return component.core().compile_model(part.model, component.DEVICE, options)

    monkeypatch.setattr(component, "_has_bf16", lambda: True)
    monkeypatch.setattr(component.OpenVinoComponent, "_compile_part", in_float32)
    feeds = feeds_of(bundle, name, batch=2)
    results = component.BACKEND.load(bundle, name, Settings("bf16", 1)).run(feeds)
    expected = onnxruntime.CPU.load(bundle, name, Settings(threads=1)).run(feeds)
    assert results.keys() == expected.keys()
    for output, array in expected.items():
        np.testing.assert_allclose(results[output], array, rtol=0, atol=2e-5 * np.abs(array).max())


def test_a_sine_behind_the_network_stays_in_its_place() -> None:
    """Of what it depends on, part is computed by the network."""

    def product(value: Any) -> Any:
        return ops.matmul(value, ops.constant(np.ones((3, 3), np.float32)), False, False)

    x = ops.parameter([2, 3], np.float32, name="x")
    network, after = float32.parts(Model([ops.sin(product(x))], [x], "last"), ["y"])
    assert (network.precision, after.precision, kinds(after) & {"Sin"}) == ("bf16", "fp32", {"Sin"})
    x = ops.parameter([2, 3], np.float32, name="x")
    (only,) = float32.parts(Model([product(ops.sin(product(x)))], [x], "between"), ["y"])
    assert (only.precision, only.inputs, only.outputs) == ("bf16", ("x",), ("y",))


@pytest.mark.slow
def test_the_parts_in_float32_bring_a_step_nearer_to_float32(
    shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated, to 0.7 of the error that the decoder's step has where all of it is in bfloat16."""
    bundle, name = Bundle(shapes_bundle), "decoder_step"
    given = [feeds_of(bundle, name, batch=4, seed=seed) for seed in range(4)]
    exact = [onnxruntime.CPU.load(bundle, name, Settings(threads=1)).run(feeds)["x0"] for feeds in given]

    def error() -> float:
        loaded = component.BACKEND.load(bundle, name, Settings("bf16", 1))
        pairs = zip(given, exact, strict=True)
        return float(np.sqrt(np.mean([(loaded.run(feeds)["x0"] - array) ** 2 for feeds, array in pairs])))

    def whole(model: Any, outputs: list[str]) -> list[float32.Part]:
        names = tuple(parameter.get_friendly_name() for parameter in model.get_parameters())
        return [float32.Part(model, "bf16", names, tuple(outputs))]

    with bfloat16():
        parted = error()
        monkeypatch.setattr(float32, "parts", whole)
        assert parted < 0.9 * error()


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder",
        "prior_step",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("decoder_step_inpaint", "movq_decoder")),
    ],
)
def test_a_picture_in_bf16_is_the_same_to_the_bit_alone_and_beside_others(shapes_bundle: Path, name: str) -> None:
    bundle = Bundle(shapes_bundle)
    specs = bundle.component(name)
    together = feeds_of(bundle, name, batch=3)
    with bfloat16():
        loaded = component.BACKEND.load(bundle, name, Settings("bf16", 1))
        all_three = loaded.run(together)
        for i in (2, 0):
            own = {spec.name: _picture(together[spec.name], spec.shape, i) for spec in specs.inputs}
            alone = component.BACKEND.load(bundle, name, Settings("bf16", 1)).run(own)
            for spec in specs.outputs:
                np.testing.assert_array_equal(alone[spec.name], _picture(all_three[spec.name], spec.shape, i))


def test_the_emulation_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * np.float32(1000)
    x = ops.parameter([len(array)], np.float32)
    model = Model([rounded_value(x.output(0))], [x], "rounded")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    rounded = component.core().compile_model(model, component.DEVICE, options)([array])[0]
    np.testing.assert_array_equal(rounded, torch.from_numpy(array).bfloat16().float().numpy())


def _picture(array: Array, shape: tuple[int | str, ...], i: int) -> Array:
    """One picture's part of a tensor; all of it where it counts no pictures."""
    if "B" not in shape:
        return array
    return array[:, i : i + 1] if shape[0] == "G" else array[i : i + 1]
