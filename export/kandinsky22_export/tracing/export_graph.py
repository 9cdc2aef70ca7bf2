"""One graph to one ONNX file with external data, then compared with torch by ONNX Runtime at other shapes."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from kandinsky22.bundle.manifest import Component
from kandinsky22.errors import ExportError
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.progress import OnStage
from kandinsky22_export.tracing.comparison import BOUNDS, compare, make_reference
from kandinsky22_export.tracing.trace import trace
from kandinsky22_export.tracing.variants import VARIANTS

BYTES = {"fp32": 4, "fp16": 2}
"""Size of a weight, by the precision."""

SMALL = 1024
"""Bytes up to which a weight of an edited graph stays in the graph's own file."""


def export_graph(build: Callable[[], Graph], folder: Path, precision: str, note: OnStage) -> Component:
    """Write `<name>.onnx` of the graph that `build` makes into `folder`, `<name>.onnx.data` beside it, and check them.

    There is no second file where the graph has no weights. It is built here so that its weights are freed before ONNX
    Runtime loads them again. `note` is told what is happening. Raises ExportError where the disk is too small or the
    file computes something else than torch.
    """
    note("loading")
    graph = build().eval()
    name, path = graph.name, folder / f"{graph.name}.onnx"
    component = Component(
        role=graph.role,
        files=(f"onnx/{path.name}",),
        inputs=graph.inputs,
        outputs=graph.outputs,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in graph.parameters()),
        scheduler=graph.scheduler,
        state=graph.state,
        per_step=graph.per_step,
    )
    _need_room(folder, component.parameters * BYTES[precision])
    note("computing references")
    references = [make_reference(graph, sizes, seed) for seed, sizes in enumerate(graph.checks)]
    note("tracing")
    if precision == "fp16":
        graph.half()
    weights = _written(graph, path)
    variants = {variant: write_variant(path, variant) for variant in graph.variants}
    del graph
    gc.collect()
    note("comparing with torch")
    checks = [
        check
        for file in (path, *variants.values())
        for check in compare(name, file, component.outputs, references, BOUNDS[precision])
    ]
    return dataclasses.replace(
        component,
        files=(*component.files, *(f"onnx/{file.name}" for file in (*weights, *variants.values()))),
        variants={variant: f"onnx/{file.name}" for variant, file in variants.items()},
        checks=tuple(checks),
    )


def _written(graph: Graph, path: Path) -> list[Path]:
    """Trace a graph into `path`; the file of its weights, where it has any."""
    trace(graph, path)
    weights = path.with_name(f"{path.name}.data")
    if weights.stat().st_size:
        return [weights]
    weights.unlink()  # an empty file cannot be mapped into memory
    return []


def write_variant(path: Path, variant: str) -> Path:
    """Write a variant of the graph in `path`, over the same external data."""
    model = onnx.load(path, load_external_data=False)
    VARIANTS[variant](model)
    file = path.with_name(f"{path.stem}.{variant}.onnx")
    file.write_bytes(model.SerializeToString())
    return file


def save(model: onnx.ModelProto, path: Path, data: str) -> None:
    """Write an edited graph, with its weights in a file called `data` beside it."""
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=SMALL)
    path.with_name(data).chmod(path.stat().st_mode)  # onnx lets nobody else read them


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ExportError(f"The disk is too small: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free.")
