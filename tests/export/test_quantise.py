"""Graphs of eight bits: numbers, ranges, Q/DQ pairs, and which layers stay in floating point."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kandinsky22 import ExportError, InputError
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, Role, TensorSpec
from kandinsky22_export.quantise import component as components
from kandinsky22_export.quantise import effects, recording
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.quantise.component import quantise_component
from kandinsky22_export.quantise.effects import MUCH, SIDE, few_of, find_effects, halved, worst
from kandinsky22_export.quantise.errors import layer_error
from kandinsky22_export.quantise.formats import FORMATS
from kandinsky22_export.quantise.layers import Layer, find_layers
from kandinsky22_export.quantise.ranges import Magnitudes, best_scale
from kandinsky22_export.quantise.rewrite import insert_pairs, quantised_weight
from kandinsky22_export.write_bundle import export

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]
BOTH = pytest.mark.parametrize("name", FORMATS)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Numbers of eight bits.


def test_int8_is_rounded_and_cut_at_its_ends() -> None:
    values = np.array([0.4, -0.6, 2.5, 126.6, 500, -500], np.float32)
    assert INT8.encode(values).tolist() == [0, -1, 2, 127, 127, -128]


def test_fp8_is_torch_s() -> None:
    values = np.concatenate([random(4096) * 100, random(4096) * 0.01, [448, -448, 0, 2.0**-9, 2.0**-10]])
    values = values.clip(-448, 448).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(FP8.decode(FP8.encode(values)), expected)
    assert FP8.decode(FP8.encode(np.array([1e6, -1e6], np.float32))).tolist() == [448, -448]


def test_the_spacing_is_that_between_neighbours() -> None:
    codes = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()  # from 0 to 448
    np.testing.assert_array_equal(FP8.spacing(codes[:-1]), np.diff(codes))
    np.testing.assert_array_equal(INT8.spacing(np.arange(127.0)), np.ones(127))


# Ranges.


def test_magnitudes_are_counted() -> None:
    seen, values = Magnitudes(), random(1000)
    seen.add(values[:300].reshape(3, 100))
    seen.add(-values[300:])
    assert seen.counts.sum() == 1000
    assert seen.largest == np.abs(values).max()


@BOTH
@pytest.mark.parametrize("tail", [1, 30])
def test_the_scale_is_the_one_that_rounds_best(name: str, tail: float) -> None:
    into, values = FORMATS[name], random(20_000)
    values[:5] *= tail  # a few may be far larger than the others
    seen = Magnitudes()
    seen.add(values)

    def error(scale: float) -> float:
        rounded = into.decode(into.encode(values / np.float32(scale))).astype(np.float64) * scale
        return float(np.square(rounded - values).mean())

    largest = float(np.abs(values).max())
    best = min(error(largest / into.largest * share) for share in np.geomspace(0.02, 1, 400))
    assert error(best_scale([seen], into)) < 1.03 * best


def test_every_range_of_timesteps_counts_as_much() -> None:
    small, large = Magnitudes(), Magnitudes()
    small.add(random(10_000) * 0.1)
    large.add(random(10_000) * 10)
    alone = best_scale([large], INT8)
    together = best_scale([small, large], INT8)
    assert 0.2 * alone < together < 0.8 * alone  # small numbers would otherwise be a few steps, whatever the scale


def test_what_is_always_zero_has_a_scale() -> None:
    seen = Magnitudes()
    seen.add(np.zeros(10, np.float32))
    assert best_scale([seen], INT8) == 1


# Weights and layers.


@BOTH
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_weight_is_off_by_half_a_step_of_its_channel(name: str, axis: int, dtype: type) -> None:
    into, weight = FORMATS[name], random(6, 8, 3, 3) * np.geomspace(0.01, 10, 8, dtype=np.float32)[:, None, None]
    weight[2] = weight[:, 3] = 0
    numbers, scale = quantised_weight(weight, axis, np.dtype(dtype), into)
    assert (numbers.dtype, scale.dtype, scale.shape) == (into.dtype, dtype, (weight.shape[axis],))
    scales = scale.astype(np.float64).reshape([-1 if each == axis else 1 for each in range(4)])
    steps = into.spacing(np.abs(weight) / scales) * scales
    assert (np.abs(into.decode(numbers) * scales - weight) <= 0.51 * steps).all()


def graph(
    *nodes: onnx.NodeProto, weights: dict[str, NDArray[Any]], inputs: tuple[str, ...] = ("x",), rank: int = 4
) -> onnx.ModelProto:
    """A model of nodes whose last output is `y`; inputs and output have as many dimensions as `rank`."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def convolution_and_product() -> onnx.ModelProto:
    """A strided, padded convolution of x (B, 3, h, w), then a product over its channels."""
    return graph(
        helper.make_node("Conv", ["x", "kernel", "bias"], ["maps"], "conv", strides=[2, 1], pads=[1, 0, 2, 1]),
        helper.make_node("Transpose", ["maps"], ["pixels"], "turn", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["pixels", "matrix"], ["y"], "product"),
        weights={"kernel": random(5, 3, 3, 2, seed=1), "bias": random(5, seed=2), "matrix": random(5, 4, seed=3)},
    )


