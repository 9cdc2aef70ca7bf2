"""ONNX Runtime: on a GPU where onnxruntime-gpu finds one, else on the CPU, where it runs everywhere.

On the CPU it is the reference that the other backends are compared with: `CPU` runs there whatever else could.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22 import trt
from kandinsky22.arrays import Array
from kandinsky22.backends import Availability, LoadedComponent, OnStep, PerStep, Settings
from kandinsky22.backends.loop import plain_loop
from kandinsky22.backends.onnxruntime_cuda import PROVIDER, OnnxRuntimeCudaComponent
from kandinsky22.bundle import ATTENTION_IN_PARTS, Bundle, Component
from kandinsky22.errors import BackendError, first_line

NAME = "onnxruntime"


class OnnxRuntimeComponent:
    """One inference session."""

    def __init__(self, graph: Path, component: Component, settings: Settings) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: its warnings are about its own optimiser
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
        try:
            self._session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's own classes derive from Exception alone
            raise BackendError(f"ONNX Runtime {ort.__version__} cannot load {graph}: {first_line(error)}") from error
        self._outputs = [spec.name for spec in component.outputs]
        self._feedback = component.state

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`."""
        return plain_loop(self.run, self._feedback, state, per_step, constants, on_step)

    def close(self) -> None:
        """See `LoadedComponent.close`."""
        self._session = None


class OnnxRuntimeBackend:
    """See `kandinsky22.backends.Backend`."""

    def __init__(self, *, gpu: bool = True) -> None:
        """With `gpu` False, everything runs on the CPU."""
        self._gpu = gpu

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Usable where onnxruntime (or onnxruntime-gpu) imports."""
        try:
            import onnxruntime as ort
        except ImportError as error:
            return Availability(NAME, False, f"{error}; install it: pip install kandinsky22[cpu]")
        if not self._gpu or PROVIDER not in ort.get_available_providers():
            return Availability(NAME, True, "runs on every CPU", ort.__version__, "fp32")
        try:
            return Availability(NAME, True, f"runs on {trt.gpu()}", ort.__version__, "bundle", gpu=True)
        except BackendError as error:
            reason = f"runs on every CPU; on a GPU it would, too, but: {str(error).rstrip('.')}"
            return Availability(NAME, True, reason, ort.__version__, "fp32")

    def load(self, bundle: Bundle, name: str, settings: Settings) -> LoadedComponent:
        """See `Backend.load`. Its CPU kernels compute in fp32: "bf16" is refused."""
        if self.availability().gpu:
            return OnnxRuntimeCudaComponent(bundle, name, settings)
        if settings.precision not in ("auto", "fp32"):
            raise BackendError(
                f"ONNX Runtime's CPU kernels have no {settings.precision}; use precision fp32, or the openvino backend."
            )
        return OnnxRuntimeComponent(bundle.graph(name, ATTENTION_IN_PARTS), bundle.component(name), settings)


BACKEND = OnnxRuntimeBackend()
CPU = OnnxRuntimeBackend(gpu=False)
