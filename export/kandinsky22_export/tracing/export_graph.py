"""One graph to one ONNX file with external data, then compared with torch by ONNX Runtime at other shapes."""

from __future__ import annotations

import dataclasses
import gc
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from kandinsky22.bundle.manifest import Component, GraphCheck, TensorSpec
from kandinsky22.errors import ExportError
from kandinsky22_export.graphs.base import Feeds, Graph, Sizes
from kandinsky22_export.tracing import translations
from kandinsky22_export.tracing.variants import VARIANTS

# The largest difference from torch in float32 that passes, relative to the largest value of that output.
# fp32: rounding measures 1e-6 on the published UNet, and up to 3e-5 where a random MoVQ is clipped; a wrong graph is
# off by 1e-2 or more. fp16: half precision keeps 11 bits, some hundred layers lose three or four of them, and a
# guidance of 4 multiplies what is left by up to 7.
BOUNDS = {"fp32": 1e-4, "fp16": 5e-2}
BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Case:
    """Inputs of a check and what torch makes of them in float32."""

    sizes: Sizes
    feeds: Feeds
    expected: tuple[NDArray[np.float32], ...]


def export_graph(build: Callable[[], Graph], folder: Path, precision: str, note: Callable[[str], None]) -> Component:
    """Write `<name>.onnx` and `<name>.onnx.data` of the graph that `build` makes into `folder`, checked.

    The graph is built here so that its weights are freed before ONNX Runtime loads them again. `note` is told what is
    happening. Raises ExportError where the disk is too small or the file computes something else than torch.
    """
    note("loading")
    graph = build().eval()
    component = Component(
        role=graph.role,
        files=(f"onnx/{graph.name}.onnx", f"onnx/{graph.name}.onnx.data"),
        inputs=graph.inputs,
        outputs=graph.outputs,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in graph.parameters()),
        scheduler=graph.scheduler,
        state=graph.state,
        per_step=graph.per_step,
    )
    name, path = graph.name, folder / f"{graph.name}.onnx"
    _need_room(folder, component.parameters * BYTES[precision])
    note("computing references")
    cases = [_case(graph, sizes, seed) for seed, sizes in enumerate(graph.checks)]
    note("tracing")
    if precision == "fp16":
        graph.half()
    _write(graph, path)
    variants = {variant: _write_variant(path, variant) for variant in graph.variants}
    del graph
    gc.collect()
    note("comparing with torch")
    checks = [
        check
        for file in (path, *variants.values())
        for check in _check(name, file, component.outputs, cases, BOUNDS[precision])
    ]
    return dataclasses.replace(
        component,
        files=(*component.files, *(f"onnx/{file.name}" for file in variants.values())),
        variants={variant: f"onnx/{file.name}" for variant, file in variants.items()},
        checks=tuple(checks),
    )


def _write_variant(path: Path, variant: str) -> Path:
    """Write a variant of the graph in `path`, over the same external data."""
    model = onnx.load(path, load_external_data=False)
    VARIANTS[variant](model)
    file = path.with_name(f"{path.stem}.{variant}.onnx")
    file.write_bytes(model.SerializeToString())
    return file


@torch.no_grad()
def _case(graph: Graph, sizes: Sizes, seed: int) -> Case:
    feeds = graph.feeds(sizes, seed)
    outputs = graph(*feeds.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return Case(sizes, feeds, tuple(output.numpy() for output in outputs))


@torch.no_grad()
def _write(graph: Graph, path: Path) -> None:
    """Trace `graph` at its example sizes and save it; dimensions with a name in its inputs are dynamic."""
    feeds = graph.feeds(graph.example, seed=0)
    dynamic = {
        spec.name: {axis: _dynamic(size, graph.units) for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in graph.inputs
    }
    with warnings.catch_warnings():
        # The same name of two dimensions is meant: they are equal. And torch uses what torch deprecates.
        warnings.filterwarnings("ignore", message=".*will not be used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        program = translations.to_onnx(
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
    # Stack traces of the machine it was traced on: two thirds of the file, and nobody else's business.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.save(path, external_data=True)
    # The rules that optimised the graph keep it, and so all weights, until the next export.
    for weight in weights:
        weight.const_value = None


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


def _check(
    name: str, path: Path, outputs: tuple[TensorSpec, ...], cases: list[Case], bound: float
) -> Iterator[GraphCheck]:
    """Run `cases` through the file and yield the manifest's record of each. Raises ExportError on an excess."""
    session = _session(path)
    for case in cases:
        results = session.run(None, {key: value.numpy() for key, value in case.feeds.items()})
        errors = {
            spec.name: relative_error(result, expected) if expected.shape == spec.resolve(case.sizes) else float("inf")
            for spec, result, expected in zip(outputs, results, case.expected, strict=True)
        }
        for output, error in errors.items():
            if not error <= bound:  # a NaN is an excess too
                raise ExportError(
                    f"The graph of {name} differs from torch: {output} at {_sizes(case.sizes)} is off by {error:.1e}"
                    f" of its largest value, where {bound:.0e} is allowed; nothing was kept."
                )
        yield GraphCheck(dict(case.sizes), max(errors.values()), bound)


def relative_error(result: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where the shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def _session(path: Path) -> onnxruntime.InferenceSession:
    """A session that runs the file as it is written, over one copy of the weights: no folding, prepacking or arena.

    With optimisations on, ONNX Runtime would keep a float32 copy of every half-precision weight; in its default order
    it makes them all first, for they wait for no input (the image encoder: 8.9 GiB instead of 3.6, and twice the time).
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ExportError(f"The disk is too small: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free.")


def _sizes(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
