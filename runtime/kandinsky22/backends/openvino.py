"""OpenVINO on the CPU: the fastest path without a GPU, in bfloat16 where the processor computes with it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.arrays import Array
from kandinsky22.backends import Availability, LoadedComponent, OnStep, PerStep, Settings
from kandinsky22.backends.loop import plain_loop
from kandinsky22.bundle import ATTENTION_IN_PARTS, Bundle, Component
from kandinsky22.errors import BackendError

NAME = "openvino"
DEVICE = "CPU"
HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoComponent:
    """One compiled model with one inference request."""

    def __init__(self, graph: Path, component: Component, settings: Settings) -> None:
        import openvino as ov

        core = _core()
        precision = _precision(core, settings.precision)
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if settings.threads is not None:
            config["INFERENCE_NUM_THREADS"] = settings.threads
        if ATTENTION_IN_PARTS in component.variants and not _has_amx():
            config["SNIPPETS_MODE"] = "DISABLE"  # see `_variant`
        try:
            model = core.compile_model(_in_float32(core.read_model(graph)), DEVICE, config)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} cannot load {graph}: {_last_line(error)}") from error
        self._request: Any = model.create_infer_request()
        self._outputs = {spec.name: index for index, spec in enumerate(component.outputs)}
        self._feedback = component.state

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        try:
            # Outputs are copied: the request writes the next run's results into the same memory.
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {_last_line(error)}") from error
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
        self._request = None


class OpenVinoBackend:
    """See `kandinsky22.backends.Backend`."""

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Usable where openvino imports; bf16 where the processor has AMX or AVX-512 BF16."""
        try:
            import openvino as ov

            core = _core()
            name = core.get_property(DEVICE, "FULL_DEVICE_NAME").strip()
            precision = _precision(core, "auto")
        except ImportError as error:
            return Availability(NAME, False, f"{error}; install it: pip install kandinsky22[openvino]")
        except RuntimeError as error:
            return Availability(NAME, False, f"it finds no processor it can use ({_last_line(error)})")
        why = "has" if precision == "bf16" else "lacks"
        reason = f"runs on this processor ({name}), which {why} instructions for bf16"
        return Availability(NAME, True, reason, ov.__version__.split("-")[0], precision)

    def load(self, bundle: Bundle, name: str, settings: Settings) -> LoadedComponent:
        """See `Backend.load`."""
        return OpenVinoComponent(bundle.graph(name, _variant()), bundle.component(name), settings)


def _variant() -> str:
    """Which variant of a graph with very wide heads of attention is the fastest on this processor.

    OpenVINO has a kernel of its own for attention that writes no scores out. It is fast on AMX; without, at heads of
    512, it takes five times as long as plain products, which are what is left where its "snippets" are off. Plain
    products write the scores out, and so they must come in parts. Measured: docs/benchmarks.md.
    """
    return "" if _has_amx() else ATTENTION_IN_PARTS


@functools.cache
def _has_amx() -> bool:
    """Whether the processor multiplies matrices of bf16 in hardware (x86 under Linux, which is where it is asked)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _in_float32(model: Any) -> Any:
    """A graph in half precision as one in float32 over the same weights; any other as it is.

    Given a graph in half precision, OpenVINO makes a float32 copy of all weights before it packs them for the
    processor. Given a graph in float32 that converts its half-precision weights, it takes them from the file, mapped
    into memory, one by one: the form of its own compressed models, whose conversions carry the same mark. Loading the
    published UNet then peaks at 4.9 GiB instead of 7.5, of which 2.4 are the file's.
    """
    from openvino import Type, opset13

    for node in model.get_ordered_ops():
        if node.get_output_size() != 1 or node.get_output_element_type(0) != Type.f16:
            continue
        kind, users = node.get_type_name(), node.output(0).get_target_inputs()
        if kind == "Constant":
            widened = opset13.convert(node, "f32")
            widened.get_rt_info()["decompression_0"] = ""
        elif kind == "Convert":
            widened = opset13.convert(node.input_value(0), "f32")
        else:
            continue  # it takes the type of its inputs
        for user in users:
            user.replace_source_output(widened.output(0))
    model.validate_nodes_and_infer_types()
    return model


@functools.cache
def _core() -> Any:
    """OpenVINO, started once and never stopped.

    Its CPU plugin gives the thread that starts it an alternate stack for signals, and puts the one before back when it
    stops. Where two of them overlap, the second puts back the memory that the first has freed, and the next signal
    (Ctrl-C, since Python handles signals on that stack) ends the process with a segmentation fault.
    """
    import openvino as ov

    return ov.Core()


def _precision(core: Any, asked: str) -> str:
    """Resolve "auto", and refuse what this processor would only emulate."""
    has_bf16 = "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if asked == "auto":
        return "bf16" if has_bf16 else "fp32"
    if asked not in HINTS:
        raise BackendError(f"OpenVINO on a CPU has no precision {asked!r}; choose one of auto, {', '.join(HINTS)}.")
    if asked == "bf16" and not has_bf16:
        raise BackendError("This processor has no bf16 (it needs AMX or AVX-512 BF16); use precision fp32.")
    return asked


def _last_line(error: Exception) -> str:
    """OpenVINO's messages end with what happened, after where in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


BACKEND = OpenVinoBackend()
