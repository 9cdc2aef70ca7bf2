"""`Request`: everything that a user asks for, checked one by one; it goes to JSON and back.

A request knows no bundle. `kandinsky22.request.resolve` makes a `Job` of a request and a bundle's manifest.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from kandinsky22 import checks
from kandinsky22.errors import InputError
from kandinsky22.request.parameters import PARAMETERS, Parameters, Task, task_of

MOST_BYTES = 1 << 30
"""Bytes of a picture or an array in JSON: more is refused before it is decoded."""


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
        """
        its = task_of(task)
        known = its.parameters()
        for name in given:
            if name not in PARAMETERS:
                raise InputError(f"There is no parameter {checks.short(name)}; expected some of {', '.join(known)}.")
            if name not in known:
                raise InputError(f"{task} does not use {name}; leave it out. It takes {', '.join(known)}.")
        return cls(its, MappingProxyType({name: PARAMETERS[name].kind.check(name, given[name]) for name in given}))

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
        """The same request with other values for some parameters."""
        return Request.of(self.task.name, **{**self.given, **given})

    def to_json(self) -> dict[str, Any]:
        """What was given, as JSON can hold it: {"task": …, parameter: value}, without callbacks.

        Paths are strings, PIL pictures {"png": base64}, arrays {"npy": base64}, a pair of embeddings a dictionary of
        two of them.
        """
        stored = {name: value for name, value in self.given.items() if PARAMETERS[name].stored}
        return {"task": self.task.name, **{name: encoded(value) for name, value in stored.items()}}

    @classmethod
    def from_json(cls, data: Any) -> Request:
        """The request that `to_json` wrote. Raises InputError where it is something else."""
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            raise InputError(f"The request is {checks.short(data)}; expected an object with a task and parameters.")
        given = {name: _decoded(name, value) for name, value in data.items() if name != "task"}
        unstored = [name for name in given if name in PARAMETERS and not PARAMETERS[name].stored]
        if unstored:
            raise InputError(f"{unstored[0]} cannot be given as JSON; leave it out.")
        return cls.of(data.get("task", ""), **given)


def encoded(value: Any) -> Any:
    """A parameter's value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {name: encoded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return _encoded_binary(value)


def _encoded_binary(value: Any) -> Any:
    """A picture, an array, or a pair of embeddings."""
    import numpy as np
    import PIL.Image

    from kandinsky22.arrays import Embeddings

    if isinstance(value, Embeddings):
        return {name: _encoded_binary(getattr(value, name)) for name in ("image_embeds", "negative_image_embeds")}
    stream = io.BytesIO()
    if isinstance(value, PIL.Image.Image):
        value.save(stream, "png")
        return {"png": base64.b64encode(stream.getvalue()).decode()}
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise InputError(f"A value of type {type(value).__name__} cannot be stored; expected a picture or an array.")
    np.save(stream, array, allow_pickle=False)
    return {"npy": base64.b64encode(stream.getvalue()).decode()}


def _decoded(name: str, value: Any) -> Any:
    """What `encoded` made, except that paths stay strings."""
    if isinstance(value, list):
        return [_decoded(name, each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"png"} or set(value) == {"npy"}:
        return _decoded_binary(name, *value.popitem()) if len(value) == 1 else value
    if set(value) == {"image_embeds", "negative_image_embeds"}:
        from kandinsky22.arrays import Embeddings

        return Embeddings(**{key: _decoded(name, each) for key, each in value.items()})
    return {key: _decoded(name, each) for key, each in value.items()}


def _decoded_binary(name: str, form: str, text: Any) -> Any:
    """A picture or an array from base64."""
    import numpy as np
    import PIL.Image

    if not isinstance(text, str) or len(text) > MOST_BYTES:
        raise InputError(f"{name} has {form} that is no base64 of at most {MOST_BYTES >> 20} MiB.")
    try:
        stream = io.BytesIO(base64.b64decode(text, validate=True))
        if form == "npy":
            return np.load(stream, allow_pickle=False)
        picture = PIL.Image.open(stream, formats=["PNG"])
        picture.load()
    except (binascii.Error, ValueError, OSError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"{name} has {form} that cannot be read; expected base64 of a file of that kind.") from error
    return picture
