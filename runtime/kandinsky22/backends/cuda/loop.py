"""The loop that leaves everything on the device.

Between two steps the host only queues work: at most three small copies inside the device's memory (this step's
timestep, row and noise, from tables that were uploaded before the loop into the addresses that the step reads), and the
step. It waits for nothing, so it runs ahead of the device, and the device never idles. Copies were chosen over the
alternatives because they need no second graph and nothing that changes between launches: one graph of all steps would
hold the network once a step, and two graphs that write into each other's inputs would need two contexts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep
from kandinsky22.backends.cuda.bound import BoundGraph
from kandinsky22.backends.cuda.gpu import Gpu
from kandinsky22.backends.cuda.runtime import Event, Owner, aligned, close_all
from kandinsky22.backends.loop import replacement


class DeviceLoop:
    """One run of a step graph through all its rows."""

    def __init__(self, bound: BoundGraph, per_step: PerStep) -> None:
        self._bound = bound
        self._work = bound.gpu.work
        self._per_step = per_step
        (self._steps,) = {len(rows) for rows in per_step.values()}
        self.step_seconds: tuple[float, ...] = ()

    def run(self, feeds: Mapping[str, Array], on_step: OnStep | None) -> dict[str, Array]:
        """From the first state and the constants to the last state; `step_seconds` are those of this run."""
        with ExitStack() as stack:
            # However the loop ends, the device must have finished before its memory is freed.
            self._tables = stack.enter_context(Tables(self._bound, self._per_step))
            self._marks = stack.enter_context(StepTimer(self._bound.gpu))
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
            seen = snapshots.read(step)
            state = {name: seen[name] for name in self._bound.state()}
            replaced = replacement(on_step(step, seen), state)
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

    def __init__(self, bound: BoundGraph, per_step: PerStep) -> None:
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
    """Copies of the state and of the other outputs on their way to the host, by the second stream.

    They are for two steps in turn. The tensors themselves cannot be read while the next step runs and overwrites them.
    """

    def __init__(self, bound: BoundGraph) -> None:
        self._gpu = bound.gpu
        self._tensors = {**bound.state(), **bound.others()}
        size = sum(aligned(tensor.size) for tensor in self._tensors.values())
        with ExitStack() as undo:
            self._device = [undo.enter_context(self._gpu.cuda.memory(size)) for _ in range(2)]
            self._host = [undo.enter_context(self._gpu.cuda.pinned(size)) for _ in range(2)]
            self._taken = [undo.enter_context(self._gpu.cuda.event()) for _ in range(2)]
            self._arrived = [undo.enter_context(self._gpu.cuda.event()) for _ in range(2)]
            self._owners = undo.pop_all()

    def take(self, step: int) -> None:
        """Queue a copy of the tensors as they are after all that is queued.

        Step `step - 2` must have been read. A step that is computed again is taken again: only its last copy is read.
        """
        turn, offset = step % 2, 0
        memory = self._device[turn]
        for tensor in self._tensors.values():
            self._gpu.work.copy(memory.address + offset, tensor.address, tensor.size)
            offset += aligned(tensor.size)
        self._gpu.work.record(self._taken[turn])
        self._gpu.copies.wait(self._taken[turn])
        self._gpu.copies.copy(self._host[turn].address, memory.address, memory.size)
        self._gpu.copies.record(self._arrived[turn])

    def read(self, step: int) -> dict[str, Array]:
        """The state and the other outputs after a step. The host waits for that step alone, not for later ones."""
        self._arrived[step % 2].synchronize()
        block, offset, arrays = self._host[step % 2].array, 0, {}
        for name, tensor in self._tensors.items():
            arrays[name] = block[offset : offset + tensor.size].view(tensor.dtype).reshape(tensor.shape).copy()
            offset += aligned(tensor.size)
        return arrays

    def close(self) -> None:
        """See `Owner.close`."""
        self._gpu.copies.synchronize()
        self._owners.close()


class StepTimer(Owner):
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
