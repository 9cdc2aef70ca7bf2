"""ONNX Runtime on an NVIDIA GPU: the path that needs no build. Looped on the device, its graphs captured by itself."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import Settings
from kandinsky22.backends.cuda.bound import BoundGraph
from kandinsky22.backends.cuda.component import DeviceComponent, Shapes
from kandinsky22.backends.cuda.gpu import GPU, SharedGpu
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, Component
from kandinsky22.errors import BackendError, first_line

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"

NO_GRAPH = "-1"
"""The graph id of a run that is neither captured nor replayed."""


class OnnxRuntimeCudaComponent(DeviceComponent):
    """One inference session whose kernels go into the stream that all components share."""

    def __init__(self, bundle: Bundle, name: str, settings: Settings, shared_gpu: SharedGpu = GPU) -> None:
        self.component = bundle.component(name)
        if settings.precision not in ("auto", self.component.precision):
            raise BackendError(
                f"On a GPU, ONNX Runtime computes {name} as it was exported, in {self.component.precision}; use "
                f"precision auto, or export a bundle with --precision {settings.precision}."
            )
        super().__init__(name, shared_gpu)
        try:
            # One thread's turn: loading copies weights by the stream that another may be capturing.
            with bundle.reading(name, ATTENTION_IN_PARTS) as graph, self.gpu.turn:
                started = time.perf_counter()
                self.session: Any = self._open(graph)
        except BaseException:
            self.close()
            raise
        log.info("%s loaded by ONNX Runtime on the GPU in %.1f s", name, time.perf_counter() - started)
        self.graph_ids = itertools.count(1)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`. ONNX Runtime copies in and out by itself."""
        names = [spec.name for spec in self.component.outputs]
        with self.in_use():
            try:
                values = self.session.run(names, dict(feeds), _options(NO_GRAPH, waits=True))
            except Exception as error:
                raise BackendError(f"ONNX Runtime failed on the GPU: {first_line(error)}") from error
            return dict(zip(names, values, strict=True))

    def bind(self, shapes: Shapes) -> BoundGraph:
        """See `DeviceComponent.bind`. Only step graphs are bound: nothing else is looped."""
        return OnnxRuntimeBound(self, shapes)

    def release(self) -> None:
        """See `DeviceComponent.release`."""
        self.session = None

    def _open(self, graph: Any) -> Any:
        """A session; with captured graphs where the graph is a step and all of it can run on the GPU."""
        import onnxruntime as ort

        if hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints which of NVIDIA's packages it does not find
                ort.preload_dlls()
        captured = bool(self.component.state)
        try:
            return self._session(ort, graph, captured=captured)
        except Exception as error:
            if not captured or "graph" not in str(error).lower():
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} cannot load {graph} on the GPU: {first_line(error)}"
                ) from error
            warnings.warn(f"{self.name} runs without a CUDA graph, slower: {first_line(error)}", stacklevel=2)
        return self._session(ort, graph, captured=False)

    def _session(self, ort: Any, graph: Any, *, captured: bool) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        cuda = {
            "user_compute_stream": str(int(self.gpu.work.handle)),
            "enable_cuda_graph": str(int(captured)),
            "use_tf32": "0",  # a float32 bundle is for float32 pictures
            "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search costs seconds for every new shape
            "arena_extend_strategy": "kSameAsRequested",
        }
        session = ort.InferenceSession(graph, options, providers=[(PROVIDER, cuda), "CPUExecutionProvider"])
        if PROVIDER not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__} could not start CUDA for {self.name} (its CUDA and cuDNN libraries "
                f"must fit it); see https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html."
            )
        return session


class OnnxRuntimeBound(BoundGraph):
    """A session bound to static buffers. ONNX Runtime captures at the first run, and replays from then on."""

    def __init__(self, component: OnnxRuntimeCudaComponent, shapes: Shapes) -> None:
        described = component.component
        outputs = _output_shapes(described, shapes)
        super().__init__(
            component.gpu,
            {spec.name: (shapes[spec.name], np.dtype(spec.dtype)) for spec in described.inputs},
            {spec.name: (outputs[spec.name], np.dtype(spec.dtype)) for spec in described.outputs},
            described.state,
        )
        self._session = component.session
        self._binding = self._session.io_binding()
        for name, tensor in self.inputs.items():
            self._binding.bind_input(name, "cuda", 0, tensor.dtype.type, tensor.shape, tensor.address)
        for name, tensor in self.outputs.items():
            self._binding.bind_output(name, "cuda", 0, tensor.dtype.type, tensor.shape, tensor.address)
        # A graph belongs to its buffers: every binding has an id of its own, never used again.
        self._options = _options(str(next(component.graph_ids)), waits=False)

    def enqueue(self) -> None:
        """See `BoundGraph.enqueue`."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed on the GPU: {first_line(error)}") from error

    def close(self) -> None:
        """See `Owner.close`."""
        self._binding = self._session = None
        super().close()


def _output_shapes(component: Component, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of a step graph's outputs: that of the state which they replace, else what the manifest says of them."""
    sizes = {
        dimension: size
        for spec in component.inputs
        for dimension, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(dimension, str)
    }
    state = {output: shapes[name] for name, output in component.state.items()}
    return {spec.name: state.get(spec.name) or spec.resolve(sizes) for spec in component.outputs}


def _options(graph_id: str, *, waits: bool) -> Any:
    """Options of a run: which captured graph it is, and whether the host waits for it."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    options.add_run_config_entry("disable_synchronize_execution_providers", str(int(not waits)))
    return options
