"""One graph to one file: what the check lets through and what it stops, on a graph that takes a second to trace."""

from __future__ import annotations

import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from kandinsky22.bundle.manifest import Role, TensorSpec
from kandinsky22.errors import ExportError
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.tracing import comparison, export_graph


class Small(Graph):
    """x (B, n, 8) -> two linear maps of it."""

    name = "small"
    role = Role.PRIOR

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 3)),
            inputs=(TensorSpec("x", "float32", ("B", "n", 8)),),
            outputs=(TensorSpec("y", "float32", ("B", "n", 3)), TensorSpec("z", "float32", ("B", 3))),
            example={"B": 2, "n": 5},
            checks=({"B": 1, "n": 4}, {"B": 3, "n": 1}),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.network(x.to(self.network[0].weight.dtype)).float()
        return y, y.sum(1)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.mark.parametrize(("precision", "low", "high"), [("fp32", 0, 1e-6), ("fp16", 1e-5, 5e-3)])
def test_a_graph_passes_and_says_how_far_it_is_from_torch(
    tmp_path: Path, notes: list[str], precision: str, low: float, high: float
) -> None:
    component = export_graph.export_graph(small, tmp_path, precision, notes.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]
    assert component.files == ("onnx/small.onnx", "onnx/small.onnx.data")
    assert (component.parameters, component.precision) == (8 * 64 + 64 + 64 * 3 + 3, precision)
    assert [check.sizes for check in component.checks] == list(small().checks)
    for check in component.checks:
        assert low <= check.error <= high
        assert check.bound == comparison.BOUNDS[precision]
    assert notes == ["loading", "computing references", "tracing", "comparing with torch"]


def test_the_file_is_opset_23_with_named_dimensions_and_no_traces_of_this_machine(tmp_path: Path) -> None:
    export_graph.export_graph(small, tmp_path, "fp16", lambda _: None)
    model = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {23}
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"x": ["B", "n", 8], "y": ["B", "n", 3], "z": ["B", 3]}
    half = {w.name for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16}
    assert {w.name for w in model.graph.initializer if w.dims and max(w.dims) == 64} <= half
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "small.onnx").read_bytes()


class Halved(Graph):
    """x (B, 2n, 3) -> y (B, n, 5) by a convolution: a shape that the tracer cannot know to be n."""

    name = "halved"
    role = Role.PRIOR

    def __init__(self, length: str = "n") -> None:
        super().__init__(
            nn.Conv1d(3, 5, 3, stride=2, padding=1),
            inputs=(TensorSpec("x", "float32", ("B", "2*n", 3)),),
            outputs=(TensorSpec("y", "float32", ("B", length, 5)),),
            example={"B": 2, "n": 6},
            checks=({"B": 1, "n": 4}, {"B": 3, "n": 7}),
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x.permute(0, 2, 1)).permute(0, 2, 1)
        return output


def test_dimensions_that_are_products_are_named_as_in_the_manifest(tmp_path: Path) -> None:
    export_graph.export_graph(Halved, tmp_path, "fp32", lambda _: None)
    model = onnx.load(tmp_path / "halved.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"x": ["B", "2*n", 3], "y": ["B", "n", 5]}


def test_an_output_of_another_shape_than_the_manifests_fails(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="halved differs from torch: y at B=1, n=4 is off by inf"):
        export_graph.export_graph(lambda: Halved("2*n"), tmp_path, "fp32", lambda _: None)


def test_weights_are_freed_before_onnx_runtime_loads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[weakref.ref[Any]] = []
    held: list[object] = []
    trace, compare = export_graph.trace, export_graph.compare

    def remember(graph: Graph, path: Path) -> None:
        weights.extend(weakref.ref(parameter) for parameter in graph.parameters())
        trace(graph, path)

    def measure(*arguments: Any) -> Any:
        held.extend(weight() for weight in weights)
        return compare(*arguments)

    monkeypatch.setattr(export_graph, "trace", remember)
    monkeypatch.setattr(export_graph, "compare", measure)
    export_graph.export_graph(small, tmp_path, "fp16", lambda _: None)
    assert held == [None] * 4


def test_altered_weights_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = export_graph.trace

    def trace_and_alter(graph: Graph, path: Path) -> None:
        trace(graph, path)
        weights = np.fromfile(f"{path}.data", np.float32)
        weights[np.abs(weights).argmax()] *= 1.5
        weights.tofile(f"{path}.data")

    monkeypatch.setattr(export_graph, "trace", trace_and_alter)
    with pytest.raises(ExportError, match="small differs from torch: y at B=1, n=4 is off by"):
        export_graph.export_graph(small, tmp_path, "fp32", lambda _: None)


def test_a_bound_that_is_exceeded_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(comparison.BOUNDS, "fp16", 1e-7)
    with pytest.raises(ExportError, match="1e-07 is allowed"):
        export_graph.export_graph(small, tmp_path, "fp16", lambda _: None)


def test_overflow_in_half_precision_fails(tmp_path: Path) -> None:
    def overflowing() -> Small:
        graph = small()
        graph.network[2].weight.data *= 1e9
        return graph

    with pytest.raises(ExportError, match=r"is off by (nan|inf)"):
        export_graph.export_graph(overflowing, tmp_path, "fp16", lambda _: None)


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(2000, 1000, 1000)
    monkeypatch.setattr(export_graph.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"The disk is too small: 0\.0 GB are needed and 0\.0 GB are free"):
        export_graph.export_graph(small, tmp_path, "fp32", lambda _: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("result", "expected", "error"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([[1.0]], [1.0], np.inf), ([0.0, np.nan], [1.0, 1.0], np.nan)],
)
def test_relative_error(result: Any, expected: Any, error: float) -> None:
    np.testing.assert_equal(comparison.relative_error(np.array(result), np.array(expected)), error)


def test_a_graph_s_file_has_nothing_of_the_tracer(tmp_path: Path) -> None:
    """Its notes name files of the machine, and symbols in the order of a set: each process would write other bytes."""
    export_graph.export_graph(small, tmp_path, "fp32", lambda _: None)
    graph = onnx.load(tmp_path / "small.onnx", load_external_data=False).graph
    assert not graph.metadata_props
    assert not any(node.metadata_props for node in graph.node)
