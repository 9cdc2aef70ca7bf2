"""A component on the GPU: bound to the shapes that it is used with, and looped there. Base of the backends' own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep
from kandinsky22.backends.cuda.bound import BoundGraph
from kandinsky22.backends.cuda.gpu import SharedGpu
from kandinsky22.backends.cuda.loop import DeviceLoop
from kandinsky22.errors import BackendError

SHAPES_KEPT = 4
"""How many sets of input shapes a component stays bound to, each with its buffers and its captured graph."""


class DeviceComponent:
    """A component on the device: bound to the shapes it was used with last, and looped there. Base of the backends'."""

    def __init__(self, name: str, shared_gpu: SharedGpu) -> None:
        self.name = name
        self.gpu = shared_gpu.lend()
        self._give_back: Callable[[], None] | None = shared_gpu.give_back
        self.step_seconds: tuple[float, ...] = ()
        """Seconds on the device of each step of the last loop, by CUDA's events."""
        self._bounds: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], BoundGraph] = OrderedDict()
        self._looping = False

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> BoundGraph:
        """Bind to input shapes. Raises BackendError where the graph does not take them."""
        raise NotImplementedError

    def bound(self, feeds: Mapping[str, Array]) -> BoundGraph:
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
