"""OpenVINO on the CPU: the fastest path without a GPU, in bfloat16 where the processor computes with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kandinsky22 import machine
from kandinsky22.arrays import Array
from kandinsky22.backends import EXPORTED, Availability, LoadedComponent, OnStep, PerStep, Settings, require_exported
from kandinsky22.backends.loop import plain_loop
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, Component
from kandinsky22.errors import BackendError, last_line
from kandinsky22.openvino_core import core

NAME = "openvino"
DEVICE = "CPU"
HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoComponent:
    """One graph with one inference request, compiled when it first runs: for the shapes that it is given then.

    Compiled for its shapes, a graph plans its memory: MoVQ takes half as much at 1024x1024. When other shapes come,
    a graph of maps is compiled for those (MoVQ in a second or two, the published UNet in seven): Winograd's
    convolutions are made for a size. Any other is compiled once more for any shapes and stays so.
    """

    def __init__(self, graph: Path, component: Component, settings: Settings, *, in_parts: bool = False) -> None:
        """`in_parts` says that the graph is the variant whose attention is in parts, see `_variant`."""
        from kandinsky22.backends.openvino import winograd

        self._graph, self._feedback, self._in_parts = graph, component.state, in_parts
        self._outputs = {spec.name: index for index, spec in enumerate(component.outputs)}
        self._precision = _precision(settings.precision)
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self._precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if settings.threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = settings.threads
        if self._in_parts:
            self._config["SNIPPETS_MODE"] = "DISABLE"
        self.compile_seconds = 0.0
        self._request: Any = None
        self._given: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] | None = None
        with self._refusing():
            self._model = self._rewritten()
        self._winograd = self._precision == "fp32" and winograd.is_for(self._model)
        self._gains_by_shapes = self._winograd or ATTENTION_IN_PARTS in component.variants  # those are of MoVQ

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if self._request is None:
            self._compile(shapes)
        elif self._shapes not in (None, shapes):
            self._compile(shapes if self._gains_by_shapes else None)
        try:
            # Outputs are copied: the request writes the next run's results into the same memory.
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {last_line(error)}") from error
        return {name: results[index] for name, index in self._outputs.items()}

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
        self._request = self._model = None
        self._given = {}

    def _rewritten(self) -> Any:
        """The graph as this processor runs it best."""
        from kandinsky22.backends.openvino import rewrites

        model = core().read_model(self._graph)
        rewrites.in_float32(model)
        if self._precision == "fp32":
            rewrites.channels_last(model)
        if self._in_parts:
            rewrites.plain_attention(model)
        return model

    def _compile(self, shapes: dict[str, tuple[int, ...]] | None) -> None:
        """Make the request anew, for these shapes alone or, with None, for any."""
        from kandinsky22.backends.openvino import blocks, winograd

        started = time.perf_counter()
        self._request = None  # the weights that it has packed must not be held twice
        self._given = {}
        with self._refusing():
            model = self._model or self._rewritten()
            if shapes is not None:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                if self._winograd:
                    self._given = winograd.winograd(model)
                if self._precision == "fp32":
                    blocks.maps_in_blocks(model)
            self._request = core().compile_model(model, DEVICE, self._config).create_infer_request()
            for name, constant in self._given.items():
                self._request.set_tensor(name, constant.tensor_view)
        self._model, self._shapes = None, shapes
        self.compile_seconds += time.perf_counter() - started

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what OpenVINO raises into BackendError."""
        import openvino as ov

        try:
            yield
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot load {self._graph}: {last_line(error)}") from error


class OpenVinoBackend:
    """See `kandinsky22.backends.Backend`."""

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Usable where openvino imports; bf16 where the processor has AMX or AVX-512 BF16."""
        try:
            import openvino as ov

            name = core().get_property(DEVICE, "FULL_DEVICE_NAME").strip()
            precision = _precision("auto")
        except ImportError as error:
            return Availability(NAME, False, f"{error}; install it: pip install kandinsky22[openvino]")
        except RuntimeError as error:
            return Availability(NAME, False, f"it finds no processor it can use ({last_line(error)})")
        why = "has" if precision == "bf16" else "lacks"
        reason = f"runs on this processor ({name}), which {why} instructions for bf16"
        return Availability(NAME, True, reason, ov.__version__.split("-")[0], precision)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """See `Backend.load`."""
        require_exported(name, weights)
        component, variant = bundle.component(name), _variant()
        in_parts = variant in component.variants
        return OpenVinoComponent(bundle.graph(name, variant), component, settings, in_parts=in_parts)


def _variant() -> str:
    """Which variant of a graph with very wide heads of attention is the fastest on this processor.

    OpenVINO has a kernel of its own for attention that writes no scores out. It is fast on AMX; without, at heads of
    512, it takes five times as long as plain products, which are what is left where its "snippets" are off. Plain
    products write the scores out, and so they must come in parts. Measured: docs/benchmarks.md.
    """
    return "" if _has_amx() else ATTENTION_IN_PARTS


def _has_amx() -> bool:
    """Whether the processor multiplies matrices of bf16 in hardware (x86 under Linux, which is where it is told)."""
    return "amx_bf16" in machine.processor().flags


def _precision(asked: str) -> str:
    """Resolve "auto", and refuse what this processor would only emulate."""
    if asked == "auto":
        return "bf16" if _has_bf16() else "fp32"
    if asked not in HINTS:
        raise BackendError(f"OpenVINO on a CPU has no precision {asked!r}; choose one of auto, {', '.join(HINTS)}.")
    if asked == "bf16" and not _has_bf16():
        raise BackendError("This processor has no bf16 (it needs AMX or AVX-512 BF16); use precision fp32.")
    return asked


def _has_bf16() -> bool:
    """Whether the processor has instructions for bf16; where it only has AVX-512, OpenVINO emulates it, slowly."""
    return "BF16" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


BACKEND = OpenVinoBackend()
