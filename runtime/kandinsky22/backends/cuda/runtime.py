"""CUDA behind a few owners: device memory, pinned memory, streams, events and captured graphs.

`Cuda` wraps the runtime API of `cuda.bindings` and turns its error codes into BackendError. The runtime module is an
argument, so that tests can hand in a recording stand-in. Everything works on the first visible device; choose another
with the environment variable CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array
from kandinsky22.errors import BackendError

ALIGNMENT = 256
"""Every tensor begins at a multiple of this: what TensorRT asks of its memory."""

Bytes = NDArray[np.uint8]


class Cuda:
    """The CUDA runtime: makes owners, and raises BackendError with the error's name where a call fails."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    @classmethod
    def load(cls) -> Cuda:
        """CUDA by `cuda.bindings`. Raises BackendError where it is not installed."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(f"{error}; install CUDA's bindings: pip install cuda-bindings") from error
        return cls(runtime)

    def call(self, function: str, *arguments: Any, advice: str = "") -> Any:
        """Call a function of the runtime; its one result, or None."""
        results = self.results(function, *arguments, advice=advice)
        return results[0] if results else None

    def results(self, function: str, *arguments: Any, advice: str = "") -> list[Any]:
        """Call a function of the runtime; all that it gives beside its status."""
        found: list[Any]
        try:
            status, *found = getattr(self.runtime, function)(*arguments)
        except RuntimeError as error:  # how cuda-bindings says that a library of CUDA is missing
            raise BackendError(f"CUDA's {function} failed: {error}{'; ' + advice if advice else ''}.") from error
        if int(status) != 0:
            _, text = self.runtime.cudaGetErrorString(status)
            meaning = text.decode() if isinstance(text, bytes) else str(text)
            raise BackendError(f"CUDA's {function} failed: {status.name} ({meaning}){'; ' + advice if advice else ''}.")
        return found

    def quietly(self, function: str, *arguments: Any) -> None:
        """Call a function that frees something.

        Its status is dropped: it repeats what an earlier asynchronous call did wrong, and that call's own report must
        not be replaced by it.
        """
        getattr(self.runtime, function)(*arguments)

    def check_device(self) -> None:
        """Raise BackendError where there is no device, or no driver."""
        if not self.call("cudaGetDeviceCount", advice="this needs an NVIDIA GPU and its driver"):
            raise BackendError("CUDA finds no GPU; this needs an NVIDIA GPU and its driver.")

    def memory_info(self) -> MemoryInfo:
        """Free and total bytes of the device's memory."""
        free, total = self.results("cudaMemGetInfo")
        return MemoryInfo(int(free), int(total))

    def memory(self, size: int) -> DeviceMemory:
        """Device memory of `size` bytes."""
        return DeviceMemory(self, size)

    def pinned(self, size: int) -> PinnedMemory:
        """Host memory of `size` bytes that the device can reach by itself."""
        return PinnedMemory(self, size)

    def stream(self) -> Stream:
        """A stream that does not wait for the default stream."""
        return Stream(self)

    def event(self, *, timed: bool = False) -> Event:
        """An event; one that is `timed` can measure seconds, and costs a little more."""
        return Event(self, timed=timed)


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of device memory."""

    free: int
    total: int


class Owner:
    """Something of CUDA's that must be given back: by `close`, which may be called twice, or by a `with` block."""

    def close(self) -> None:
        """Give it back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceMemory(Owner):
    """A block of device memory, from `address` on."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        status, address = cuda.runtime.cudaMalloc(max(size, 1))
        if int(status) != 0:
            raise BackendError(_out_of_memory(cuda, status.name, size))
        self.address = int(address)

    def close(self) -> None:
        """See `Owner.close`. CUDA waits for the device before it frees."""
        if self.address:
            self._cuda.quietly("cudaFree", self.address)
            self.address = 0


