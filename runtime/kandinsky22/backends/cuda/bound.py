"""Graphs bound to static buffers in the GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends.cuda.gpu import Gpu
from kandinsky22.backends.cuda.runtime import Owner, aligned

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


class BoundGraph(Owner):
    """A graph bound to static device buffers for one set of input shapes. Subclasses say how it runs."""

    def __init__(self, gpu: Gpu, inputs: Layout, outputs: Layout, feedback: Mapping[str, str]) -> None:
        self.gpu = gpu
        self.feedback = feedback
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
        for name, output in self.feedback.items():
            self.copy(self.outputs[output], self.inputs[name])

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Queue a copy within the device's memory."""
        self.gpu.work.copy(target.address, source.address, target.size)

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

    def others(self) -> dict[str, Tensor]:
        """The outputs that are no state, such as what a step's network gave."""
        state = set(self.feedback.values())
        return {name: tensor for name, tensor in self.outputs.items() if name not in state}

    def close(self) -> None:
        """See `Owner.close`."""
        self._memory.close()