def run(model: onnx.ModelProto, **feeds: NDArray[Any]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], feeds)[0]  # type: ignore[no-any-return]


def test_layers_are_convolutions_and_products_with_weights_of_their_own() -> None:
    model = graph(
        helper.make_node("Conv", ["x", "kernel"], ["a"], "conv"),
        helper.make_node("Gemm", ["e", "vector"], ["b"], "embedding"),
        helper.make_node("MatMul", ["a", "shared"], ["c"], "one"),
        helper.make_node("MatMul", ["c", "shared"], ["d"], "other"),
        helper.make_node("MatMul", ["a", "d"], ["f"], "scores"),
        helper.make_node("MatMul", ["f", "matrix"], ["y"], "product"),
        weights={name: random(4, 4) for name in ("vector", "shared", "matrix")} | {"kernel": random(4, 4, 1, 1)},
        inputs=("x", "e"),
    )
    assert find_layers(model) == [
        Layer("conv", "Conv", "x", "kernel", (4, 4, 1, 1)),
        Layer("product", "MatMul", "f", "matrix", (4, 4)),
    ]


def test_all_layers_of_the_unet_are_found(shapes_bundle: Path) -> None:
    model = onnx.load(shapes_bundle / "onnx" / "decoder_step.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    layers = find_layers(model)
    assert len(layers) == kinds.count("Conv") + kinds.count("MatMul")
    assert sum(layer.parameters for layer in layers) > 0.8 * Bundle(shapes_bundle).component("decoder_step").parameters


@BOTH
def test_pairs_round_activations_by_tensor_and_weights_by_channel(name: str) -> None:
    into, model = FORMATS[name], convolution_and_product()
    x, scales = random(2, 3, 9, 7), {"x": 3 / into.largest, "pixels": 20 / into.largest}
    kernel, bias, matrix = (numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer)
    insert_pairs(model, find_layers(model), scales, into)
    onnx.checker.check_model(model, full_check=True)

    def rounded(values: NDArray[Any], scale: Any) -> torch.Tensor:
        numbers = into.decode(into.encode((values / scale).astype(np.float32)))
        return torch.from_numpy(numbers.astype(np.float64) * scale)

    by_kernel = (np.abs(kernel).max(axis=(1, 2, 3)) / into.largest)[:, None, None, None]
    padded = torch.nn.functional.pad(rounded(x, np.float32(scales["x"])), (0, 1, 1, 2))
    maps = torch.nn.functional.conv2d(padded, rounded(kernel, by_kernel), torch.from_numpy(bias), stride=(2, 1))
    pixels = maps.permute(0, 2, 3, 1).numpy().astype(np.float32)
    expected = rounded(pixels, np.float32(scales["pixels"])) @ rounded(matrix, np.abs(matrix).max(0) / into.largest)
    # A number between two steps may be rounded to either, by the last bit of float32.
    assert np.abs(run(model, x=x) - expected.numpy()).mean() < 1e-2 * float(expected.abs().mean())
    stored = {each.name: each for each in model.graph.initializer}
    assert stored["kernel"].data_type == stored["matrix"].data_type == into.onnx_type
    assert stored["bias"].data_type == TensorProto.FLOAT


@BOTH
@pytest.mark.parametrize("which", [0, 1])
def test_the_error_of_a_layer_is_what_its_pairs_do(name: str, which: int) -> None:
    into, whole = FORMATS[name], convolution_and_product()
    node, weight = [(whole.graph.node[0], "kernel"), (whole.graph.node[2], "matrix")][which]
    x = random(2, 3, 9, 7) if which == 0 else random(2, 9, 5)
    alone = helper.make_node(node.op_type, ["x", weight], ["y"], node.name)
    alone.attribute.extend(node.attribute)
    array = {each.name: numpy_helper.to_array(each) for each in whole.graph.initializer}[weight]
    model = graph(alone, weights={weight: array}, rank=x.ndim)
    (layer,), scale = find_layers(model), 2 / into.largest
    exact = run(model, x=x).astype(np.float64)
    error = layer_error(layer, model.graph.node[0], x, array, scale, into)
    insert_pairs(model, [layer], {"x": scale}, into)
    expected = np.sqrt(np.square(run(model, x=x) - exact).mean() / np.square(exact).mean())
    assert error == pytest.approx(expected, rel=1e-2)


# What rounding an activation does to the output.


def written(folder: Path, model: onnx.ModelProto, rows: str = "h", columns: str = "w") -> tuple[Path, Component]:
    """A bundle's folder with one component, which makes `y` of `x`, pictures of three channels or so."""
    (folder / "onnx").mkdir()
    path = folder / "onnx" / "small.onnx"
    onnx.save(model, path, save_as_external_data=True, location="small.onnx.data", size_threshold=0)
    return folder, Component(
        role=Role.MOVQ_DECODER,
        files=("onnx/small.onnx", "onnx/small.onnx.data"),
        inputs=(TensorSpec("x", "float32", ("B", 3, rows, columns)),),
        outputs=(TensorSpec("y", "float32", ("B", 40, "h", "w")),),
        precision="fp32",
        parameters=6520,
    )


def two_ways() -> onnx.ModelProto:
    """A narrow stream of four channels beside a wide one that adds a thousandth, between two convolutions."""
    weights = {"first": random(4, 3, 1, 1, seed=1), "narrow": random(4, 4, 1, 1, seed=2), "wide": random(64, 4, 3, 3)}
    weights["back"] = random(4, 64, 3, 3, seed=3) * np.float32(1e-4)
    weights["last"] = random(40, 4, 1, 1, seed=4)
    return graph(
        helper.make_node("Conv", ["x", "first"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["b"], "bound"),
        helper.make_node("Conv", ["b", "narrow"], ["c"], "narrow"),
        helper.make_node("Relu", ["a"], ["d"], "positive"),
        helper.make_node("Conv", ["d", "wide"], ["e"], "wide", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["e", "back"], ["f"], "back", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "f"], ["g"], "both"),
        helper.make_node("Add", ["g", "b"], ["i"], "residual"),
        helper.make_node("Conv", ["i", "last"], ["y"], "last"),
        weights=weights,
    )


@BOTH
def test_the_effect_of_an_activation_is_that_of_rounding_it_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the layers that read it, and nothing else: what is added to the stream is exact."""
    monkeypatch.setattr(effects, "MUCH", 0.0)  # nothing is too little to be told apart
    into, model = FORMATS[name], two_ways()
    weights = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer}
    folder, component = written(tmp_path, model)
    layers = find_layers(model)
    scales = {"x": 2 / into.largest, "b": 1 / into.largest, "d": 3 / into.largest, "e": 20 / into.largest}
    scales["i"] = 4 / into.largest
    told: list[str] = []
    states = [fed(1), fed(2)]
    found = find_effects(folder / "onnx" / "small.onnx", component, layers, scales, into, states, told.append)

    def conv(values: torch.Tensor, weight: str, pad: int = 0) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, torch.from_numpy(weights[weight]), padding=pad)

    def output(x: NDArray[Any], rounded: str) -> NDArray[Any]:
        def seen(name: str, values: torch.Tensor) -> torch.Tensor:
            if name != rounded:
                return values
            numbers = into.decode(into.encode((values.numpy() / scales[name]).astype(np.float32)))
            return torch.from_numpy(numbers.astype(np.float64) * np.float32(scales[name]))

        a = conv(seen("x", torch.from_numpy(x.astype(np.float64))), "first")
        b, d = a.tanh(), a.relu()
        e = conv(seen("d", d), "wide", 1)
        i = conv(seen("b", b), "narrow") + conv(seen("e", e), "back", 1) + b
        return conv(seen("i", i), "last").numpy()

    for place, activation in enumerate(scales):
        pairs = [(output(state["x"], ""), output(state["x"], activation)) for state in states]
        squares = [np.square(new - old).mean() / np.square(old).mean() for old, new in pairs]
        assert found["effects"][place] == pytest.approx(np.sqrt(np.mean(squares)), rel=0.05)
    assert found["sizes"].tolist() == [3 * 64, 4 * 64, 4 * 64, 64 * 64, 4 * 64]
    assert told[0] == "finding effects of rounding: 1 to 5 of 5"
    assert "finding effects of rounding: 5 to 5 of 5" in told
    assert {path.name for path in (folder / "onnx").iterdir()} == {"small.onnx", "small.onnx.data"}


@pytest.mark.parametrize(
    ("large", "most"), [({}, 32), ({17: 60.0}, 32), ({0: 40.0, 1: 200.0, 224: 60.0}, 50), ({100: 1e9}, 20)]
)
def test_what_has_much_of_the_error_is_found_without_asking_for_each(large: dict[int, float], most: int) -> None:
    squares = np.random.default_rng(0).uniform(0.5, 1.5, 225)
    squares[list(large)] = list(large.values())
    asked: list[range] = []

    def square(together: range) -> float:
        asked.append(together)
        return float(squares[together].sum())

    found = halved(225, square)
    assert found.sum() == pytest.approx(squares.sum())
    much = squares >= MUCH * squares.sum()
    np.testing.assert_allclose(found[much], squares[much])
    assert (found[~much] < MUCH * squares.sum()).all()
    assert len(asked) <= most


@pytest.mark.parametrize(("rows", "columns", "side"), [("h", "w", SIDE), ("8*h", "8*w", 8 * SIDE)])
def test_effects_are_found_on_a_part_of_a_large_picture(rows: str, columns: str, side: int, tmp_path: Path) -> None:
    model = two_ways()
    folder, component = written(tmp_path, model, rows, columns)
    state = {"x": random(1, 3, side + 5, 7)}
    path, scales = folder / "onnx" / "small.onnx", {layer.activation: 0.1 for layer in find_layers(model)}
    found = find_effects(path, component, find_layers(model), scales, INT8, [state], lambda _: None)
    assert found["sizes"][0] == 3 * side * 7


@pytest.mark.parametrize(("rows", "expected"), [("h", [3, 10]), (77, [0, 2, 4, 6, 7, 9, 11, 13])])
def test_more_states_are_taken_of_what_sees_no_picture(rows: str | int, expected: list[int], tmp_path: Path) -> None:
    _, component = written(tmp_path, two_ways())
    component = dataclasses.replace(component, inputs=(TensorSpec("x", "float32", ("B", rows)),))
    ranges = [[fed(seed) for seed in part] for part in (range(7), range(7, 14))]
    found = few_of(ranges, component)
    every = [state for states in ranges for state in states]
    assert [next(i for i, state in enumerate(every) if state is each) for each in found] == expected
    assert len(few_of([ranges[0][:2]], component)) == (1 if rows == "h" else 2)


def test_layers_are_kept_that_have_more_of_the_error_than_of_the_work() -> None:
    layers = [
        Layer("a", "MatMul", "x", "w_a", (10, 10)),
        Layer("b", "MatMul", "x", "w_b", (10, 10)),
        Layer("c", "MatMul", "y", "w_c", (10, 1000)),
        Layer("d", "Conv", "z", "w_d", (100, 10, 1, 1)),
        Layer("e", "MatMul", "u", "w_e", (10, 70)),
    ]
    scales = dict.fromkeys("xyzu", 1.0)  # work: 200, 10000, 1000 and 700, of 11900
    sizes = np.full(4, 10.0)

    def kept(*effects: float, role: Role = Role.DECODER) -> set[str]:
        return set(worst(layers, scales, {"effects": np.array(effects), "sizes": sizes}, role))

    assert kept(1, 1, 1, 1) == {"a", "b"}  # 25 % of the error in 2 % of the work
    assert kept(0.45, 1, 0.5, 0.5) == {"a", "b"}
    assert kept(0.4, 1, 0.5, 0.5) == set()  # under 10 % of the error
    assert kept(0.1, 1, 0.1, 0.1) == set()
    assert kept(1, 0.1, 1.1, 1) == {"a", "b"}  # the others are more than 3 % of the work
    assert kept(1, 0.1, 1.1, 1, role=Role.PRIOR) == {"a", "b", "e"}  # and two of them together more than 10 %
    assert kept(0, 0, 0, 0) == set()


def test_what_the_output_depends_on_is_kept(tmp_path: Path) -> None:
    """The narrow stream: of its own output it is off no more than others are."""
    folder, component = written(tmp_path, two_ways())
    found = quantise_component(folder, "small", component, [fed(1), fed(2)], INT8, lambda _: None).quantisation
    assert found is not None
    assert list(found.kept) == ["first", "narrow", "last"]
    assert found.kept["narrow"] < 0.02


# Components.


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Component]:
    """A bundle's folder with one component of five convolutions, the third of which is hard to round.

    Of what it reads, one channel is a thousand times the others, and it looks at the others alone.
    """
    names = ["x", "a", "b", "c", "d", "y"]
    kernels = {
        f"kernel_{number}": random(40, 3 if number == 1 else 40, 1, 1, seed=number) for number in range(1, len(names))
    }
    kernels["kernel_2"][0] *= 1000
    kernels["kernel_3"][:, 0] = 0
    model = graph(
        *(
            helper.make_node("Conv", [names[number - 1], f"kernel_{number}"], [names[number]], f"conv_{number}")
            for number in range(1, len(names))
        ),
        weights=kernels,
    )
    return written(tmp_path, model)


def fed(seed: int) -> dict[str, NDArray[Any]]:
    return {"x": random(1, 3, 8, 8, seed=seed)}


def test_sensitive_layers_and_both_ends_are_kept_and_told(small: tuple[Path, Component]) -> None:
    folder, component = small
    states = [fed(1), fed(2), fed(3)]
    before = onnx.load(folder / "onnx" / "small.onnx")
    found = quantise_component(folder, "small", component, states, INT8, lambda _: None).quantisation
    assert found is not None
    assert (found.type, found.layers, found.samples) == ("int8", 2, 3)
    assert list(found.kept) == ["conv_1", "conv_3", "conv_5"]
    assert found.kept["conv_3"] > components.SENSITIVE > found.kept["conv_5"]
    model = onnx.load(folder / "onnx" / "small.onnx")
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2
    pairs = [(run(before, **state), run(model, **state)) for state in states]
    off = [float(np.sqrt(np.square(new - old).mean() / np.square(old).mean())) for old, new in pairs]
    assert found.error == pytest.approx(max(off), rel=0.05)
    assert 0 < found.error < 0.1
    assert {path.name for path in (folder / "onnx").iterdir()} == {"small.onnx", "small.onnx.data"}


def test_a_component_that_would_compute_something_else_is_refused(
    small: tuple[Path, Component], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, component = small
    monkeypatch.setattr(components, "SENSITIVE", np.inf)  # nothing is kept for being hard to round
    with pytest.raises(
        ExportError, match=r"^small in int8 is off by [0-9.]+ of its output, where 0.3 is allowed; .*\.$"
    ):
        quantise_component(folder, "small", component, [fed(1)], INT8, lambda _: None)


def test_states_are_sorted_into_ranges_of_timesteps() -> None:
    states = [{"timestep": np.array([t], np.float32)} for t in (10, 900, 500, 990, 450, 20, 30)]
    ranges = components._by_timestep(states)
    assert [[float(each["timestep"][0]) for each in part] for part in ranges] == [[990, 900], [500, 450], [30, 20, 10]]
    assert len(components._by_timestep([fed(0), fed(1)])) == 1


# Real runs.


def test_states_of_real_runs_are_recorded(shapes_bundle: Path) -> None:
    told: list[str] = []
    asked = Calibration(("a red circle", "a blue square"), seed=7, samples=8)
    wanted: dict[str, recording.Keep] = {
        "spread": recording.spread_over(asked),
        "first": lambda component, fed, number: fed[:1] if number == 0 else [],
    }
    both = recording.record(shapes_bundle, asked, told.append, wanted)
    found, firsts = both["spread"], both["first"]
    assert told == ["painting 1 of 2", "painting 2 of 2"]
    steps = {name for name in found if "step" in name}
    assert steps == {"prior_step", "decoder_step", "decoder_step_controlnet", "decoder_step_inpaint"}
    for name in steps:
        timesteps = [float(each["timestep"][0]) for each in found[name]]
        assert len(timesteps) == 8
        assert timesteps[:4] == sorted(timesteps[:4], reverse=True)
        assert timesteps[0] > 900 > 100 > timesteps[3]  # from the first step to the last
    assert (len(found["movq_encoder"]), len(found["movq_decoder"])) == (2, 2)
    first, second = (found["decoder_step"][place]["latents"] for place in (0, 4))
    assert not np.array_equal(first, second)
    (state,) = firsts["decoder_step"]
    np.testing.assert_array_equal(state["latents"], first)


def test_what_paints_nothing_is_refused_before_the_long_work(shapes_checkpoint: Path, tmp_path: Path) -> None:
    tracing: list[str] = []
    with pytest.raises(ExportError, match="made by painting, which needs text_encoder, movq_decoder; export a"):
        export(
            str(shapes_checkpoint / "decoder"),
            tmp_path / "bundle",
            precision="int8",
            components=["prior_step", "decoder_step"],
            note=lambda component, stage: tracing.append(stage),
        )
    assert "tracing" not in tracing
    assert not list(tmp_path.iterdir())


def test_a_calibration_is_for_what_is_quantised(shapes_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"A calibration is for precision int8, fp8 and .*, not for fp16 alone; leave it out"
    ):
        export(str(shapes_checkpoint / "decoder"), tmp_path / "b", precision="fp16", calibration=Calibration())


@pytest.mark.parametrize(
    ("more", "told"),
    [({"prompts": ()}, "no prompt"), ({"samples": 2}, "expected 3 or more"), ({"seed": -1}, "expected 0 to")],
)
def test_a_calibration_that_cannot_be_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Calibration(**more)