class PinnedMemory(Owner):
    """A block of page-locked host memory: `array` are its bytes. The array must not be used after `close`."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        advice = f"{_mib(size)} of page-locked host memory were asked for"
        self.address = int(cuda.call("cudaMallocHost", max(size, 1), advice=advice))
        self.array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))

    def close(self) -> None:
        """See `Owner.close`."""
        if self.address:
            self._cuda.quietly("cudaFreeHost", self.address)
            self.address = 0
            self.array = np.empty(0, np.uint8)


class Event(Owner):
    """A mark in a stream's work, to wait for or to measure from."""

    def __init__(self, cuda: Cuda, *, timed: bool) -> None:
        self._cuda = cuda
        flags = cuda.runtime.cudaEventDefault if timed else cuda.runtime.cudaEventDisableTiming
        self.handle = cuda.call("cudaEventCreateWithFlags", flags)

    def synchronize(self) -> None:
        """Let the host wait until the device has passed the mark; at once where it was never set."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def seconds_since(self, start: Event) -> float:
        """Seconds on the device between two timed events that it has passed."""
        return float(self._cuda.call("cudaEventElapsedTime", start.handle, self.handle)) / 1000

    def close(self) -> None:
        """See `Owner.close`."""
        if self.handle is not None:
            self._cuda.quietly("cudaEventDestroy", self.handle)
            self.handle = None


class Stream(Owner):
    """A queue of work for the device: what is put in runs in order, while the host goes on."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy of `size` bytes between addresses, each on the device or in pinned memory."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDefault  # the addresses say where they are
        self._cuda.call("cudaMemcpyAsync", target, source, size, kind, self.handle)

    def record(self, event: Event) -> None:
        """Queue the setting of a mark."""
        self._cuda.call("cudaEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait, on the device, until another stream has passed the mark."""
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Let the host wait until all that is queued has run. What went wrong on the device is raised here."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` puts into this stream, without running it, as one graph."""
        # Thread-local: what other threads do meanwhile, such as allocating, neither fails nor is captured.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture()
            raise
        graph = self._cuda.call(
            "cudaStreamEndCapture", self.handle, advice="something in the step cannot be captured into a CUDA graph"
        )
        try:
            return Graph(self._cuda, self._cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            self._cuda.quietly("cudaGraphDestroy", graph)  # the executable graph is a copy

    def launch(self, graph: Graph) -> None:
        """Queue a captured graph."""
        self._cuda.call("cudaGraphLaunch", graph.handle, self.handle)

    def close(self) -> None:
        """See `Owner.close`."""
        if self.handle is not None:
            self._cuda.quietly("cudaStreamDestroy", self.handle)
            self.handle = None

    def _abandon_capture(self) -> None:
        """Take the stream out of capturing after a failure, so that it can be used again."""
        _, graph = self._cuda.runtime.cudaStreamEndCapture(self.handle)
        if graph is not None and int(graph):
            self._cuda.quietly("cudaGraphDestroy", graph)
        self._cuda.quietly("cudaGetLastError")  # clears the error that the broken capture left


class Graph(Owner):
    """Captured work that can be launched again and again: it reads and writes the addresses it was captured with."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle

    def close(self) -> None:
        """See `Owner.close`."""
        if self.handle is not None:
            self._cuda.quietly("cudaGraphExecDestroy", self.handle)
            self.handle = None


class Staging(Owner):
    """Copies between arrays and the device, in pieces through two pinned blocks: one is filled while one travels.

    So the pinned memory stays small whatever is copied, and every copy runs at the bus's full speed.
    """

    def __init__(self, cuda: Cuda, piece: int = 8 << 20) -> None:
        self._piece = piece
        self._blocks = [cuda.pinned(piece), cuda.pinned(piece)]
        self._left = [cuda.event(), cuda.event()]
        self._turn = 0

    def upload(self, stream: Stream, address: int, arrays: Iterable[Array]) -> None:
        """Queue copies of `arrays` to the device, one behind the other without gaps from `address` on.

        The arrays may be changed when this returns.
        """
        filled = 0
        self._take_turn()
        for array in arrays:
            data = _bytes(array)
            while data.size:
                part = data[: self._piece - filled]
                self._blocks[self._turn].array[filled : filled + part.size] = part
                filled += part.size
                data = data[part.size :]
                if filled == self._piece:
                    self._send(stream, address, filled)
                    address, filled = address + filled, 0
                    self._take_turn()
        if filled:
            self._send(stream, address, filled)

    def download(self, stream: Stream, address: int, array: Array) -> None:
        """Copy from the device into a contiguous array, behind everything that is queued; waits until it is there."""
        data = _bytes(array)
        waiting: tuple[int, int, int] | None = None
        for start in range(0, data.size, self._piece):
            size = min(self._piece, data.size - start)
            self._take_turn()
            stream.copy(self._blocks[self._turn].address, address + start, size)
            stream.record(self._left[self._turn])
            if waiting:
                self._receive(data, *waiting)
            waiting = (self._turn, start, size)
        if waiting:
            self._receive(data, *waiting)

    def close(self) -> None:
        """See `Owner.close`."""
        close_all([*self._blocks, *self._left])

    def _take_turn(self) -> None:
        """Go to the other block, and wait until its last copy has left it."""
        self._turn = 1 - self._turn
        self._left[self._turn].synchronize()

    def _send(self, stream: Stream, address: int, size: int) -> None:
        stream.copy(address, self._blocks[self._turn].address, size)
        stream.record(self._left[self._turn])

    def _receive(self, data: Bytes, turn: int, start: int, size: int) -> None:
        self._left[turn].synchronize()
        data[start : start + size] = self._blocks[turn].array[:size]


def close_all(owners: Sequence[Owner]) -> None:
    """Close every owner, the last one first."""
    for owner in reversed(owners):
        owner.close()


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(array: Array) -> Bytes:
    """The bytes of an array: a view where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _out_of_memory(cuda: Cuda, name: str, size: int) -> str:
    cuda.quietly("cudaGetLastError")
    try:
        found = cuda.memory_info()
        have = f"{_mib(found.free)} of {_mib(found.total)} are free"
    except BackendError:
        have = "how much is free is unknown"
    return (
        f"The GPU cannot give {_mib(size)} of memory ({name}); {have}. "
        "Make smaller pictures or fewer at once (batch_size), use low_memory, or end other programs on the GPU."
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
