"""OpenVINO on the CPU: the fastest path without a GPU, in bfloat16 where the processor computes with it."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kandinsky22 import machine
from kandinsky22.arrays import Array
from kandinsky22.backends import (
    EXPORTED,
    GPU_ALONE,
    Availability,
    LoadedComponent,
    OnStep,
    PerStep,
    Relay,
    Settings,
    closed,
    refuse_other_weights,
)
from kandinsky22.backends.loop import plain_loop
from kandinsky22.backends.openvino.pictures import one_by_one
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, PRECISIONS
from kandinsky22.errors import BackendError, last_line
from kandinsky22.openvino_core import core, imported

if TYPE_CHECKING:  # they import openvino, which may not be there
    from kandinsky22.backends.openvino.compiled import CompiledGraph, Shapes
    from kandinsky22.backends.openvino.float32 import Part

log = logging.getLogger(__name__)

NAME = "openvino"
DEVICE = "CPU"
_BYTES = frozenset(("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))
"""Instructions for products of bytes, as Linux calls them."""
HINTS = {"fp32": "f32", "bf16": "bf16"}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
"""What a parameter takes where it is packed for the processor."""


class OpenVinoComponent:
    """One graph, compiled for the shapes of each run and nothing else: the same run computes the same, whatever ran
    before.

    Graphs compiled for a few shapes are kept, with low memory one, see `Kept`; what was dropped is compiled anew (the
    published UNet in seven seconds) and computes the same. In bf16 and int8 each picture is run alone, and is the same
    to the bit whatever is run beside it. In fp32 the pictures of a run are computed together, which is up to 1.7 times
    as fast for a small network, and one differs by rounding (under 1/255) from the same one alone. Threads wait for
    each other run by run.
    """

    def __init__(self, bundle: Bundle, name: str, settings: Settings, variant: str = "") -> None:
        """`variant` is that of the graph which is read, where there is one, see `_variant`."""
        from kandinsky22.backends.openvino import winograd
        from kandinsky22.backends.openvino.compiled import MOST, Kept

        component = bundle.component(name)
        self._name, self.component, self._in_parts = name, component, variant in component.variants
        self._reading = functools.partial(bundle.reading, name, variant)
        self._outputs = [spec.name for spec in component.outputs]
        precision = _precision(settings.precision, bundle.manifest.precision)
        self._int8 = precision == "int8" and component.quantisation is not None
        self._precision = _float_precision() if precision == "int8" else precision
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **_shared_out()}
        if settings.threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = settings.threads
        if self._in_parts:
            self._config["SNIPPETS_MODE"] = "DISABLE"
        self.compile_seconds = 0.0
        self._lock = threading.Lock()
        self._closed = False
        weights = component.parameters * WEIGHT_BYTES["int8" if self._int8 else self._precision]
        self._kept = Kept(name, weights, 1 if settings.low_memory else MOST)
        started = time.perf_counter()
        self._model: Any = self._read()
        self._winograd = self._precision == "fp32" and not self._int8 and winograd.is_for(self._model)
        log.info("%s loaded by OpenVINO for %s in %.1f s", name, precision, time.perf_counter() - started)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        with self._lock:
            if self._closed:
                raise closed(self._name)
            if self._int8 or self._precision == "bf16":
                return one_by_one(self._run, self.component, feeds)
            return self._run(feeds)

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
        relay: Relay | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`. Between steps other threads, and `on_step` itself, may run this component."""
        return plain_loop(self, state, per_step, constants, on_step, relay)

    def close(self) -> None:
        """See `LoadedComponent.close`."""
        with self._lock:
            self._closed = True
            self._model = None
            self._kept.clear()

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run of what is compiled for its shapes. The lock is held."""
        shapes = tuple(sorted((name, array.shape) for name, array in feeds.items()))
        graph = self._kept.get(shapes, lambda: self._compile(shapes))
        try:
            values = graph.run(feeds)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {last_line(error)}") from error
        return {name: values[name] for name in self._outputs}

    def _read(self) -> Any:
        """The graph as it is in the file, for any shapes. Its weights stay mapped into memory."""
        from kandinsky22.backends.openvino import rewrites

        with self._reading() as self._path, self._refusing():
            model = core().read_model(self._path)
            rewrites.in_float32(model)
            if self.component.quantisation is not None and not self._int8:
                rewrites.without_rounding(model)
        return model

    def _compile(self, shapes: Shapes) -> CompiledGraph:
        """The graph as this processor runs it best for these shapes."""
        from kandinsky22.backends.openvino.compiled import CompiledGraph, described

        started = time.perf_counter()
        with self._refusing():
            model, self._model = self._model or self._read(), None
            model.reshape({name: list(shape) for name, shape in shapes})
            parts, given = self._rewritten(model)
            graph = CompiledGraph(parts, self._compile_part, given)
        seconds = time.perf_counter() - started
        self.compile_seconds += seconds
        log.info("%s compiled by OpenVINO in %.1f s for %s", self._name, seconds, described(shapes))
        return graph

    def _rewritten(self, model: Any) -> tuple[list[Part], dict[str, Any]]:
        """A graph of known shapes in the parts that are compiled, and the constants that are given to it as inputs."""
        from kandinsky22.backends.openvino import blocks, float32, rewrites, winograd

        if self._precision == "fp32":
            rewrites.channels_last(model)
        if self._in_parts:
            rewrites.plain_attention(model)
        if self._precision == "bf16":
            rewrites.one_more_query(model)
            in_blocks = self._int8 and blocks.has_spatial_norms(model)
            found = float32.parts(model, self._outputs, until_products=in_blocks)
            for part in found:
                if in_blocks and part.precision == "fp32":
                    rewrites.channels_last(part.model)
                    blocks.maps_in_blocks(part.model)
            return found, {}
        inputs = tuple(parameter.get_friendly_name() for parameter in model.get_parameters())
        given = winograd.winograd(model) if self._winograd else {}
        blocks.maps_in_blocks(model)
        return [float32.Part(model, "fp32", inputs, tuple(self._outputs))], given

    def _compile_part(self, part: Part) -> Any:
        hint = {"INFERENCE_PRECISION_HINT": HINTS[part.precision]}
        return core().compile_model(part.model, DEVICE, {**self._config, **hint})

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what OpenVINO raises into BackendError."""
        try:
            yield
        except RuntimeError as error:
            sentence = f"OpenVINO {imported().__version__} cannot load {self._path}: {last_line(error)}"
            raise BackendError(sentence) from error


