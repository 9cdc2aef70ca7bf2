"""The one state of a loop over several bound graphs, each of which reads it from inputs of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kandinsky22.arrays import Array
from kandinsky22.backends import Leg
from kandinsky22.backends.cuda.bound import BoundGraph, Tensor


class SharedState:
    """Where the state of a loop lies, and how it comes from the graph of one step to that of the next.

    All copies are within the device's memory, and are queued: nobody waits. What is the state of both graphs is copied
    where another graph takes the next step. What is kept of a step, `Leg.keeps`, is copied after it to every graph
    that reads it; to queue the same step again copies the same again.
    """

    def __init__(self, bounds: Sequence[BoundGraph], names: Iterable[str]) -> None:
        """`names` are those of the state: what no graph feeds back is kept for the graphs that read it."""
        self._bounds = bounds
        self._names = tuple(names)

    def tensors(self, graph: int) -> dict[str, Tensor]:
        """The whole state by name, as it is after a step of a graph."""
        bound = self._bounds[graph]
        return {
            name: (bound if name in bound.feedback else self._readers(name)[0]).inputs[name] for name in self._names
        }

    def upload(self, arrays: Mapping[str, Array]) -> None:
        """Queue copies of arrays into the inputs of all graphs that have them."""
        for bound in self._bounds:
            bound.upload({name: array for name, array in arrays.items() if name in bound.inputs})

    def pass_on(self, giver: int, taker: int) -> None:
        """Queue the copies by which a step of `taker` begins from what one of `giver` left."""
        source, target = self._bounds[giver], self._bounds[taker]
        for name in source.feedback if giver != taker else ():
            source.copy(source.inputs[name], target.inputs[name])

    def keep(self, leg: Leg) -> None:
        """Queue the copies of what is kept of a step that was queued last."""
        bound = self._bounds[leg.graph]
        for name, output in leg.keeps.items():
            for reader in self._readers(name):
                bound.copy(bound.outputs[output], reader.inputs[name])

    def _readers(self, name: str) -> list[BoundGraph]:
        return [bound for bound in self._bounds if name in bound.inputs]
