"""TensorRT on NVIDIA GPUs: verified plans, one arena for all of them, and a captured graph for every step.

TensorRT and TensorRT for RTX are two flavours of one API; the first that is installed and has plans is used. A plan is
not read by this module: `kandinsky22.backends.tensorrt.choice` verifies it and hands out its bytes.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import EXPORTED, Availability, LoadedComponent, Settings, refuse_other_weights
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.bound import BoundGraph, Layout
from kandinsky22.backends.cuda.component import DeviceComponent, Shapes, shapes_of
from kandinsky22.backends.cuda.gpu import GPU, SharedGpu
from kandinsky22.backends.cuda.runtime import Graph
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.profile import Range
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import TensorSpec
from kandinsky22.errors import BackendError, KandinskyError

NAME = "tensorrt"

log = logging.getLogger(__name__)


class TensorRtComponent(DeviceComponent):
    """One engine at a time; its weights are on the device until it is closed, or inputs come for another plan.

    Which plan that is depends on the shapes of a run's inputs alone. Where there are several, none is loaded before
    the first run, and alternating between sizes of different plans loads one each time.
    """

    def __init__(
        self, bundle: Bundle, name: str, flavour: library.Flavour, device: gpu.Device, shared_gpu: SharedGpu
    ) -> None:
        self._bundle, self._flavour, self._device = bundle, flavour, device
        self.component = bundle.component(name)
        self.module: Any = flavour.module
        self.log = library.logger(self.module)
        self.engine: Any = None
        self._plan: choice.Plan | None = None
        self._chosen: dict[tuple[tuple[str, tuple[int, ...]], ...], choice.Plan] = {}
        plans = choice.fitting_plans(bundle, name, flavour, device)
        self.ranges: Mapping[str, Range] = plans[-1].record.shapes
        """Smallest, tuned and largest shape of every input; those of the widest plan, where there are several."""
        super().__init__(name, shared_gpu)
        try:
            with self.gpu.turn:
                self._runtime = self.module.Runtime(self.log)
                if len(plans) == 1:  # so that no run waits for it
                    self._load_plan(None)
        except BaseException:
            self.close()
            raise

    @property
    def compile_seconds(self) -> float:
        """Seconds that this thread's runs, since the first, have spent on loading plans for their shapes."""
        seconds: float = getattr(self._of_thread, "compile_seconds", 0.0)
        return seconds

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`. More pictures or texts than any plan takes at once are run in parts."""
        with self.in_use():
            plan = self._select(shapes_of(feeds))
            parts = [self._run(part) for part in self._parts(feeds, plan)]
        return {
            name: np.concatenate([part[name] for part in parts]) if parts[1:] else parts[0][name] for name in parts[0]
        }

    def _parts(self, feeds: Mapping[str, Array], plan: choice.Plan) -> list[Mapping[str, Array]]:
        if plan.record.misfit(shapes_of(feeds)) is None:
            return [feeds]
        count = max(len(array) for array in feeds.values())
        return [
            {name: array[start : start + plan.rows] for name, array in feeds.items()}
            for start in range(0, count, plan.rows)
        ]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        bound = self.bound(shapes_of(feeds))
        bound.upload(feeds)
        bound.enqueue()
        return bound.download(bound.outputs)

    def select(self, shapes: Shapes) -> None:
        """See `DeviceComponent.select`. Another plan takes the place of one that is not chosen for these shapes."""
        self._select(shapes)

    def _select(self, shapes: Shapes) -> choice.Plan:
        """Have the plan for these shapes loaded. Raises BundleError where there is none."""
        expected = {spec.name for spec in self.component.inputs}
        if set(shapes) != expected:
            raise BackendError(f"{self.name} takes the inputs {sorted(expected)}, not {sorted(shapes)}.")
        key = tuple(sorted(shapes.items()))
        if key not in self._chosen:
            self._chosen[key] = choice.choose_plan(self._bundle, self.name, self._flavour, self._device, shapes)
        if self._plan is None or self._chosen[key] != self._plan:
            started = time.perf_counter()
            self._chosen[key] = self._load_plan(shapes)
            self._of_thread.compile_seconds = self.compile_seconds + time.perf_counter() - started
        return self._chosen[key]

    def bind(self, shapes: Shapes) -> BoundGraph:
        """See `DeviceComponent.bind`."""
        return TensorRtBound(self, shapes)

    def release(self) -> None:
        """See `DeviceComponent.release`. TensorRT frees the weights with the last reference to the engine."""
        self.engine = self._plan = None

    def errors(self) -> str:
        """What TensorRT said since it was last asked."""
        said = "; ".join(self.log.errors) or "it gave no reason"
        self.log.errors.clear()
        return said

    def _load_plan(self, shapes: Shapes | None) -> choice.Plan:
        """Load the plan for inputs of these shapes in place of the one that is loaded."""
        started = time.perf_counter()
        plan, chosen = choice.verified_plan(self._bundle, self.name, self._flavour, self._device, shapes)
        self.unbind()
        self.engine = self._plan = None  # before the next one is loaded: two engines need not fit
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise BackendError(
                f"{self._flavour.name} {self._flavour.version} cannot load the plan of {self.name}: {self.errors()}."
            )
        self._check_interface()
        self._plan = chosen
        seconds = time.perf_counter() - started
        log.info("%s loaded by %s in %.1f s, plan %s", self.name, self._flavour.name, seconds, chosen.record.profile)
        return chosen

    def _check_interface(self) -> None:
        """Compare the engine's inputs and outputs with the component's: what is bound by name must be what it says."""
        engine, modes = self.engine, self.module.TensorIOMode
        found = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_location(name) != self.module.TensorLocation.DEVICE:
                raise BackendError(f"The plan of {self.name} wants {name} in host memory; export and build it again.")
            dtype = np.dtype(self.module.nptype(engine.get_tensor_dtype(name))).name
            found[name] = (dtype, engine.get_tensor_mode(name) == modes.INPUT)
        expected = {spec.name: (spec.dtype, True) for spec in self.component.inputs}
        expected |= {spec.name: (spec.dtype, False) for spec in self.component.outputs}
        if found != expected:
            differing = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
            raise BackendError(
                f"The plan of {self.name} and the bundle differ in {', '.join(differing)}; build it again."
            )


class TensorRtBound(BoundGraph):
    """An execution context at fixed shapes; its steps are one captured graph from the second on."""

    def __init__(self, component: TensorRtComponent, shapes: Shapes) -> None:
        self._component = component
        self._graph: Graph | None = None
        self._arena = 0
        self._context: Any = self._make_context(component)
        for name, shape in shapes.items():
            self._require(self._context.set_input_shape(name, shape), f"does not take {name} as {shape}")
        missing = self._context.infer_shapes()
        self._require(not missing, f"cannot tell its shapes without {missing}")
        super().__init__(
            component.gpu,
            _layout(component.component.inputs, shapes),
            _layout(
                component.component.outputs,
                {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in component.component.outputs},
            ),
            component.component.state,
        )
        try:
            for name, tensor in {**self.inputs, **self.outputs}.items():
                self._require(self._context.set_tensor_address(name, tensor.address), f"refuses the address of {name}")
            self._scratch = int(self._context.update_device_memory_size_for_shapes())
        except BaseException:
            self.close()
            raise

    def enqueue(self) -> None:
        """See `BoundGraph.enqueue`."""
        self._attach()
        self._require(self._context.execute_async_v3(int(self.gpu.work.handle)), "could not be run")

    def step(self) -> None:
        """See `BoundGraph.step`.

        TensorRT must have run once at these shapes before it can be captured, so the first step is run as it is, and
        captured right after: capturing runs nothing. A graph is dropped when the arena that it works in moves.
        """
        self._attach()
        if self._graph is not None:
            self.gpu.work.launch(self._graph)
            return
        super().step()
        can_be_captured = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX alone can say
        if can_be_captured is not None:
            self._require(can_be_captured(int(self.gpu.work.handle)), "cannot be captured into a CUDA graph")
        self._graph = self.gpu.work.capture(super().step)
        log.debug("A step of %s is captured", self._component.name)

    def close(self) -> None:
        """See `Owner.close`."""
        self._drop_graph()
        self._context = None
        super().close()

    @staticmethod
    def _make_context(component: TensorRtComponent) -> Any:
        engine, module = component.engine, component.module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED  # so that the arena serves all engines
        specialization = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            context = engine.create_execution_context(strategy)
        else:
            # TensorRT for RTX compiles kernels for these shapes as it runs. By default it does so beside slower ones
            # that it starts with, and a graph would keep those.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
            context = engine.create_execution_context(config)
        if context is None:
            raise BackendError(f"TensorRT cannot make a context of {component.name}: {component.errors()}.")
        return context

    def _attach(self) -> None:
        """Give the context its part of the arena, at its first run and whenever the arena has moved."""
        address = self.gpu.arena.reserve(self._scratch)
        if address != self._arena:
            self._drop_graph()
            self._context.set_device_memory(address, self._scratch)
            self._arena = address

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _require(self, good: bool, failure: str) -> None:
        if not good:
            raise BackendError(f"The plan of {self._component.name} {failure}: {self._component.errors()}.")


class TensorRtBackend:
    """See `kandinsky22.backends.Backend`."""

    def __init__(self, shared_gpu: SharedGpu = GPU) -> None:
        self._shared_gpu = shared_gpu

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Usable where TensorRT of one flavour imports, a GPU is there, and `bundle` has plans for both."""
        try:
            # TensorRT takes seconds to import, so the GPU is asked for first; but without either, TensorRT is missed.
            installed = any(importlib.util.find_spec(module) for module in library.MODULES.values())
            device = gpu.gpu() if installed else None
            chosen = library.flavour("auto")
            if bundle is not None and device is not None:
                chosen = _with_plans(bundle, library.flavours(), device)
        except KandinskyError as error:
            return Availability(NAME, False, str(error).rstrip("."), gpu=True)
        return Availability(NAME, True, f"runs on {device}", f"{chosen.name} {chosen.version}", "bundle", gpu=True)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """See `Backend.load`. A plan's precision and weights were decided by the export: others are refused."""
        refuse_other_weights(NAME, name, weights)
        precision = bundle.component(name).precision
        if settings.precision not in ("auto", precision):
            raise BackendError(
                f"The plan of {name} computes in {precision}, not {settings.precision}; use precision auto, "
                f"or export and build a bundle with --precision {settings.precision}."
            )
        device = gpu.gpu()
        return TensorRtComponent(
            bundle, name, _with_plans(bundle, library.flavours(), device), device, self._shared_gpu
        )


def _with_plans(bundle: Bundle, flavours: list[library.Flavour], device: gpu.Device) -> library.Flavour:
    """The first flavour that has a plan of every component of the bundle for this device."""
    refusals = []
    for flavour in flavours:
        found = (choice.refusal(bundle, name, flavour, device) for name in bundle.manifest.components)
        refusal = next((each for each in found if each is not None), None)
        if refusal is None:
            return flavour
        log.info("No plans of %s %s are used: %s", flavour.name, flavour.version, refusal)
        refusals.append(refusal)
    raise BackendError(" ".join(refusals))


def _layout(specs: tuple[TensorSpec, ...], shapes: Shapes) -> Layout:
    return {spec.name: (shapes[spec.name], np.dtype(spec.dtype)) for spec in specs}


BACKEND = TensorRtBackend()
