"""One ONNX graph to one TensorRT plan, with a report of what the plan runs."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky22.backends.tensorrt.library import Flavour, logger, make_monitor, make_writer
from kandinsky22.backends.tensorrt.profile import Range, Shape
from kandinsky22.backends.tensorrt.records import Report
from kandinsky22.bundle.manifest import Component, TensorSpec
from kandinsky22.errors import BackendError
from kandinsky22.machine import resident_memory

FUSED_HEAD_SIZES = range(16, 257)
"""Sizes of an attention head that TensorRT has fused kernels for, in 16-bit types only."""
FUSED_ATTENTION = "_gemm_mha"
"""How the names of layers that are fused attention begin."""
PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION_INPUT")
"""Kinds of layers that nearly all of the arithmetic is in, as a network has them."""
ENGINE_PRODUCTS = ("correlation", "gemm")
"""The same, as TensorRT for RTX calls them in an engine."""
LONGEST_NAME = 120
"""Characters of a layer's name that a report has: fused layers have the names of all that went into them."""
DTYPES = {"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}
"""TensorRT's names of the types that cross a graph's border."""


@dataclass(frozen=True)
class Options:
    """How to build. `targets` are compute capabilities such as "8.6", for TensorRT for RTX alone.

    Without targets its plans are portable: for every GPU that it knows but Turing's.

    `allow_unfused` builds attention from separate products where a fused kernel should exist and TensorRT has none.
    """

    targets: tuple[str, ...] = ()
    allow_unfused: bool = False


@dataclass(frozen=True)
class Built:
    """What a plan runs, and what building it took. `timing_cache` is empty for TensorRT for RTX, which has none."""

    report: Report
    seconds: float
    peak_memory: int
    timing_cache: bytes


OnProgress = Callable[[str, int, int], None]
"""Called as `on_progress(phase, steps done, steps known so far)`, from the builder's threads."""
Sink = Callable[["bytes | memoryview"], None]
"""Called with a plan's bytes, part after part."""


def build_plan(
    flavour: Flavour,
    graph: Path,
    component: Component,
    shapes: Mapping[str, Range],
    options: Options,
    sink: Sink,
    timing_cache: bytes = b"",
    on_progress: OnProgress | None = None,
) -> Built:
    """Compile an ONNX file for inputs within `shapes`, and write the plan to `sink`.

    The network is strongly typed: precision is the graph's. Raises BackendError where TensorRT cannot build it, or
    where what it built has other types than the component says, and what `sink` and `on_progress` raise. Ctrl-C stops
    the build within a step of it. Where it raises, what `sink` was given is no plan.
    """
    build = _Build(flavour, graph, component, shapes, options, sink, timing_cache, on_progress)
    started = time.perf_counter()
    peak_memory = run_watched(build.run, build.monitor.cancel)
    return Built(build.report, time.perf_counter() - started, peak_memory, build.timing_cache)


_ONE_BUILD = threading.Lock()


class _Build:
    """One build: everything that TensorRT holds on to lives as long as this."""

    def __init__(
        self,
        flavour: Flavour,
        graph: Path,
        component: Component,
        shapes: Mapping[str, Range],
        options: Options,
        sink: Sink,
        timing_cache: bytes,
        on_progress: OnProgress | None,
    ) -> None:
        self.flavour, self.trt = flavour, flavour.module
        self.graph, self.component, self.shapes, self.options = graph, component, shapes, options
        self.sink, self.timing_cache = sink, timing_cache
        self.log = logger(self.trt)
        self.monitor = make_monitor(self.trt, on_progress)
        self.products: Counter[str] = Counter()
        self.attentions = self.fusable = 0
        self.quantised = _QUANTISED[component.quantisation.type] if component.quantisation else ""
        """The type of quantised products, as an engine calls it; empty where the graph has none."""

    def run(self) -> None:
        """Parse and build, and make the `report`. Runs in a thread of its own, one at a time: they share the log."""
        with _ONE_BUILD:
            self.log.clear()
            self._build()

    def _build(self) -> None:
        try:
            builder = self.trt.Builder(self.log)
        except (TypeError, RuntimeError) as error:  # what pybind11 makes of a null pointer
            raise self._error("cannot start its builder", str(error)) from error
        network = builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(self.graph)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = [f"{each.desc()} ({each.node_operator()}, node {each.node_name()})" for each in errors]
            raise self._error("cannot read the graph", *reasons)
        self._check_interface(network)
        self._survey(network)
        config = self._config(builder, network)
        built = self._serialize(builder, network, config)
        for failure in (self.log.failure, self.monitor.failure):
            if failure is not None:
                raise failure
        if not built:
            raise self._error("cannot build a plan")
        self.report = self._report()
        self._check_engine()
        if self.flavour.needs_gpu:
            self.timing_cache = bytes(config.get_timing_cache().serialize())

    def _serialize(self, builder: Any, network: Any, config: Any) -> bool:
        """Build, and write the plan to the sink: in parts where this TensorRT can, to save its size in memory."""
        if not hasattr(builder, "build_serialized_network_to_stream"):
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                self.sink(memoryview(plan))
            return plan is not None
        writer = make_writer(self.trt, self.sink)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.failure is not None:
            raise writer.failure
        return bool(built)

    def _report(self) -> Report:
        """What the finished engine runs, from the lines that TensorRT logged about it."""
        layers: dict[str, Counter[str]] = {}
        operands: Counter[str] = Counter()
        floating: list[str] = []
        fused = 0
        for line in self.log.layers:
            name, kind, dtype = (_field(pattern, line) for pattern in (_NAME, _KIND, _OUTPUT_TYPE))
            layers.setdefault(dtype, Counter())[kind] += 1
            fused += name.startswith(FUSED_ATTENTION)
            if kind in ENGINE_PRODUCTS:
                operand = _field(_OPERAND_TYPE, line)
                operands[operand] += 1
                if self.quantised and operand != self.quantised:
                    floating.append(name[:LONGEST_NAME])
        counts = {dtype: dict(sorted(kinds.items())) for dtype, kinds in sorted(layers.items())}
        products, multiplied = (dict(sorted(each.items())) for each in (self.products, operands))
        return Report(counts, products, self.attentions, self.fusable, fused, multiplied, tuple(floating))

    def _check_interface(self, network: Any) -> None:
        """The parsed graph has the inputs and outputs, types and fixed dimensions that the manifest promises."""
        have = [network.get_input(index) for index in range(network.num_inputs)]
        have += [network.get_output(index) for index in range(network.num_outputs)]
        found = {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in have}
        promised = {spec.name: _as_network(spec) for spec in (*self.component.inputs, *self.component.outputs)}
        if {name: dtype for name, (dtype, _) in found.items()} != {
            name: dtype for name, (dtype, _) in promised.items()
        }:
            raise self._error("cannot build a plan", f"the graph has {found}, the manifest says {promised}")
        for name in (spec.name for spec in self.component.inputs):
            if found[name][1] != promised[name][1]:
                raise self._error(
                    "cannot build a plan", f"{name} is {found[name][1]}, the manifest says {promised[name][1]}"
                )

    def _survey(self, network: Any) -> None:
        """Count the products of the graph by type, and decide how each attention may be built."""
        for layer in (network.get_layer(index) for index in range(network.num_layers)):
            if layer.type.name not in PRODUCTS:
                continue
            operand = layer.get_input(0)
            self.products[_TYPE_NAMES.get(operand.dtype.name, operand.dtype.name)] += 1
            if layer.type.name == "ATTENTION_INPUT":
                self._settle_attention(layer, operand)

    def _settle_attention(self, layer: Any, query: Any) -> None:
        """Let attention that no fused kernel exists for decompose; what can be fused must be, or the build fails.

        TensorRT refuses to build an attention without a fused kernel unless it may decompose. It never decomposes one
        that it has a kernel for, so the permission costs nothing where it is given.
        """
        fusable = query.dtype.name in ("HALF", "BF16") and query.shape[-1] in FUSED_HEAD_SIZES
        self.attentions += 1
        self.fusable += fusable
        if not fusable or self.options.allow_unfused:
            layer.__class__ = self.trt.IAttentionInputLayer  # the bindings give it as its base class
            layer.attention.decomposable = True

    def _config(self, builder: Any, network: Any) -> Any:
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers, in log and inspector
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 in a graph means float32
        config.progress_monitor = self.monitor
        if not self.flavour.needs_gpu:
            # So that a run allocates nothing: TensorRT for RTX refuses to be captured into a CUDA graph without it.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            profile.set_shape(name, *self.shapes[name])
        if config.add_optimization_profile(profile) < 0:
            raise self._error("refuses the profile", *self.log.errors)
        if self.flavour.needs_gpu:
            cache = config.create_timing_cache(self.timing_cache) or config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        elif self.options.targets:
            config.num_compute_capabilities = len(self.options.targets)
            for index, target in enumerate(self.options.targets):
                config.set_compute_capability(trt.ComputeCapability.__members__["SM" + target.replace(".", "")], index)
        return config

    def _check_engine(self) -> None:
        """The finished engine takes and gives the types that the component promises, and computes in the graph's."""
        promised = {spec.name: DTYPES[spec.dtype] for spec in (*self.component.inputs, *self.component.outputs)}
        for line in self.log.tensors:
            name, dtype = _field(_NAME, line), _field(_BORDER_TYPE, line).upper()
            if name in promised and dtype != promised[name]:
                raise self._error("built a plan with other types", f"{name} is {dtype}, expected {promised[name]}")
        if self.quantised:
            self._check_quantised()
            return
        for dtype, kinds in self.report.layers.items():
            found = [kind for kind in ENGINE_PRODUCTS if kind in kinds]
            if found and dtype not in self.products:
                raise self._error("built a plan with other types", f"it has {found} in {dtype}, the graph has none")

    def _check_quantised(self) -> None:
        """The engine multiplies what the graph has quantised, and all else in the graph's own types."""
        operands = self.report.operands
        others = [dtype for dtype in operands if dtype not in (self.quantised, *self.products)]
        if others:
            raise self._error("built a plan with other types", f"it multiplies {others}, the graph nothing of it")
        if operands and self.quantised not in operands:
            raise self._error("built a plan with other types", f"it multiplies nothing in {self.quantised}")

    def _error(self, what: str, *reasons: str) -> BackendError:
        """One sentence from what TensorRT logged: the first error says why, those after it are consequences."""
        logged = [line for line in self.log.errors if "catchCudaError" not in line]
        why = "; ".join(reasons) or (logged[0] if logged else "it does not say why")
        if "not supported by a dedicated kernel" in why:
            why = (
                "it has no fused kernel for an attention of the graph, which would run several times slower without; "
                "change the graph, or allow it with --allow-unfused"
            )
        return BackendError(f"{self.flavour.name} {self.flavour.version} {what} of {self.graph.name}: {why}")


_QUANTISED = {"int8": "Int8", "fp8": "FP8"}
"""Types of quantised graphs, in the same words."""
_TYPE_NAMES = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16"}
"""Types as a network has them, in the words in which an engine is described."""
_NAME = re.compile(r"^\s*Name: ([^,]*),")
_KIND = re.compile(r"LayerType: ([^,]*),")
_OUTPUT_TYPE = re.compile(r"Outputs: \[ \{.*?(?:Datatype|Format/Datatype): ([^,}]*)")
_OPERAND_TYPE = re.compile(r"Inputs: \[ \{.*?(?:Datatype|Format/Datatype): ([^,}]*)")
_BORDER_TYPE = re.compile(r"DataType: ([^,]*),")


def _field(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    return found.group(1).strip() if found else "?"


def _as_network(spec: TensorSpec) -> tuple[str, Shape]:
    """Type and shape of a tensor in TensorRT's words: symbolic dimensions are -1."""
    return DTYPES[spec.dtype], tuple(size if isinstance(size, int) else -1 for size in spec.shape)


def run_watched(call: Callable[[], None], cancel: Callable[[], None]) -> int:
    """Run `call` in another thread, and return the highest resident memory of the process meanwhile.

    A thread of its own keeps the caller's free for Ctrl-C, which a call into TensorRT would hold back: it calls
    `cancel`, waits for `call` to end, and is raised. Raises what `call` raises; what the frames below it held is let go
    of before, so that networks are not kept by an error, and TensorRT's threads do not speak while Python ends.
    """
    failures: list[BaseException] = []
    ended = threading.Event()  # not Thread.join: when Ctrl-C interrupts that, it takes the thread for one that ended

    def work() -> None:
        try:
            call()
        except BaseException as failure:  # handed to the caller's thread, without the objects in its frames
            traceback.clear_frames(failure.__traceback__)
            failures.append(failure)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="build", daemon=True)
    peak = 0
    try:
        thread.start()
        while not ended.wait(0.05):
            peak = max(peak, resident_memory())
    except BaseException:
        cancel()
        ended.wait()
        raise
    if failures:
        raise failures.pop()
    return peak
