"""A stand-in for onnxruntime-gpu: a session whose runs go into a FakeCuda's stream and are computed on the CPU.

As the real one with `enable_cuda_graph`, it computes the first run of a graph id and captures it with its buffers, and
replays that for every other run of the same id, whatever is bound then.
"""

# ruff: noqa: N802 - the names are ONNX Runtime's

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as real

from .fake_cuda import FakeCuda

PROVIDER = "CUDAExecutionProvider"
Place = tuple[type, tuple[int, ...], int]


class FakeOnnxRuntime:
    """The names of the module `onnxruntime` that the backend uses."""

    __version__ = "1.31.1"
    SessionOptions = real.SessionOptions

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.starts = True
        self.captures = True
        self.fails = ""
        self.opened: list[dict[str, str]] = []

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, name: str, value: str) -> None:
            self.entries[name] = value

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def InferenceSession(self, path: Any, options: Any, providers: Sequence[Any]) -> Any:
        if not isinstance(providers[0], tuple):
            return real.InferenceSession(path, options, providers=providers)
        _, settings = providers[0]
        self.opened.append(settings)
        if settings["enable_cuda_graph"] == "1" and not self.captures:
            raise RuntimeError("This session cannot use the graph capture feature: not all nodes are on CUDA\nwhere")
        return FakeSession(self, path, settings)


class FakeSession:
    def __init__(self, ort: FakeOnnxRuntime, path: Any, settings: Mapping[str, str]) -> None:
        options = real.SessionOptions()
        options.intra_op_num_threads = 1
        self.ort = ort
        self.settings = settings
        self.session: Any = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.stream = int(settings["user_compute_stream"])
        self.captured: dict[str, Callable[[], None]] = {}

    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self.ort.starts else ["CPUExecutionProvider"]

    def run(self, names: list[str], feeds: Mapping[str, Any], options: Any) -> Any:
        assert options.entries == {"gpu_graph_id": "-1", "disable_synchronize_execution_providers": "0"}
        if self.ort.fails:
            raise RuntimeError(self.ort.fails)
        self.ort.cuda.cudaStreamSynchronize(self.stream)
        return self.session.run(names, feeds)

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        if self.ort.fails:
            raise RuntimeError(self.ort.fails)
        assert options.entries["disable_synchronize_execution_providers"] == "1"
        graph = options.entries["gpu_graph_id"]
        inputs, outputs = dict(binding.inputs), dict(binding.outputs)

        def compute() -> None:
            results = self.session.run(list(outputs), {name: self._array(*inputs[name]).copy() for name in inputs})
            for place, result in zip(outputs.values(), results, strict=True):
                self._array(*place)[:] = result

        if self.settings["enable_cuda_graph"] == "1":
            compute = self.captured.setdefault(graph, compute)
        self.ort.cuda.enqueue(self.stream, compute)

    def _array(self, dtype: type, shape: tuple[int, ...], address: int) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.ort.cuda.region(address, size).view(dtype).reshape(shape)


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, Place] = {}
        self.outputs: dict[str, Place] = {}

    def bind_input(self, name: str, device: str, number: int, dtype: type, shape: tuple[int, ...], at: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.inputs[name] = (dtype, shape, at)

    def bind_output(self, name: str, device: str, number: int, dtype: type, shape: tuple[int, ...], at: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.outputs[name] = (dtype, shape, at)
