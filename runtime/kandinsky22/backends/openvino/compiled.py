"""A graph compiled for its shapes, and the few of them that a component keeps."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kandinsky22 import machine
from kandinsky22.arrays import Array
from kandinsky22.backends.openvino.float32 import Part

log = logging.getLogger(__name__)

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a run's inputs, in the order of the names."""

MOST = 16
"""Shapes that a component keeps at most: beside weights, kernels that were made for them take a few MB each."""

SMALL = 512 << 20
"""Bytes of packed weights that a component may keep on any machine."""

SHARE = 0.25
"""What a component may keep of the memory that a machine has to spare, where that is more."""


class CompiledGraph:
    """The parts of a graph, each with its request, run one after the other."""

    def __init__(self, parts: Sequence[Part], compile_part: Callable[[Part], Any], given: Mapping[str, Any]) -> None:
        """`given` are constants that a graph takes as inputs; they own the memory that its request reads."""
        self._given = given
        self._parts = [(part, compile_part(part)) for part in parts]
        self._requests = [compiled.create_infer_request() for _, compiled in self._parts]
        for name, constant in given.items():
            self._requests[0].set_tensor(name, constant.tensor_view)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of all parts by name, in memory of their own. Raises RuntimeError as OpenVINO does."""
        values = dict(feeds)
        for (part, _), request in zip(self._parts, self._requests, strict=True):
            # Outputs are copied: the request writes the next run's results into the same memory.
            inputs = {name: values[name] for name in part.inputs}
            results = request.infer(inputs, share_inputs=True, share_outputs=False)
            values.update((name, results[index]) for index, name in enumerate(part.outputs))
        return values

    def rest(self) -> None:
        """Give back the memory of intermediate results until it runs again."""
        for _, compiled in self._parts:
            compiled.release_memory()


class Kept:
    """Compiled graphs by the shapes of their inputs; where there is no room for one more, that used longest ago goes.

    One of them at a time holds memory for intermediate results. What is dropped and compiled anew computes the same.
    """

    def __init__(self, name: str, weights: int, most: int = MOST) -> None:
        """Keep `most` graphs of the component `name`, which packs its weights into `weights` bytes for each."""
        self._name, self._weights, self._most = name, weights, most
        self._graphs: OrderedDict[Shapes, CompiledGraph] = OrderedDict()

    def get(self, shapes: Shapes, make: Callable[[], CompiledGraph]) -> CompiledGraph:
        """The graph compiled for these shapes, which `make` makes where it is not kept."""
        last = next(reversed(self._graphs), None)
        if last == shapes:
            return self._graphs[shapes]
        if last is not None:
            self._graphs[last].rest()
        if shapes in self._graphs:
            self._graphs.move_to_end(shapes)
        else:
            self._make_room()
            self._graphs[shapes] = make()
        return self._graphs[shapes]

    def clear(self) -> None:
        """Drop all of them."""
        self._graphs.clear()

    def _make_room(self) -> None:
        """Drop what one more has no room beside: before it is made, so that two do not stand where there is one's."""
        spare = machine.available_memory() or 0
        most = min(self._most, int(max(SMALL, SHARE * spare)) // max(self._weights, 1))
        while self._graphs and len(self._graphs) >= most:
            shapes, _ = self._graphs.popitem(last=False)
            log.debug("%s for %s dropped, %d kept", self._name, described(shapes), len(self._graphs))


def described(shapes: Shapes) -> str:
    """Shapes for a reader: name and sizes of each input."""
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'number'}" for name, shape in shapes)
