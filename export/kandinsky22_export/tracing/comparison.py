"""A written graph compared with torch, by ONNX Runtime and at other sizes than it was traced at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from kandinsky22.bundle.manifest import GraphCheck, TensorSpec
from kandinsky22.errors import ExportError
from kandinsky22_export.graphs.base import Feeds, Graph, Sizes

# The largest difference from torch in float32 that passes, relative to the largest value of that output.
# fp32: rounding measures 1e-6 on the published UNet, and up to 3e-5 where a random MoVQ is clipped; a wrong graph is
# off by 1e-2 or more. fp16: half precision keeps 11 bits, some hundred layers lose three or four of them, and a
# guidance of 4 multiplies what is left by up to 7.
BOUNDS = {"fp32": 1e-4, "fp16": 5e-2}


@dataclass(frozen=True)
class Reference:
    """Inputs of a graph, and what torch makes of them in float32."""

    sizes: Sizes
    feeds: Feeds
    expected: tuple[NDArray[np.float32], ...]


@torch.no_grad()
def make_reference(graph: Graph, sizes: Sizes, seed: int) -> Reference:
    """What `graph`, in float32, makes of its random inputs at `sizes`."""
    feeds = graph.feeds(sizes, seed)
    outputs = graph(*feeds.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return Reference(sizes, feeds, tuple(output.numpy() for output in outputs))


def compare(
    name: str, path: Path, outputs: tuple[TensorSpec, ...], references: list[Reference], bound: float
) -> Iterator[GraphCheck]:
    """Run `references` through the file and yield the manifest's record of each. Raises ExportError on an excess."""
    session = _session(path)
    for reference in references:
        results = session.run(None, {key: value.numpy() for key, value in reference.feeds.items()})
        errors = _errors(outputs, results, reference)
        for output, error in errors.items():
            if not error <= bound:  # a NaN is an excess too
                raise ExportError(
                    f"The graph of {name} differs from torch: {output} at {_shown(reference.sizes)} is off by"
                    f" {error:.1e} of its largest value, where {bound:.0e} is allowed; nothing was kept."
                )
        yield GraphCheck(dict(reference.sizes), max(errors.values()), bound)


def _errors(outputs: tuple[TensorSpec, ...], results: Sequence[NDArray[Any]], reference: Reference) -> dict[str, float]:
    """The relative error of each output; infinite where torch's own has another shape than the manifest says."""
    errors = {}
    for spec, result, expected in zip(outputs, results, reference.expected, strict=True):
        meant = expected.shape == spec.resolve(reference.sizes)
        errors[spec.name] = relative_error(result, expected) if meant else float("inf")
    return errors


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


def _shown(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
