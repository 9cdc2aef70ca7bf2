"""ONNX Runtime on the CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep, Relay, Settings, closed
from kandinsky22.backends.loop import plain_loop
from kandinsky22.bundle.manifest import Component
from kandinsky22.errors import BackendError, first_line

log = logging.getLogger(__name__)


class OnnxRuntimeComponent:
    """One inference session, which several threads may run at once.

    What is run together is computed together: a picture differs by rounding (under 1/255) from the same one alone.
    """

    def __init__(self, name: str, graph: Path, component: Component, settings: Settings) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: its warnings are about its own optimiser
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
        started = time.perf_counter()
        try:
            self._session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's own classes derive from Exception alone
            raise BackendError(f"ONNX Runtime {ort.__version__} cannot load {graph}: {first_line(error)}") from error
        log.info("%s loaded by ONNX Runtime on the CPU in %.1f s", name, time.perf_counter() - started)
        self._name = name
        self.component = component
        self._outputs = [spec.name for spec in component.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        session = self._session  # another thread may close this component meanwhile: it is freed after the run
        if session is None:
            raise closed(self._name)
        try:
            values = session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
        relay: Relay | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`."""
        return plain_loop(self, state, per_step, constants, on_step, relay)

    def close(self) -> None:
        """See `LoadedComponent.close`."""
        self._session = None
