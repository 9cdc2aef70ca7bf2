"""A stand-in for `cuda.bindings.runtime`: it records every call, and simulates memory, streams, events and graphs.

Work is not run when it is queued, but as late as a real device may run it (when the host waits for it), or, for streams
that are `eager`, as early as it may (as soon as nothing that it waits for is missing). Code that only works for one of
the two has a race. Memory is filled with 0xFF, which is not a number, when it is given and when it is freed.
"""

# ruff: noqa: N802, N815 - the names are CUDA's

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]
WAITING = {
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaDeviceSynchronize",
    "cudaMalloc",
    "cudaFree",
    "cudaMallocHost",
    "cudaFreeHost",
}
"""Calls in which the host waits for the device, or may."""


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


@dataclass
class Block:
    """Memory that was given out, with its real address in this process."""

    raw: Any
    start: int
    size: int
    device: bool

    @property
    def data(self) -> Any:
        return self.raw[self.start - self.raw.ctypes.data :][: self.size]


@dataclass
class FakeStream:
    number: int
    eager: bool
    queue: deque[tuple[str, Any]] = field(default_factory=deque)
    captured: list[Work] | None = None
    broken: bool = False


@dataclass
class FakeEvent:
    timed: bool
    set: int = 0
    passed: int = 0


class FakeCuda:
    """The functions of CUDA's runtime API that are called. `calls` are (function, arguments) in order.

    `failures` maps a function to (which call fails, counted from 1; its status).
    """

    cudaEventDefault = 0
    cudaEventDisableTiming = 2
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(
        cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1, cudaStreamCaptureModeRelaxed=2
    )

    def __init__(self, eager: tuple[int, ...] = (), total: int = 1 << 30, devices: int = 1) -> None:
        self.eager = eager
        self.total = total
        self.devices = devices
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failures: dict[str, tuple[int, Status]] = {}
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, FakeStream] = {}
        self.events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, list[Work]] = {}
        self._counts: Counter[str] = Counter()
        self._next = 1000
        self._made = 0

    # What tests ask

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def used(self) -> int:
        return sum(block.size for block in self.blocks.values() if block.device)

    def alive(self) -> dict[str, int]:
        """How much there is of everything that must be given back."""
        return {
            "blocks": len(self.blocks),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
        }

    def region(self, address: int, size: int) -> Any:
        """The bytes at an address; whoever asks for what was freed, or never given, has a bug."""
        for block in self.blocks.values():
            if block.start <= address and address + size <= block.start + block.size:
                return block.data[address - block.start :][:size]
        raise AssertionError(f"{size} bytes at {address:#x} are not in any live block")

    def enqueue(self, stream: int, work: Work) -> None:
        """Queue work as a library does, or capture it."""
        target = self.streams[stream]
        if target.captured is not None:
            target.captured.append(work)
            return
        target.queue.append(("work", work))
        self._poll()

    # Memory

    def cudaMalloc(self, size: int) -> Any:
        if (failure := self._called("cudaMalloc", size)) is not None:
            return failure, None
        if self.used() + size > self.total:
            return Status.cudaErrorMemoryAllocation, None
        return Status.cudaSuccess, self._give(size, device=True)

    def cudaFree(self, address: int) -> Any:
        if (failure := self._called("cudaFree", address)) is not None:
            return (failure,)
        for stream in self.streams.values():  # as the real one, it waits for the whole device
            self._run(stream, lambda: False)
        self._take(address, device=True)
        return (Status.cudaSuccess,)

    def cudaMallocHost(self, size: int) -> Any:
        if (failure := self._called("cudaMallocHost", size)) is not None:
            return failure, None
        return Status.cudaSuccess, self._give(size, device=False)

    def cudaFreeHost(self, address: int) -> Any:
        if (failure := self._called("cudaFreeHost", address)) is not None:
            return (failure,)
        self._take(address, device=False)
        return (Status.cudaSuccess,)

    def cudaMemGetInfo(self) -> Any:
        return Status.cudaSuccess, self.total - self.used(), self.total

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:
        if (failure := self._called("cudaMemcpyAsync", target, source, size, stream)) is not None:
            return (failure,)

        def copy() -> None:
            self.region(target, size)[:] = self.region(source, size)

        self.enqueue(stream, copy)
        return (Status.cudaSuccess,)

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        if (failure := self._called("cudaStreamCreateWithFlags", flags)) is not None:
            return failure, None
        handle = self._handle()
        self.streams[handle] = FakeStream(self._made, self._made in self.eager)
        self._made += 1
        return Status.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> Any:
        del self.streams[stream]
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if (failure := self._called("cudaStreamSynchronize", stream)) is not None:
            return (failure,)
        self._run(self.streams[stream], lambda: False)
        return (Status.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        if (failure := self._called("cudaStreamWaitEvent", stream, event)) is not None:
            return (failure,)
        self.streams[stream].queue.append(("wait", (event, self.events[event].set)))
        self._poll()
        return (Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        if (failure := self._called("cudaEventCreateWithFlags", flags)) is not None:
            return failure, None
        handle = self._handle()
        self.events[handle] = FakeEvent(timed=flags == self.cudaEventDefault)
        return Status.cudaSuccess, handle

    def cudaEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (Status.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        if (failure := self._called("cudaEventRecord", event, stream)) is not None:
            return (failure,)
        self.events[event].set += 1
        self.streams[stream].queue.append(("record", (event, self.events[event].set)))
        self._poll()
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> Any:
        if (failure := self._called("cudaEventSynchronize", event)) is not None:
            return (failure,)
        self._reach(event, self.events[event].set)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        for event in (self.events[start], self.events[end]):
            if not event.timed or event.passed < event.set:
                return Status.cudaErrorInvalidValue, 0.0
        return Status.cudaSuccess, 1.0

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        if (failure := self._called("cudaStreamBeginCapture", stream, mode)) is not None:
            return (failure,)
        self.streams[stream].captured = []
        self.streams[stream].broken = False
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        target = self.streams[stream]
        work, target.captured = target.captured, None
        if target.broken:
            return Status.cudaErrorStreamCaptureInvalidated, None
        if (failure := self._called("cudaStreamEndCapture", stream)) is not None:
            return failure, None
        handle = self._handle()
        self.graphs[handle] = work or []
        return Status.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        if (failure := self._called("cudaGraphInstantiate", graph)) is not None:
            return failure, None
        handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return Status.cudaSuccess, handle

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        if (failure := self._called("cudaGraphLaunch", graph, stream)) is not None:
            return (failure,)
        work = self.graphs[graph]

        def replay() -> None:
            for each in work:
                each()

        self.enqueue(stream, replay)
        return (Status.cudaSuccess,)

    # The device and errors

    def cudaGetDeviceCount(self) -> Any:
        if not self.devices:
            return Status.cudaErrorInsufficientDriver, None
        return Status.cudaSuccess, self.devices

    def cudaGetDeviceProperties(self, device: int) -> Any:
        if not self.devices:
            return Status.cudaErrorInsufficientDriver, None
        return Status.cudaSuccess, SimpleNamespace(name=b"Imagined GPU", major=9, minor=0)

    def cudaGetErrorString(self, status: Status) -> Any:
        return Status.cudaSuccess, f"the meaning of {int(status)}".encode()

    def cudaGetLastError(self) -> Any:
        return (Status.cudaSuccess,)

    # How it works

    def _called(self, name: str, *arguments: Any) -> Status | None:
        """Record a call; a status where it must fail."""
        self.calls.append((name, arguments))
        self._counts[name] += 1
        which, status = self.failures.get(name, (0, Status.cudaSuccess))
        if which == self._counts[name]:
            return status
        capturing = [stream for stream in self.streams.values() if stream.captured is not None]
        if capturing and name in WAITING:
            for stream in capturing:
                stream.broken = True
            return Status.cudaErrorStreamCaptureUnsupported
        return None

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _give(self, size: int, *, device: bool) -> int:
        raw = np.full(size + 256, 0xFF, np.uint8)
        start = -(-raw.ctypes.data // 256) * 256
        self.blocks[start] = Block(raw, start, size, device)
        return start

    def _take(self, address: int, *, device: bool) -> None:
        block = self.blocks.pop(address)
        assert block.device == device
        block.raw[:] = 0xFF

    def _poll(self) -> None:
        """Let eager streams go on as far as they can."""
        moved = True
        while moved:
            moved = False
            for stream in self.streams.values():
                while stream.eager and stream.queue and not self._blocked(stream):
                    self._next_of(stream)
                    moved = True

    def _blocked(self, stream: FakeStream) -> bool:
        kind, what = stream.queue[0]
        return kind == "wait" and what[0] in self.events and self.events[what[0]].passed < what[1]

    def _next_of(self, stream: FakeStream) -> None:
        kind, what = stream.queue.popleft()
        if kind == "work":
            what()
        elif kind == "record" and what[0] in self.events:
            self.events[what[0]].passed = what[1]

    def _run(self, stream: FakeStream, enough: Callable[[], bool]) -> None:
        """Run a stream until it is empty or `enough`, and first what it waits for."""
        while stream.queue and not enough():
            if self._blocked(stream):
                self._reach(*stream.queue[0][1])
                continue  # an eager stream went on by itself
            self._next_of(stream)
            self._poll()

    def _reach(self, event: int, number: int) -> None:
        """Run the stream on which an event is set, until it is passed."""
        mark = self.events[event]
        for stream in self.streams.values():
            if mark.passed >= number:
                return
            if any(kind == "record" and what == (event, number) for kind, what in stream.queue):
                self._run(stream, lambda: mark.passed >= number)
        assert mark.passed >= number, "waits for an event that nobody sets"
