"""Measurements in a JSON file, from which a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from kandinsky22 import schema
from kandinsky22.checks import MAX_STEPS
from kandinsky22.errors import InputError
from kandinsky22.files import read_regular, write_file

OTHERWISE = "name another file, or remove it"
MOST_BYTES = 64 << 20
"""Size of a report that is read. The largest that is published has 60 thousand bytes."""

Count = Annotated[int, schema.between(1, 2**31)]
Steps = Annotated[int, schema.between(1, MAX_STEPS)]
Bytes = Annotated[int, schema.between(-(2**63), 2**63)]
"""Memory; below 0 where it is a difference, and others gave some back."""
Seconds = Annotated[float, schema.between(1e-9, 1e9)]
"""Of a run, by which may be divided."""
Measured = Annotated[float, schema.between(0, 1e18)]


class Measurements:
    """What was measured, in `data`, as JSON takes it: what it belongs to (a bundle, settings, a machine) and results.

    Without a path it is kept in memory alone.
    """

    def __init__(
        self,
        path: Path | None,
        belongs_to: Mapping[str, Any],
        empty: Mapping[str, Any],
        kind: type,
        same: Mapping[str, str],
    ) -> None:
        """Read the file where there is one; else begin with `belongs_to` and `empty`, which together are of `kind`.

        `kind` is a dataclass as `schema` reads it. `same` names the places, such as "machine.bundle", whose values in
        the file must be those of `belongs_to`, and says what measurements are with another value ("of another
        bundle"). Raises InputError where they differ, and for a file that is damaged or something else.
        """
        self.path = path
        self.data: dict[str, Any] = {**belongs_to, **empty}
        found = None if path is None else _read(path, kind)
        if found is None:
            return
        for place, words in same.items():
            difference = _difference(_at(found, place), _at(self.data, place), place.rpartition(".")[2])
            if difference is not None:
                raise InputError(f"{path} has measurements {words} ({difference}); {OTHERWISE}.")
        self.data = found

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            write_file(self.path, (json.dumps(self.data, indent=1) + "\n").encode())


def _read(path: Path, kind: type) -> dict[str, Any] | None:
    """The object in a file; None where there is none. Raises InputError where it is not of `kind`."""
    try:
        found: dict[str, Any] = schema.parse(read_regular(path, MOST_BYTES), most_bytes=MOST_BYTES)
        schema.read(kind, found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read as a report ({error.strerror}); {OTHERWISE}.") from error
    except schema.SchemaError as error:
        raise InputError(f"{path} is no report of this command, or damaged: {error}; {OTHERWISE}.") from error
    return found


def _at(data: Mapping[str, Any], place: str) -> Any:
    """The value at a place. Raises KeyError where the kind of the file did not ask for it."""
    value: Any = data
    for name in place.split("."):
        value = value[name]
    return value


def _difference(found: Any, wanted: Any, name: str) -> str | None:
    """The first difference of two values, in words; None where they are equal."""
    if found == wanted:
        return None
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in (*wanted, *found):
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), key)
    return f"{name} {_short(found)}, not {_short(wanted)}"


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 40 else words[:37] + "..."
