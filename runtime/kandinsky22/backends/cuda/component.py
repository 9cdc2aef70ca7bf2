"""A component on the GPU: bound to the shapes that it is used with, and looped there. Base of the backends' own."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep, Relay, closed
from kandinsky22.backends.cuda.bound import BoundGraph
from kandinsky22.backends.cuda.gpu import SharedGpu
from kandinsky22.backends.cuda.loop import DeviceLoop
from kandinsky22.backends.loop import legs_of
from kandinsky22.bundle.manifest import Component
from kandinsky22.errors import BackendError

log = logging.getLogger(__name__)

SHAPES_KEPT = 4
"""How many sets of input shapes a component stays bound to, each with its buffers and its captured graph."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs by name."""


class DeviceComponent:
    """A component on the device: bound to the shapes it was used with last, and looped there. Base of the backends'.

    Threads may share it: one uses it at a time, and has the GPU to itself but for its step callbacks. What a run is
    bound to depends on the shapes of its inputs alone, never on what ran before.
    """

    component: Component
    """What the manifest says of it."""

    def __init__(self, name: str, shared_gpu: SharedGpu) -> None:
        self.name = name
        self.gpu = shared_gpu.lend()
        self._give_back: Callable[[], None] | None = shared_gpu.give_back
        self._bounds: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], BoundGraph] = OrderedDict()
        self._looping = False
        self._user = threading.RLock()
        self._of_thread = threading.local()

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Seconds on the device of each step of the last loop that this thread ran, by CUDA's events."""
        seconds: tuple[float, ...] = getattr(self._of_thread, "step_seconds", ())
        return seconds

    def select(self, shapes: Shapes) -> None:
        """Get ready for inputs of these shapes: what is chosen for them may depend on nothing else."""

    def bind(self, shapes: Shapes) -> BoundGraph:
        """Bind to input shapes. Raises BackendError where the graph does not take them."""
        raise NotImplementedError

    def bound(self, shapes: Shapes) -> BoundGraph:
        """The graph bound to input shapes; the one that was used longest ago makes room for a new one."""
        key = tuple(sorted(shapes.items()))
        if key not in self._bounds:
            while len(self._bounds) >= SHAPES_KEPT:
                self._bounds.popitem(last=False)[1].close()
            self._bounds[key] = self.bind(shapes)
            log.debug("%s is bound to %s", self.name, dict(key))
        self._bounds.move_to_end(key)
        return self._bounds[key]

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
        relay: Relay | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`.

        `on_step` runs while the device computes the step after the one that it is told of. Where it replaces the state,
        that step is computed again; where it raises, the loop ends when the device has finished it.

        The state comes from the host and goes back there after the last step. Where the graphs of a `relay` alternate
        it stays on the device: all work in the stream `gpu.work`, in order.
        """
        shapes = shapes_of({**constants, **state, **{name: rows[0] for name, rows in per_step.items()}})
        with ExitStack() as stack:
            looped = (self, *_on_device(relay))
            # All components first, in one order, and then the GPU: a thread that has one of them waits for the GPU.
            for each in sorted(looped, key=id):
                stack.enter_context(each._user)
            for each in looped:
                stack.enter_context(each.looping())
            bounds = [each.bound_for(shapes if relay is None else each.own(shapes)) for each in looped]
            loop = DeviceLoop(bounds, per_step, legs_of(per_step, relay))
            result = loop.run(state, constants, on_step and self._unhindering(on_step))
            self._of_thread.step_seconds = loop.step_seconds
            return result

    def own(self, shapes: Shapes) -> Shapes:
        """Those of some shapes that are of the component's inputs."""
        return {spec.name: shapes[spec.name] for spec in self.component.inputs}

    def bound_for(self, shapes: Shapes) -> BoundGraph:
        """The graph that is selected for input shapes and bound to them."""
        self.select(shapes)
        return self.bound(shapes)

    @contextmanager
    def looping(self) -> Iterator[None]:
        """The component is in a loop of this thread for as long as the block lasts. Raises as `in_use`."""
        with self.in_use():
            self._looping = True
            try:
                yield
            finally:
                self._looping = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The component is this thread's, and the GPU too, for as long as the block lasts.

        Raises BackendError in a step callback of the component's own loop, and after `close`.
        """
        with self._user, self.gpu.turn:
            if self._looping:  # in this thread: another one waits for the loop to end
                raise BackendError(
                    f"{self.name} is in a loop: its step callback cannot run it; open a second Pipeline."
                )
            if self._give_back is None:
                raise closed(self.name)
            yield

    def _unhindering(self, on_step: OnStep) -> OnStep:
        """`on_step` while other threads may use the GPU: it may wait for one of them, by calling its pipeline."""

        def call(step: int, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
            with self.gpu.turn.given_away():
                return on_step(step, arrays)

        return call

    def close(self) -> None:
        """See `LoadedComponent.close`. Waits for what other threads run; may be called twice."""
        with self._user, self.gpu.turn:
            if self._looping:
                raise BackendError(f"{self.name} is in a loop: its step callback cannot close it; raise Cancelled.")
            if self._give_back is None:
                return
            self.unbind()
            self.release()
            self._give_back()
            self._give_back = None
            log.debug("%s is freed", self.name)

    def release(self) -> None:
        """Free what a subclass holds beside what it is bound to, such as weights."""

    def unbind(self) -> None:
        """Free the buffers and graphs of all shapes."""
        while self._bounds:
            self._bounds.popitem()[1].close()


def _on_device(relay: Relay | None) -> list[DeviceComponent]:
    """The other components of a relay. Raises TypeError where one is of another backend."""
    others = () if relay is None else relay.others
    found: list[DeviceComponent] = [each for each in others if isinstance(each, DeviceComponent)]
    if len(found) != len(others):
        raise TypeError("A loop on the device is over components of the device; expected all of one backend.")
    return found


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays by name."""
    return {name: tuple(np.shape(array)) for name, array in arrays.items()}
