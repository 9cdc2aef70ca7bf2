"""The GPU: what it is, and what all components on it share: streams, staging, the arena."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kandinsky22.backends.cuda.runtime import Cuda, DeviceMemory, Owner, Staging, close_all
from kandinsky22.errors import BackendError


@dataclass(frozen=True)
class Device:
    """An NVIDIA GPU: its name as the driver gives it, and its compute capability (major, minor)."""

    name: str
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability[0]}.{self.compute_capability[1]})"


def gpu() -> Device:
    """The GPU of this machine (the first, where there are several).

    Raises BackendError where there is none, or cuda-bindings is not installed.
    """
    cuda = Cuda.load()
    try:
        properties = cuda.call("cudaGetDeviceProperties", 0)
    except BackendError as error:
        raise BackendError(f"There is no NVIDIA GPU here ({str(error).rstrip('.')}).") from error
    return Device(properties.name.decode(), (properties.major, properties.minor))


def device_memory() -> int:
    """Bytes of the GPU's memory in use, by whomever; 0 without a GPU or without cuda-bindings."""
    try:
        found = Cuda.load().memory_info()
    except BackendError:
        return 0
    return found.total - found.free


class Turn:
    """A lock that the thread which has it may take again, and can give away for a while, however often it took it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._thread != threading.get_ident():
            self._lock.acquire()
            self._thread = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._thread = None
            self._lock.release()

    @contextmanager
    def given_away(self) -> Iterator[None]:
        """Let other threads have it for the block; the thread that has it calls this."""
        depth, self._depth, self._thread = self._depth, 0, None
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._depth, self._thread = depth, threading.get_ident()


class Gpu(Owner):
    """What all components on the device share: a stream for work, one for copies, pinned staging, and the arena.

    All work goes through the one stream `work`, in order. That makes the arena safe: whoever runs has it to itself.
    Whoever uses the device has the `turn`, so that one thread at a time queues work.
    """

    def __init__(self, cuda: Cuda, turn: Turn) -> None:
        self.cuda = cuda
        self.turn = turn
        self.arena = Arena(self)
        with ExitStack() as undo:
            self.work = undo.enter_context(cuda.stream())
            self.copies = undo.enter_context(cuda.stream())
            self.staging = undo.enter_context(Staging(cuda))
            undo.pop_all()

    def close(self) -> None:
        """See `Owner.close`."""
        close_all([self.work, self.copies, self.staging, self.arena])


class Arena(Owner):
    """One block of memory for the activations of whatever runs; it grows to the largest that was asked for."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._memory: DeviceMemory | None = None

    def reserve(self, size: int) -> int:
        """Address of at least `size` bytes. It differs from the last one only where the arena had to grow."""
        if self._memory is None or self._memory.size < size:
            if self._memory is not None:
                self._gpu.work.synchronize()
                self.close()  # first, so that the old and the new block need not fit together
            self._memory = self._gpu.cuda.memory(max(size, 1))
        return self._memory.address

    def close(self) -> None:
        """See `Owner.close`."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class SharedGpu:
    """Lends the one `Gpu` of a process: it is made for the first component, and closed after the last one."""

    def __init__(self, cuda: Callable[[], Cuda] = Cuda.load) -> None:
        self._cuda = cuda
        self._gpu: Gpu | None = None
        self._borrowers = 0
        self._lock = threading.Lock()
        self._turn = Turn()  # outlives the device: who waits for an earlier one must not run beside a later one

    def lend(self) -> Gpu:
        """The device. Raises BackendError where there is none."""
        with self._lock:
            if self._gpu is None:
                cuda = self._cuda()
                cuda.check_device()
                self._gpu = Gpu(cuda, self._turn)
            self._borrowers += 1
            return self._gpu

    def give_back(self) -> None:
        """One component less."""
        with self._lock:
            self._borrowers -= 1
            if not self._borrowers and self._gpu is not None:
                self._gpu.close()
                self._gpu = None


GPU = SharedGpu()
"""The GPU of this process."""
