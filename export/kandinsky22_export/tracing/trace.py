"""A graph traced by torch and written as ONNX, in half of the time that `torch.onnx.export` takes for it.

Between tracing a network and translating it, torch traces it again to decompose what ONNX has no operator for. What
these networks need of that is in `translations.py`; should another network need more, it is decomposed as usual. That
the file computes what torch does is checked afterwards (`comparison.py`), either way.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx import OnnxExporterError, ONNXProgram

from kandinsky22.bundle.manifest import TensorSpec
from kandinsky22_export.graphs.base import Graph, Sizes
from kandinsky22_export.tracing.translations import OPSET, TRANSLATIONS


@torch.no_grad()
def trace(graph: Graph, path: Path) -> None:
    """Trace `graph` at its example sizes and save it in `path`, its weights beside it in `path` with `.data` after it.

    Dimensions with a name in its inputs are dynamic.
    """
    feeds = graph.feeds(graph.example, seed=0)
    dynamic = {
        spec.name: {axis: _dynamic(size, graph.units) for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in graph.inputs
    }
    with warnings.catch_warnings():
        # The same name of two dimensions is meant: they are equal. And torch uses what torch deprecates.
        warnings.filterwarnings("ignore", message=".*will not be used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        program = to_onnx(
            graph,
            tuple(feeds.values()),
            dynamic_shapes=dynamic,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            verbose=False,
            optimize=False,
        )
    weights = list(program.model.graph.initializers.values())
    program.optimize()
    weights += program.model.graph.initializers.values()
    _rename_dimensions(program.model.graph, graph.inputs, graph.outputs)
    # Stack traces of the machine it was traced on: two thirds of the file, and nobody else's business. What is told of
    # the graph is in the order of a set, so that each process would write another file.
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.save(path, external_data=True)
    # The rules that optimised the graph keep it, and so all weights, until the next export.
    for weight in weights:
        weight.const_value = None


def to_onnx(network: torch.nn.Module, arguments: tuple[Any, ...], **options: Any) -> ONNXProgram:
    """What `torch.onnx.export(network, arguments, dynamo=True, **options)` returns for this opset, sooner."""
    options |= {"dynamo": True, "opset_version": OPSET}
    try:
        with _nothing_decomposed():
            program = torch.onnx.export(network, arguments, custom_translation_table=TRANSLATIONS, **options)
    except OnnxExporterError:
        program = torch.onnx.export(network, arguments, **options)
    assert program is not None  # as it is where `dynamo` is not set
    return program


@contextlib.contextmanager
def _nothing_decomposed() -> Iterator[None]:
    decompose = ExportedProgram.run_decompositions
    ExportedProgram.run_decompositions = lambda program, *_, **__: program  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = decompose  # type: ignore[method-assign]


def _dynamic(dimension: str, units: Sizes) -> Any:
    """What torch is told of a named dimension: "8*h" is a multiple of eight, and "h" one of its unit.

    Halves of multiples are whole, which saves the tracer a fifth of its time: without that, every size behind a
    convolution of stride 2 is a rounded quotient of rounded quotients.
    """
    *factors, name = dimension.split("*")
    multiple = math.prod(map(int, factors)) * units.get(name, 1)
    return torch.export.Dim.DYNAMIC if multiple == 1 else multiple * torch.export.Dim(f"{name}_units")


def _rename_dimensions(graph: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Give dimensions the names of the manifest: the tracer has "8*h_units" where h is meant.

    That those with the same name are equal is what the check shows, at other sizes.
    """
    names = {
        str(traced): meant
        for values, specs in ((graph.inputs, inputs), (graph.outputs, outputs))
        for value, spec in zip(values, specs, strict=True)
        for traced, meant in zip(value.shape, spec.shape, strict=True)
        if isinstance(meant, str)
    }
    inside = (output for node in graph.all_nodes() for output in node.outputs)
    for value in (*graph.inputs, *graph.outputs, *inside):
        if value.shape is not None:
            value.shape = type(value.shape)(
                [names.get(str(d), d) if not isinstance(d, int) else d for d in value.shape]
            )
