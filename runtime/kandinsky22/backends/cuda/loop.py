"""The loop that leaves everything on the device.

Between two steps the host only queues work: at most three small copies inside the device's memory (this step's
timestep, row and noise, from tables that were uploaded before the loop into the addresses that the step reads), and the
step. It waits for nothing, so it runs ahead of the device, and the device never idles. Copies were chosen over the
alternatives because they need no second graph and nothing that changes between launches: one graph of all steps would
hold the network once a step, and two graphs that write into each other's inputs would need two contexts.

Where several graphs take turns, the state is copied between their inputs (`kandinsky22.backends.cuda.relay`), too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import Leg, OnStep, PerStep
from kandinsky22.backends.cuda.bound import BoundGraph, Tensor
from kandinsky22.backends.cuda.gpu import Gpu
from kandinsky22.backends.cuda.relay import SharedState
from kandinsky22.backends.cuda.runtime import Event, Owner, aligned, close_all
from kandinsky22.backends.loop import replacement


class DeviceLoop:
    """One run of step graphs through all rows: `legs` say which graph takes each step."""

    def __init__(self, bounds: Sequence[BoundGraph], per_step: PerStep, legs: Sequence[Leg]) -> None:
        self._bounds, self._legs = bounds, legs
        self._gpu = bounds[0].gpu
        self._per_step = per_step
        self.step_seconds: tuple[float, ...] = ()

    def run(
        self, state: Mapping[str, Array], constants: Mapping[str, Array], on_step: OnStep | None
    ) -> dict[str, Array]:
        """From the first state and the constants to the last state; `step_seconds` are those of this run."""
        self._state = SharedState(self._bounds, state)
        with ExitStack() as stack:
            # However the loop ends, the device must have finished before its memory is freed.
            self._tables = [stack.enter_context(self._tables_of(graph)) for graph in range(len(self._bounds))]
            self._marks = stack.enter_context(StepTimer(self._gpu))
            snapshots = stack.enter_context(Snapshots(self._gpu, self._seen_after())) if on_step else None
            stack.callback(self._gpu.work.synchronize)
            self._state.upload({**constants, **state})
            self._marks.add()
            if on_step is not None and snapshots is not None:
                self._run_and_report(snapshots, on_step)
            else:
                for step in range(len(self._legs)):
                    self._launch(step)
            result = self._bounds[0].download(self._state.tensors(self._legs[-1].graph))
            self.step_seconds = self._marks.seconds()
            return result

    def _tables_of(self, graph: int) -> Tables:
        """What a graph is fed in the steps that it takes."""
        own = [step for step, leg in enumerate(self._legs) if leg.graph == graph]
        bound = self._bounds[graph]
        return Tables(bound, {name: rows for name, rows in self._per_step.items() if name in bound.inputs}, own)

    def _seen_after(self) -> list[dict[str, Tensor]]:
        """What a callback sees after each step: the state, and what else the step's graph gives."""
        seen = [{**self._state.tensors(graph), **bound.others()} for graph, bound in enumerate(self._bounds)]
        return [seen[leg.graph] for leg in self._legs]

    def _launch(self, step: int) -> None:
        leg = self._legs[step]
        if step:
            self._state.pass_on(self._legs[step - 1].graph, leg.graph)
        self._tables[leg.graph].feed(step)
        self._bounds[leg.graph].step()
        self._state.keep(leg)
        self._marks.add()

    def _run_and_report(self, snapshots: Snapshots, on_step: OnStep) -> None:
        """Report each step while the next one runs."""
        last = len(self._legs) - 1

        def launch(step: int) -> None:
            self._launch(step)
            snapshots.take(step)

        def report(step: int) -> None:
            seen = snapshots.read(step)
            state = {name: seen[name] for name in self._state.tensors(self._legs[step].graph)}
            replaced = replacement(on_step(step, seen), state)
            if replaced:
                self._state.upload({**state, **replaced})
                if step < last:
                    launch(step + 1)  # what ran meanwhile began from the state that is replaced

        for step in range(last + 1):
            launch(step)
            if step:
                report(step - 1)
        report(last)


class Tables(Owner):
    """What a graph is fed in its steps, all of it on the device; an array that several steps share is there once."""

    def __init__(self, bound: BoundGraph, per_step: PerStep, steps: Sequence[int]) -> None:
        self._bound = bound
        self._places: dict[str, dict[int, int]] = {}
        self._fed: dict[str, int] = {}
        arrays: dict[str, list[Array]] = {}
        for name, rows in per_step.items():
            values = [rows[step] for step in steps]  # held until all are compared: an array is found by its identity
            shared = {id(array): array for array in values}
            slots = {key: slot for slot, key in enumerate(shared)}
            self._places[name] = {step: slots[id(array)] for step, array in zip(steps, values, strict=True)}
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

    def __init__(self, gpu: Gpu, tensors: Sequence[Mapping[str, Tensor]]) -> None:
        """`tensors` are what is copied after each step."""
        self._gpu = gpu
        self._tensors = tensors
        size = max(sum(aligned(tensor.size) for tensor in each.values()) for each in tensors)
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
        for tensor in self._tensors[step].values():
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
        for name, tensor in self._tensors[step].items():
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
