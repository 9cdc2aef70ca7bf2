"""`Request`: everything that a user asks for, checked one by one; it goes to JSON and back.

A request knows no bundle. `kandinsky22.request.resolve` makes a `Job` of a request and a bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from kandinsky22.errors import InputError, shown
from kandinsky22.request.encoding import decoded, encoded
from kandinsky22.request.parameters import PARAMETERS, Parameters, Task, task_of
from kandinsky22.request.presets import PRESETS, SET
from kandinsky22.schema import DEEPEST, is_deeper


@dataclass(frozen=True, eq=False)
class Request:
    """A task, and what was given for it: the parameters in their one form, by name. Make one with `Request.of`."""

    task: Task
    given: Mapping[str, Any]

    @classmethod
    def of(cls, task: str, /, **given: Any) -> Request:
        """A request for the task of that name.

        Raises InputError where there is no such task or parameter, the task does not use it, or its value cannot be;
        what only a bundle can tell (sizes, embeddings, schedules) is checked when the request is resolved.

        `preset` is not kept: the request has its values, so that it asks for the same when presets change.
        """
        its = task_of(task)
        known = its.parameters()
        for name in given:
            if name not in PARAMETERS:
                raise InputError(f"There is no parameter {shown(name)}; expected some of {', '.join(known)}.")
            if name not in known:
                raise InputError(f"{task} does not use {name}; leave it out.")
        checked = _without_preset(its, {name: PARAMETERS[name].kind.check(name, given[name]) for name in given})
        for name in checked:
            beside = PARAMETERS[name].beside
            means = checked[name] is not None and checked[name] is not False
            if beside and beside not in its.required and means and checked.get(beside) is None:
                raise InputError(f"{name} was given without {beside}; give both, or neither.")
        return cls(its, MappingProxyType(checked))

    @property
    def parameters(self) -> Parameters:
        """Every parameter that the task takes: what was given, and defaults for the rest."""
        complete = {name: self.given.get(name, self.task.default(name)) for name in self.task.parameters()}
        return cast(Parameters, complete)

    def data(self) -> Parameters:
        """As `parameters`, without callbacks."""
        found = {name: value for name, value in self.parameters.items() if PARAMETERS[name].stored}
        return cast(Parameters, found)

    def with_(self, **given: Any) -> Request:
        """The same request with other values for some parameters. A preset takes the place of what it sets."""
        replaced = SET if given.get("preset") is not None else ()
        kept = {name: value for name, value in self.given.items() if name not in replaced}
        return Request.of(self.task.name, **{**kept, **given})

    def to_json(self) -> dict[str, Any]:
        """What was given, as JSON can hold it: {"task": …, parameter: value}, without callbacks.

        Paths are strings, PIL pictures {"png": base64}, arrays {"npy": base64}, a pair of embeddings a dictionary of
        two of them.
        """
        return {"task": self.task.name, **as_json(self.given)}

    @classmethod
    def from_json(cls, data: Any) -> Request:
        """The request that `to_json` wrote. Raises InputError where it is something else."""
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            raise InputError(f"The request is {shown(data)}; expected an object with a task and parameters.")
        if is_deeper(data):
            raise InputError(
                f"The request nests more than {DEEPEST} deep; expected values of parameters, which do not."
            )
        # What `of` refuses by its name is not decoded: it may be anything, and large.
        values = {name: value for name, value in data.items() if name != "task"}
        given = {name: decoded(name, value) if name in PARAMETERS else value for name, value in values.items()}
        unstored = [name for name in given if name in PARAMETERS and not PARAMETERS[name].stored]
        if unstored:
            raise InputError(f"{unstored[0]} cannot be given as JSON; leave it out.")
        return cls.of(data.get("task", ""), **given)


def _without_preset(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """Checked parameters with a preset's values in the place of its name: those that the task takes and nobody gave.

    Those of the prior are left out where embeddings are given, which need none.
    """
    found = {name: value for name, value in given.items() if name != "preset"}
    needs_prior = found.get("image_embeds") is None
    for name, value in PRESETS.get(given.get("preset") or "", {}).items():
        parameter = task.parameters().get(name)
        if parameter is not None and name not in found and (needs_prior or parameter.part != "prior"):
            found[name] = parameter.kind.check(name, value)
    return found


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of parameters as JSON can hold them, without callbacks."""
    found = {}
    for name, value in values.items():
        if PARAMETERS[name].stored:
            encode = PARAMETERS[name].kind.encode or encoded
            found[name] = encode(value)
    return found
