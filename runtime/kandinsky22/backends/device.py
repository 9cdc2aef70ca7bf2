"""What the GPU backends share: static buffers, one arena, and the loop that leaves everything on the device.

Between two steps the host only queues work: at most three small copies inside the device's memory (this step's
timestep, row and noise, from tables that were uploaded before the loop into the addresses that the step reads), and the
step. It waits for nothing, so it runs ahead of the device, and the device never idles. Copies were chosen over the
alternatives because they need no second graph and nothing that changes between launches: one graph of all steps would
hold the network once a step, and two graphs that write into each other's inputs would need two contexts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep
from kandinsky22.cuda import Cuda, DeviceMemory, Event, Owner, Staging, aligned, close_all
from kandinsky22.errors import BackendError

SHAPES_KEPT = 4
"""How many sets of input shapes a component stays bound to, each with its buffers and its captured graph."""

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


class DeviceComponent:
    """A component on the device: bound to the shapes it was used with last, and looped there. Base of the backends'."""

    def __init__(self, name: str, lender: Lender) -> None:
        self.name = name
        self.gpu = lender.lend()
        self._give_back: Callable[[], None] | None = lender.give_back
        self.step_seconds: tuple[float, ...] = ()
        """Seconds on the device of each step of the last loop, by CUDA's events."""
        self._bounds: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], Bound] = OrderedDict()
        self._looping = False

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> Bound:
        """Bind to input shapes. Raises BackendError where the graph does not take them."""
        raise NotImplementedError

    def bound(self, feeds: Mapping[str, Array]) -> Bound:
        """The graph bound to the shapes of `feeds`; the one that was used longest ago makes room for a new one."""
        if self._looping:
            raise BackendError(f"{self.name} is in a loop: its step callback cannot run it; open a second Pipeline.")
        shapes = {name: tuple(np.shape(array)) for name, array in sorted(feeds.items())}
        key = tuple(shapes.items())
        if key not in self._bounds:
            while len(self._bounds) >= SHAPES_KEPT:
                self._bounds.popitem(last=False)[1].close()
            self._bounds[key] = self.bind(shapes)
        self._bounds.move_to_end(key)
        return self._bounds[key]

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`.

        `on_step` runs while the device computes the step after the one that it is told of. Where it replaces the state,
        that step is computed again; where it raises, the loop ends when the device has finished it.
        """
        with self.gpu.lock:
            bound = self.bound({**constants, **state, **{name: rows[0] for name, rows in per_step.items()}})
            self._looping = True
            try:
                loop = DeviceLoop(bound, per_step)
                result = loop.run({**constants, **state}, on_step)
            finally:
                self._looping = False
            self.step_seconds = loop.step_seconds
            return result

    def close(self) -> None:
        """See `LoadedComponent.close`."""
        with self.gpu.lock:
            if self._looping:
                raise BackendError(f"{self.name} is in a loop: its step callback cannot close it; raise Cancelled.")
            self.unbind()
            self.release()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def release(self) -> None:
        """Free what a subclass holds beside what it is bound to, such as weights."""

    def unbind(self) -> None:
        """Free the buffers and graphs of all shapes."""
        while self._bounds:
            self._bounds.popitem()[1].close()


class DeviceLoop:
    """One run of a step graph through all its rows."""

    def __init__(self, bound: Bound, per_step: PerStep) -> None:
        self._bound = bound
        self._work = bound.gpu.work
        self._per_step = per_step
        (self._steps,) = {len(rows) for rows in per_step.values()}
        self.step_seconds: tuple[float, ...] = ()

    def run(self, feeds: Mapping[str, Array], on_step: OnStep | None) -> dict[str, Array]:
        """From the first state and the constants to the last state."""
        with ExitStack() as stack:
            # However the loop ends, the device must have finished before its memory is freed.
            self._tables = stack.enter_context(Tables(self._bound, self._per_step))
            self._marks = stack.enter_context(Marks(self._bound.gpu))
            snapshots = stack.enter_context(Snapshots(self._bound)) if on_step else None
            stack.callback(self._work.synchronize)
            self._bound.upload(feeds)
            self._marks.add()
            if on_step is not None and snapshots is not None:
                self._run_and_report(snapshots, on_step)
            else:
                for step in range(self._steps):
                    self._launch(step)
            result = self._bound.download(self._bound.state())
            self.step_seconds = self._marks.seconds()
            return result

    def _launch(self, step: int) -> None:
        self._tables.feed(step)
        self._bound.step()
        self._marks.add()

    def _run_and_report(self, snapshots: Snapshots, on_step: OnStep) -> None:
        """Report each step while the next one runs."""
        last = self._steps - 1

        def launch(step: int) -> None:
            self._launch(step)
            snapshots.take(step)

        def report(step: int) -> None:
            state = snapshots.read(step)
            replaced = on_step(step, state)
            if replaced:
                self._bound.upload({**state, **replaced})
                if step < last:
                    launch(step + 1)  # what ran meanwhile began from the state that is replaced

        for step in range(self._steps):
            launch(step)
            if step:
                report(step - 1)
        report(last)


class Tables(Owner):
    """What every step is fed, all of it on the device; an array that several steps share is there once."""

    def __init__(self, bound: Bound, per_step: PerStep) -> None:
        self._bound = bound
        self._places: dict[str, list[int]] = {}
        self._fed: dict[str, int] = {}
        arrays: dict[str, list[Array]] = {}
        for name, rows in per_step.items():
            values = list(rows)  # held until all are compared: the place of an array is found by its identity
            shared = {id(array): array for array in values}
            slots = {key: slot for slot, key in enumerate(shared)}
            self._places[name] = [slots[id(array)] for array in values]
            arrays[name] = list(shared.values())
        sizes = {name: aligned(len(arrays[name]) * bound.inputs[name].size) for name in arrays}
        self._memory = bound.gpu.cuda.memory(sum(sizes.values()))
        self._addresses: dict[str, int] = {}
        try:
            self._upload(arrays, sizes)
        except BaseException:
            self.close()
            raise

    def _upload(self, arrays: Mapping[str, list[Array]], sizes: Mapping[str, int]) -> None:
        gpu, address = self._bound.gpu, self._memory.address
        for name, values in arrays.items():
            self._addresses[name] = address
            dtype = self._bound.inputs[name].dtype
            gpu.staging.upload(gpu.work, address, (np.asarray(value, dtype) for value in values))
            address += sizes[name]

    def feed(self, step: int) -> None:
        """Queue the copies of a step's values into the inputs; what is there already stays."""
        for name, places in self._places.items():
            place = places[step]
            if self._fed.get(name) != place:
                tensor = self._bound.inputs[name]
                self._bound.gpu.work.copy(tensor.address, self._addresses[name] + place * tensor.size, tensor.size)
                self._fed[name] = place

    def close(self) -> None:
        """See `Owner.close`."""
        self._memory.close()


class Snapshots(Owner):
    """Copies of the state on their way to the host, by the second stream, for two steps in turn.

    The state itself cannot be read while the next step runs, since that step overwrites it.
    """

    def __init__(self, bound: Bound) -> None:
        self._gpu = bound.gpu
        self._state = bound.state()
        size = sum(aligned(tensor.size) for tensor in self._state.values())
        with ExitStack() as undo:
            self._device = [undo.enter_context(self._gpu.cuda.memory(size)) for _ in range(2)]
            self._host = [undo.enter_context(self._gpu.cuda.pinned(size)) for _ in range(2)]
            self._taken = [undo.enter_context(self._gpu.cuda.event()) for _ in range(2)]
            self._arrived = [undo.enter_context(self._gpu.cuda.event()) for _ in range(2)]
            self._owners = undo.pop_all()

    def take(self, step: int) -> None:
        """Queue a copy of the state as it is after all that is queued.

        Step `step - 2` must have been read. A step that is computed again is taken again: only its last copy is read.
        """
        turn, offset = step % 2, 0
        memory = self._device[turn]
        for tensor in self._state.values():
            self._gpu.work.copy(memory.address + offset, tensor.address, tensor.size)
            offset += aligned(tensor.size)
        self._gpu.work.record(self._taken[turn])
        self._gpu.copies.wait(self._taken[turn])
        self._gpu.copies.copy(self._host[turn].address, memory.address, memory.size)
        self._gpu.copies.record(self._arrived[turn])

    def read(self, step: int) -> dict[str, Array]:
        """The state after a step. The host waits for that step alone, not for what is queued behind it."""
        self._arrived[step % 2].synchronize()
        block, offset, arrays = self._host[step % 2].array, 0, {}
        for name, tensor in self._state.items():
            arrays[name] = block[offset : offset + tensor.size].view(tensor.dtype).reshape(tensor.shape).copy()
            offset += aligned(tensor.size)
        return arrays

    def close(self) -> None:
        """See `Owner.close`."""
        self._gpu.copies.synchronize()
        self._owners.close()


class Marks(Owner):
    """Timed events between the steps."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._events: list[Event] = []

    def add(self) -> None:
        """Queue a mark."""
        self._events.append(self._gpu.cuda.event(timed=True))
        self._gpu.work.record(self._events[-1])

    def seconds(self) -> tuple[float, ...]:
        """Seconds between neighbouring marks; the device must have passed them."""
        pairs = zip(self._events, self._events[1:], strict=False)
        return tuple(end.seconds_since(start) for start, end in pairs)

    def close(self) -> None:
        """See `Owner.close`."""
        close_all(self._events)


GPU = Lender()
"""The GPU of this process."""
