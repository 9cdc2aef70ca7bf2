"""Stand-ins for machines with a GPU: the CUDA runtime, and TensorRT or onnxruntime-gpu on it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

import pytest

from kandinsky22 import Pipeline
from kandinsky22.backends import Availability, Backend, Settings, onnxruntime
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.component import DeviceComponent
from kandinsky22.backends.cuda.gpu import SharedGpu
from kandinsky22.backends.cuda.runtime import Cuda
from kandinsky22.backends.onnxruntime.cuda import OnnxRuntimeCudaComponent
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.component import TensorRtBackend, TensorRtComponent
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.backends.tensorrt.records import PlanRecord, Report
from kandinsky22.bundle import contents
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.components import Components

from .fake_cuda import FakeCuda
from .fake_onnxruntime import FakeOnnxRuntime
from .fake_tensorrt import RANGES, FakeTensorRt

H100 = gpu.Device("Imagined GPU", (9, 0))
SCHEDULES = {"late": (), "work early": (0,), "copies early": (1,), "early": (0, 1)}
"""Every way in which a device may time its work: the streams that run it as soon as it is queued."""
WIDE = Profile(64, 64, 512, 8)
Ranges = Mapping[str, tuple[int, int, int]]


class TensorRtMachine:
    """A stand-in for a machine with a GPU and TensorRT. It lays plans that fit into the bundle that it is given."""

    def __init__(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, eager: tuple[int, ...] = ()) -> None:
        self.bundle = bundle
        self.cuda = FakeCuda(eager)
        self.tensorrt = FakeTensorRt(self.cuda)
        self.flavour = library.Flavour("tensorrt", self.tensorrt, self.tensorrt.__version__)  # type: ignore[arg-type]
        self.shared_gpu = SharedGpu(lambda: Cuda(self.cuda))
        self.backend = TensorRtBackend(self.shared_gpu)
        for name in bundle.manifest.components:
            self.write_plan(name, str(bundle.graph(name)).encode())
        monkeypatch.setattr(gpu, "gpu", lambda: H100)
        monkeypatch.setattr(library, "flavours", lambda: [self.flavour])
        monkeypatch.setattr(library, "flavour", lambda name: self.flavour)

    def write_plan(self, name: str, plan: bytes, profile: Profile = WIDE, ranges: Ranges = RANGES) -> None:
        """Write a plan and its record for `ranges` of the symbolic dimensions: by default, what the stand-in takes."""
        shapes = {
            spec.name: tuple(spec.resolve({name: sizes[i] for name, sizes in ranges.items()}) for i in range(3))
            for spec in self.bundle.component(name).inputs
        }
        record = PlanRecord(
            component=name,
            flavour="tensorrt",
            version=FakeTensorRt.__version__,
            device=H100,
            targets=(),
            profile=profile,
            shapes=shapes,  # type: ignore[arg-type]
            onnx=choice.onnx_hashes(self.bundle, name),
            settings={},
            plan=f"{name}.plan",
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            weight_bytes=0,
            seconds=0,
            peak_memory=0,
            report=Report({}, {}, 0, 0, 0),
        )
        folder = self.bundle.path / contents.PLANS / str(profile)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / record.plan).write_bytes(plan)
        (folder / f"{name}.json").write_text(record.to_json())

    def load(self, name: str) -> TensorRtComponent:
        component = self.backend.load(self.bundle, name, Settings())
        assert isinstance(component, TensorRtComponent)
        return component

    def pipeline(self, *, low_memory: bool = False) -> Pipeline:
        return _pipeline(self.bundle, self.backend, low_memory)


class OnnxRuntimeMachine:
    """A stand-in for a machine with a GPU and onnxruntime-gpu."""

    def __init__(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, eager: tuple[int, ...] = ()) -> None:
        self.bundle = bundle
        self.cuda = FakeCuda(eager)
        self.ort = FakeOnnxRuntime(self.cuda)
        self.shared_gpu = SharedGpu(lambda: Cuda(self.cuda))
        monkeypatch.setitem(sys.modules, "onnxruntime", self.ort)  # type: ignore[arg-type]
        monkeypatch.setattr(gpu, "gpu", lambda: H100)

    def load(self, name: str, precision: str = "auto") -> OnnxRuntimeCudaComponent:
        return OnnxRuntimeCudaComponent(self.bundle, name, Settings(precision), self.shared_gpu)

    def pipeline(self, *, low_memory: bool = False) -> Pipeline:
        return _pipeline(self.bundle, _OnnxRuntimeBackend(self), low_memory)


class _OnnxRuntimeBackend:
    """ONNX Runtime's backend on the stand-in's GPU."""

    def __init__(self, machine: OnnxRuntimeMachine) -> None:
        self._machine = machine

    def availability(self, bundle: Bundle | None = None) -> Availability:
        return onnxruntime.BACKEND.availability(bundle)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = "") -> OnnxRuntimeCudaComponent:
        return OnnxRuntimeCudaComponent(bundle, name, settings, self._machine.shared_gpu)


AnyMachine = TensorRtMachine | OnnxRuntimeMachine
MACHINES: dict[str, type[AnyMachine]] = {"tensorrt": TensorRtMachine, "onnxruntime": OnnxRuntimeMachine}


def load(machine: AnyMachine, name: str) -> DeviceComponent:
    """A component on a machine of either kind."""
    return machine.load(name)


def _pipeline(bundle: Bundle, backend: Backend, low_memory: bool) -> Pipeline:
    return Pipeline(Components(bundle, backend, Settings(low_memory=low_memory)))
