"""The pictures of a call while it runs: which of them are still asked for, and the rows of a loop that are theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import LoadedComponent, OnStep, Relay
from kandinsky22.bundle.manifest import TensorSpec
from kandinsky22.errors import Cancelled, InputError
from kandinsky22.noise import Generator

_T = TypeVar("_T")


class Pictures:
    """The pictures of a call that are still asked for. A picture is known by its place among all of the call.

    `generators` has the source of noise of each. What else is made for a picture is kept in dictionaries by place that
    `hold` knows of: what ends is forgotten at once.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._count = len(seeds)
        self._held: list[dict[int, Any]] = []
        self.generators = self.hold({place: Generator(seed) for place, seed in enumerate(seeds)})

    def hold(self, found: dict[int, _T]) -> dict[int, _T]:
        """The same dictionary by places; pictures that end are taken out of it from now on."""
        self._held.append(found)
        return found

    def staying(self, places: Iterable[int]) -> list[int]:
        """Those of some places whose pictures are still asked for, in the order given."""
        return [place for place in places if place in self.generators]

    def cancel(self, asked: Cancelled) -> None:
        """End the pictures that `asked` names; those that have ended before are passed over.

        Raises `asked` where it names none, or where no picture stays; InputError where a place is none of the call's.
        """
        if asked.pictures is None:
            raise asked
        for place in sorted(asked.pictures):
            if not 0 <= place < self._count:
                raise InputError(
                    f"Cancelled names the picture {place}; expected places of the call's pictures: "
                    f"0 to {self._count - 1}."
                ) from None
        for found in self._held:
            for place in asked.pictures:
                found.pop(place, None)
        if not self.generators:
            raise asked


class Rows:
    """What a step graph is fed for some pictures of a call, and the state that it has come to.

    An array has rows along the axis that the graph's inputs call `B`: one a picture, in the order of `places`, or
    several times as many where each picture has several, as in the prior with negative prompts: the first of each come
    first. The arrays are these rows' own: nobody else may hold them where memory is to be freed when pictures end.
    """

    def __init__(
        self,
        pictures: Pictures,
        places: Sequence[int],
        inputs: Sequence[TensorSpec],
        state: Mapping[str, Array],
        per_step: Mapping[str, list[Array]],
        constants: Mapping[str, Array],
    ) -> None:
        """`constants` have all of the graph's branches (`G`); a loop is fed the last of them, as many as it has."""
        self.places = list(places)
        self.state = dict(state)
        self._pictures, self._per_step, self._constants = pictures, dict(per_step), dict(constants)
        self._axes = {spec.name: spec.shape.index("B") for spec in inputs if "B" in spec.shape}
        self._branched = {spec.name for spec in inputs if "G" in spec.shape}
        self.copies = len(next(iter(self.state.values()))) // len(self.places)

    def constant(self, name: str) -> Array | None:
        """A constant by the name of its input, None where there is none."""
        return self._constants.get(name)

    def loop(
        self,
        component: LoadedComponent,
        steps: slice,
        guidance: Floats,
        on_step: OnStep | None,
        relay: Relay | None = None,
    ) -> None:
        """Run some of the steps with weights of the branches (G,). Pictures that a callback cancels are left out then.

        `on_step` is told the step as counted from the run's first, and beside the state as `pictures` the place of each
        row's picture: int64 (rows,). A `relay` has a leg for each of the run's steps.
        """
        step = steps.start
        while step < steps.stop and self.places:
            step = self._until_cancelled(component, slice(step, steps.stop), guidance, on_step, relay)

    def _until_cancelled(
        self,
        component: LoadedComponent,
        steps: slice,
        guidance: Floats,
        on_step: OnStep | None,
        relay: Relay | None,
    ) -> int:
        """Run steps to their end, or until pictures are cancelled; the step that comes next."""
        reached: dict[str, Array] = {}
        following: int = steps.stop
        of_rows = np.tile(np.array(self.places, np.int64), self.copies)

        def told(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
            nonlocal following
            if on_step is None:
                return None
            try:
                return on_step(steps.start + step, {**state, "pictures": of_rows})
            except Cancelled:
                reached.update({name: state[name] for name in self.state})
                following = steps.start + step + 1
                raise

        try:
            self.state = component.loop(
                self.state,
                {name: values[steps] for name, values in self._per_step.items()},
                {name: self._branches(name, array, guidance) for name, array in self._constants.items()}
                | {"guidance": guidance},
                None if on_step is None else told,
                relay and dataclasses.replace(relay, legs=relay.legs[steps]),
            )
        except Cancelled as asked:
            self._pictures.cancel(asked)
            asked.__traceback__ = None  # whoever keeps it would keep the frames of the loop, and so the state
            self.state = reached
            self._leave_out()
        return following

    def _branches(self, name: str, array: Array, guidance: Floats) -> Array:
        return array[-len(guidance) :] if name in self._branched else array

    def _leave_out(self) -> None:
        """Keep the rows of those pictures that stay, in arrays of their own."""
        stay = set(self._pictures.staying(self.places))
        count = len(self.places)
        rows = [copy * count + row for copy in range(self.copies) for row in range(count) if self.places[row] in stay]
        self.places = [place for place in self.places if place in stay]

        def kept(name: str, array: Array) -> Array:
            return np.take(array, rows, self._axes[name]) if name in self._axes else array

        self.state = {name: kept(name, array) for name, array in self.state.items()}
        self._constants = {name: kept(name, array) for name, array in self._constants.items()}
        for name, values in self._per_step.items():
            shared = {id(array): array for array in values}  # a backend sees by identity what steps share
            fewer = {key: kept(name, array) for key, array in shared.items()}
            self._per_step[name] = [fewer[id(array)] for array in values]
