"""Files of a checkpoint that are read here: bounded in size and depth, and one sentence where they cannot be read.

Links are followed: the Hub's cache is made of them, and what a name in a user's folder leads to is the user's. A name
that a file gives (in an index of shards) is another matter: `SHARD` has it stay in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from kandinsky22 import schema
from kandinsky22.errors import CheckpointError, first_line
from kandinsky22.files import read_regular

MOST_BYTES = 1 << 20
"""Size of a config. Those that were published have 3 thousand bytes at most."""

Shard = Annotated[str, schema.matching(r"[A-Za-z0-9_][\w.-]{0,200}\.safetensors", "the name of a file beside it")]
"""A file that an index names: in its own folder."""

T = TypeVar("T")

_LONGEST = 300


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file. Raises CheckpointError: not there, no regular file, or larger."""
    try:
        return read_regular(path, most_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"There is no {path}: a checkpoint in diffusers' layout has one.") from error
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror or error}.") from error


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    try:
        return checked(dict[str, Any], schema.parse(read_bytes(path, most_bytes), most_bytes=most_bytes), path)
    except schema.SchemaError as error:
        raise CheckpointError(f"{path} could not be read: {error}.") from error


def checked(kind: type[T], value: object, path: Path, place: str = "") -> T:
    """A value of the file `path` as `kind`, by `schema.read`. Raises CheckpointError, which names the file."""
    try:
        return schema.read(kind, value, place)
    except schema.SchemaError as error:
        raise CheckpointError(f"{path} does not fit: {error}.") from error


def picked(value: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Those keys of a JSON object that are known: configs carry what other versions of the libraries wrote."""
    return {key: each for key, each in value.items() if key in known}


def said(error: BaseException) -> str:
    """What a library's error says, as part of our sentence. It may repeat what a file holds, at any length."""
    text = first_line(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
