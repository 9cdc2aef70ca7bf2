"""A stand-in for `tensorrt`: engines whose runs are queued in a FakeCuda, and computed by ONNX Runtime on its memory.

A plan is the path of an ONNX file. As the real one, an engine refuses shapes outside of its profile, wants its
activation memory from the caller, and overwrites it with whatever it likes.
"""

# ruff: noqa: N802 - the names are TensorRT's

from __future__ import annotations

import enum
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from .fake_cuda import FakeCuda

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
RANGES = {"B": (1, 2, 8), "G": (1, 2, 2), "h": (4, 8, 64), "w": (4, 8, 64)}
SCRATCH = 3


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class FakeTensorRt:
    """The names of the module `tensorrt` that the backend uses. `refusals` counts down to a run that is refused."""

    __version__ = "11.4.0"
    TensorIOMode = Mode
    TensorLocation = SimpleNamespace(DEVICE="device", HOST="host")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        Severity = Severity

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.refuse_run: int | None = None
        self.capturable = True
        self.runs = 0
        self.contexts = 0
        self.engines = self.most_engines = 0

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._engine(logger, plan))

    def _engine(self, logger: Any, plan: bytes) -> Any:
        if not plan.endswith(b".onnx"):
            logger.log(Severity.ERROR, "Error Code 1: Serialization (magic tag does not match)")
            return None
        return FakeEngine(self, logger, plan.decode())


class FakeEngine:
    num_optimization_profiles = 1

    def __init__(self, trt: FakeTensorRt, logger: Any, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.trt = trt
        self.logger = logger
        self.session: Any = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        trt.engines += 1
        trt.most_engines = max(trt.most_engines, trt.engines)

    def __del__(self) -> None:
        self.trt.engines -= 1

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[{**self.inputs, **self.outputs}[name].type]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shape = self.inputs[name].shape
        return [tuple(_size(d, {name: sizes[i] for name, sizes in RANGES.items()}) for d in shape) for i in range(3)]

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == "user managed"
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None

    def __del__(self) -> None:
        self.engine.trt.contexts -= 1

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(low) or not all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True)):
            self.engine.logger.log(Severity.ERROR, "IExecutionContext::setInputShape: Error Code 3: API Usage Error")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        sizes = {}
        for given, shape in self.shapes.items():
            for dim, size in zip(self.engine.inputs[given].shape, shape, strict=True):
                if isinstance(dim, str):
                    factor, _, symbol = dim.rpartition("*")
                    sizes[symbol] = size // int(factor or 1)
        return tuple(_size(dim, sizes) for dim in self.engine.outputs[name].shape)

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        trt, engine = self.engine.trt, self.engine
        trt.runs += 1
        if trt.runs == trt.refuse_run:
            engine.logger.log(Severity.ERROR, "enqueueV3: Error Code 1: Cask (could not find a tactic)")
            return False
        assert self.scratch is not None
        if not trt.capturable and trt.cuda.streams[stream].captured is not None:
            trt.cuda.streams[stream].broken = True
        scratch, addresses = self.scratch, dict(self.addresses)
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        trt.cuda.enqueue(stream, lambda: self._compute(scratch, addresses, shapes))
        return True

    def _compute(self, scratch: tuple[int, int], addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """What the device does, with what was fixed when it was queued."""
        cuda, engine = self.engine.trt.cuda, self.engine

        def array(name: str) -> Any:
            dtype = np.dtype(engine.get_tensor_dtype(name))
            size = int(np.prod(shapes[name])) * dtype.itemsize
            return cuda.region(addresses[name], size).view(dtype).reshape(shapes[name])

        cuda.region(*scratch)[:] = 0xEE
        results = engine.session.run(list(engine.outputs), {name: array(name).copy() for name in engine.inputs})
        for name, result in zip(engine.outputs, results, strict=True):
            array(name)[:] = result


def _size(dim: int | str, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    factor, _, name = dim.rpartition("*")
    return int(factor or 1) * sizes[name]