class OpenVinoBackend:
    """See `kandinsky22.backends.Backend`."""

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Usable where openvino imports; bf16 where the processor has AMX or AVX-512 BF16."""
        exported = "fp32" if bundle is None else bundle.manifest.precision
        try:
            version = imported().__version__.split("-")[0]
            name = core().get_property(DEVICE, "FULL_DEVICE_NAME").strip()
            precision = _precision("auto", exported)
        except ImportError as error:
            return Availability(NAME, False, f"{error}; install it: pip install kandinsky22[openvino]")
        except RuntimeError as error:
            return Availability(NAME, False, f"it finds no processor it can use ({last_line(error)})")
        if exported == "fp8":
            return Availability(NAME, False, GPU_ALONE, version)
        reason = f"runs on this processor ({name}), which {_instructions(exported)}"
        return Availability(NAME, True, reason, version, precision)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """See `Backend.load`."""
        refuse_other_weights(NAME, name, weights)
        return OpenVinoComponent(bundle, name, settings, _variant())


def _variant() -> str:
    """Which variant of a graph with very wide heads of attention is the fastest on this processor.

    OpenVINO has a kernel of its own for attention that writes no scores out. It is fast on AMX; without, at heads of
    512, it takes five times as long as plain products, which are what is left where its "snippets" are off. Plain
    products write the scores out, and so they must come in parts. Measured: docs/benchmarks.md.
    """
    return "" if _has_amx() else ATTENTION_IN_PARTS


@functools.cache
def _shared_out() -> dict[str, str]:
    """The setting by which work goes to whichever thread is free, and not to one that is named beforehand.

    OpenVINO's default names one, and TBB leaves a note to that thread for each piece of work. Where the thread gets no
    turn, because the machine is busy, nobody removes the notes: 6 MiB a picture at 64x64 in bf16, without end
    (github.com/uxlfoundation/oneTBB/issues/1403). OpenVINO cuts work into the same pieces each time, so that a run
    still computes the same to the bit.
    """
    name = "TBB_PARTITIONER"
    return {name: "AUTO"} if name in core().get_property(DEVICE, "SUPPORTED_PROPERTIES") else {}


def _has_amx() -> bool:
    """Whether the processor multiplies matrices of bf16 in hardware (x86 under Linux, which is where it is told)."""
    return "amx_bf16" in machine.processor().flags


def _precision(asked: str, exported: str) -> str:
    """Resolve "auto", and refuse what this processor would only emulate, or a bundle does not have.

    One that was `exported` in int8 runs in it where the processor adds up products of bytes without saturating them,
    and otherwise in floating point, over the same weights.
    """
    if asked == "auto":
        return "int8" if exported == "int8" and _has_int8() else _float_precision()
    if asked not in PRECISIONS:
        raise BackendError(f"OpenVINO on a CPU has no precision {asked!r}; choose one of {', '.join(PRECISIONS)}.")
    if asked == "bf16" and not _has_bf16():
        raise BackendError("This processor has no bf16 (it needs AMX or AVX-512 BF16); use precision fp32.")
    if asked == "int8" and exported != "int8":
        raise BackendError(f"The bundle is in {exported}; export it with --precision int8, or use precision auto.")
    if asked == "int8" and not _has_int8():
        raise BackendError("This processor has no products of bytes (it needs VNNI or AMX); use precision auto.")
    return asked


def _float_precision() -> str:
    """The faster of the floating point types on this processor."""
    return "bf16" if _has_bf16() else "fp32"


def _instructions(exported: str) -> str:
    """What the processor has, as a clause."""
    bf16 = f"{'has' if _has_bf16() else 'lacks'} instructions for bf16"
    return f"{'has' if _has_int8() else 'lacks'} products of bytes for int8, and {bf16}" if exported == "int8" else bf16


def _has_int8() -> bool:
    """Whether the processor adds up four products of bytes in 32 bits at once: VNNI, in AVX-512, AVX or AMX, or Arm's.

    Where it does not, kernels add them up in 16 bits, which saturate.
    """
    return bool(_BYTES & machine.processor().flags)


def _has_bf16() -> bool:
    """Whether the processor has instructions for bf16; where it only has AVX-512, OpenVINO emulates it, slowly."""
    return "BF16" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


BACKEND = OpenVinoBackend()
