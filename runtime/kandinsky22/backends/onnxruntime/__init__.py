"""ONNX Runtime: on a GPU where onnxruntime-gpu finds one, else on the CPU, where it runs everywhere.

On the CPU it is the reference that the other backends are compared with: `CPU` runs there whatever else could.
"""

from __future__ import annotations

import dataclasses

from kandinsky22.backends import EXPORTED, GPU_ALONE, Availability, LoadedComponent, Settings, refuse_other_weights
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.onnxruntime.cpu import OnnxRuntimeComponent
from kandinsky22.backends.onnxruntime.cuda import PROVIDER, OnnxRuntimeCudaComponent
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS
from kandinsky22.errors import BackendError

NAME = "onnxruntime"


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
        on_processor = _on_processor(bundle, ort.__version__)
        if not self._gpu or PROVIDER not in ort.get_available_providers():
            return on_processor
        try:
            return Availability(NAME, True, f"runs on {gpu.gpu()}", ort.__version__, "bundle", gpu=True)
        except BackendError as error:
            reason = f"{on_processor.reason}; on a GPU it would, too, but: {str(error).rstrip('.')}"
            return dataclasses.replace(on_processor, reason=reason)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """See `Backend.load`. Its CPU kernels compute in fp32, and quantised graphs in int8: all else is refused."""
        refuse_other_weights(NAME, name, weights)
        if self.availability().gpu:
            return OnnxRuntimeCudaComponent(bundle, name, settings)
        precision = _precision(bundle)
        if settings.precision not in ("auto", precision):
            raise BackendError(
                f"ONNX Runtime's CPU kernels have no {settings.precision} for this bundle, run in {precision}; use "
                "precision auto, or the openvino backend."
            )
        with bundle.reading(name, ATTENTION_IN_PARTS) as graph:
            return OnnxRuntimeComponent(name, graph, bundle.component(name), settings)


def _on_processor(bundle: Bundle | None, version: str) -> Availability:
    """Whether its CPU kernels run a bundle."""
    if bundle is not None and bundle.manifest.precision == "fp8":
        return Availability(NAME, False, GPU_ALONE, version)
    return Availability(NAME, True, "runs on every CPU", version, _precision(bundle))


def _precision(bundle: Bundle | None) -> str:
    """What its CPU kernels compute a bundle in."""
    return "int8" if bundle is not None and bundle.manifest.precision == "int8" else "fp32"


BACKEND = OnnxRuntimeBackend()
CPU = OnnxRuntimeBackend(gpu=False)
