"""The GPU of a process, and graphs bound to static buffers in its memory: what its backends share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.cuda import Cuda, DeviceMemory, Owner, Staging, aligned, close_all

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
"""Shape and type of tensors by name."""


@dataclass(frozen=True)
class Tensor:
    """An array in device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Gpu(Owner):
    """What all components on the device share: a stream for work, one for copies, pinned staging, and the arena.

    All work goes through the one stream `work`, in order. That makes the arena safe: whoever runs has it to itself.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.lock = threading.RLock()
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


class Bound(Owner):
    """A graph bound to static device buffers for one set of input shapes. Subclasses say how it runs."""

    def __init__(self, gpu: Gpu, inputs: Layout, outputs: Layout, feedback: Mapping[str, str]) -> None:
        self.gpu = gpu
        self._feedback = feedback
        addresses, offset = {}, 0
        for name, (shape, dtype) in {**inputs, **outputs}.items():
            addresses[name] = offset
            offset += aligned(int(np.prod(shape)) * dtype.itemsize)
        self._memory = gpu.cuda.memory(offset)
        tensors = {
            name: Tensor(self._memory.address + addresses[name], shape, dtype)
            for name, (shape, dtype) in {**inputs, **outputs}.items()
        }
        self.inputs = {name: tensors[name] for name in inputs}
        self.outputs = {name: tensors[name] for name in outputs}

    def enqueue(self) -> None:
        """Queue one run of the graph."""
        raise NotImplementedError

    def step(self) -> None:
        """Queue one run, and the copies that make its outputs the next run's state."""
        self.enqueue()
        for name, output in self._feedback.items():
            target = self.inputs[name]
            self.gpu.work.copy(target.address, self.outputs[output].address, target.size)

    def upload(self, arrays: Mapping[str, Array]) -> None:
        """Queue copies of arrays into inputs."""
        for name, array in arrays.items():
            tensor = self.inputs[name]
            self.gpu.staging.upload(self.gpu.work, tensor.address, [np.asarray(array, tensor.dtype)])

    def download(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Arrays of tensors on the device, once all that is queued has run."""
        arrays: dict[str, Array] = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self.gpu.staging.download(self.gpu.work, tensor.address, arrays[name])
        return arrays

    def state(self) -> dict[str, Tensor]:
        """The inputs that hold the state between two steps."""
        return {name: self.inputs[name] for name in self._feedback}

    def close(self) -> None:
        """See `Owner.close`."""
        self._memory.close()


class Lender:
    """Lends the one `Gpu` of a process: it is made for the first component, and closed after the last one."""

    def __init__(self, cuda: Callable[[], Cuda] = Cuda.load) -> None:
        self._cuda = cuda
        self._gpu: Gpu | None = None
        self._borrowers = 0
        self._lock = threading.Lock()

    def lend(self) -> Gpu:
        """The device. Raises BackendError where there is none."""
        with self._lock:
            if self._gpu is None:
                cuda = self._cuda()
                cuda.check_device()
                self._gpu = Gpu(cuda)
            self._borrowers += 1
            return self._gpu

    def give_back(self) -> None:
        """One component less."""
        with self._lock:
            self._borrowers -= 1
            if not self._borrowers and self._gpu is not None:
                self._gpu.close()
                self._gpu = None


GPU = Lender()
"""The GPU of this process."""
