"""TensorRT on NVIDIA GPUs: verified plans, one arena for all of them, and a captured graph for every step.

TensorRT and TensorRT for RTX are two flavours of one API; the first that is installed and has plans is used. A plan is
not read by this module: `kandinsky22.backends.tensorrt.build` verifies it and hands out its bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import Availability, LoadedComponent, Settings
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.bound import BoundGraph, Layout
from kandinsky22.backends.cuda.component import DeviceComponent
from kandinsky22.backends.cuda.gpu import GPU, SharedGpu
from kandinsky22.backends.cuda.runtime import Graph
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.profile import Range
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import TensorSpec
from kandinsky22.errors import BackendError, KandinskyError

NAME = "tensorrt"


class TensorRtComponent(DeviceComponent):
    """One engine; its weights are on the device until it is closed."""

    def __init__(
        self, bundle: Bundle, name: str, flavour: library.Flavour, device: gpu.Device, shared_gpu: SharedGpu
    ) -> None:
        self._bundle, self._flavour, self._device = bundle, flavour, device
        self.component = bundle.component(name)
        self.module: Any = flavour.module
        self.log = library.logger(self.module)
        self.engine: Any = None
        super().__init__(name, shared_gpu)
        try:
            self._runtime = self.module.Runtime(self.log)
            self._load_plan(None)
        except BaseException:
            self.close()
            raise

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Smallest, tuned and largest shape of every input that the plan takes."""
        return self.record.shapes

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`. More pictures or texts than the plan takes at once are run in parts."""
        with self.gpu.lock:
            parts = [self._run(part) for part in self._parts(feeds)]
        return {
            name: np.concatenate([part[name] for part in parts]) if parts[1:] else parts[0][name] for name in parts[0]
        }

    def _parts(self, feeds: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        if any(spec.shape[0] != "B" for spec in self.component.inputs) or feeds.keys() != self.ranges.keys():
            return [feeds]
        most = min(largest[0] for _, _, largest in self.ranges.values())
        count = max(len(array) for array in feeds.values())
        starts = range(0, count, most)
        return [{name: array[start : start + most] for name, array in feeds.items()} for start in starts]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        bound = self.bound(feeds)
        bound.upload(feeds)
        bound.enqueue()
        return bound.download(bound.outputs)

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> BoundGraph:
        """See `DeviceComponent.bind`. Another plan takes the place of one that was not built for these shapes."""
        expected = {spec.name for spec in self.component.inputs}
        if set(shapes) != expected:
            raise BackendError(f"{self.name} takes the inputs {sorted(expected)}, not {sorted(shapes)}.")
        if self.record.misfit(shapes) is not None:
            self._load_plan(shapes)
        return TensorRtBound(self, shapes)

    def release(self) -> None:
        """See `DeviceComponent.release`. TensorRT frees the weights with the last reference to the engine."""
        self.engine = None

    def errors(self) -> str:
        """What TensorRT said since it was last asked."""
        said = "; ".join(self.log.errors) or "it gave no reason"
        self.log.errors.clear()
        return said

    def _load_plan(self, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        plan, record = choice.verified_plan(self._bundle, self.name, self._flavour, self._device, shapes)
        self.unbind()
        self.engine = None  # before the next one is loaded: two engines need not fit
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise BackendError(
                f"{self._flavour.name} {self._flavour.version} cannot load the plan of {self.name}: {self.errors()}."
            )
        self.record = record
        self._check_interface()

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

    def __init__(self, component: TensorRtComponent, shapes: Mapping[str, tuple[int, ...]]) -> None:
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

    def load(self, bundle: Bundle, name: str, settings: Settings) -> LoadedComponent:
        """See `Backend.load`. A plan's precision was decided by the export: another one is refused."""
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
        refusals.append(refusal)
    raise BackendError(" ".join(refusals))


def _layout(specs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return {spec.name: (shapes[spec.name], np.dtype(spec.dtype)) for spec in specs}


BACKEND = TensorRtBackend()
