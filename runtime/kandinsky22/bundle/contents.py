"""What in a bundle's folder is ours: files that its manifest names, and plans that their records name.

Whoever replaces or clears away asks here first. Links are not followed, and nothing here is written or removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kandinsky22 import schema
from kandinsky22.bundle.bundle import MANIFEST
from kandinsky22.bundle.manifest import FileName
from kandinsky22.files import is_temporary, kind_of, read_file
from kandinsky22.schema import MOST_BYTES, SchemaError

PLANS = "tensorrt"
"""Folder of the bundle that has a folder of plans for each GPU, version and profile."""
LOCK = ".lock"
"""File in PLANS that a running build holds."""
TIMING_CACHE = "timing.cache"
"""File in a folder of plans: what TensorRT measured."""

_PLAN = re.compile(r"(\w+)-[0-9a-f]{16}\.plan", re.ASCII)


def leftovers(folder: Path) -> list[Path]:
    """What stopped builds left in a folder of plans: files under temporary names, and plans that no record names.

    A plan stays where a file has the name of its record and is none: it may be one of another version.
    """
    named = {path.stem: _named_plan(path) for path in folder.glob("*.json")}
    found = []
    for path in sorted(folder.iterdir()):
        plan = _PLAN.fullmatch(path.name)
        unnamed = plan is not None and named.get(plan[1], "") is not None and path.name not in named.values()
        if kind_of(path) == "a file" and (unnamed or is_temporary(path.name)):
            found.append(path)
    return found


def owned_files(folder: Path) -> tuple[set[Path], Path | None]:
    """The files in the bundle `folder` that are the bundle's, and the first thing there that is not; None without one.

    Folders are nobody's. Raises ValueError, with a clause, where the folder has no manifest of a bundle, of whatever
    format version.
    """
    names = {MANIFEST, *manifest_files(folder)}
    within = folder / PLANS
    plans = {path: _plan_files(path) for path in _entries(within) if kind_of(path) == "a folder"}
    owned, foreign = set[Path](), None
    for path in walk(folder):
        ours = path.relative_to(folder).as_posix() in names or path == within / LOCK
        if kind_of(path) == "a file" and (ours or path in plans.get(path.parent, ())):
            owned.add(path)
        elif foreign is None:
            foreign = path
    return owned, foreign


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is none, or a link."""
    return sorted(folder.iterdir()) if kind_of(folder) == "a folder" else []


def walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder but folders, in order, without following links. Raises OSError where it cannot be read."""
    for path in _entries(folder):
        if kind_of(path) == "a folder":
            yield from walk(path)
        else:
            yield path


def manifest_files(folder: Path) -> dict[str, Any]:
    """The names that the manifest of a bundle, of whatever format version, has for its files, and what it says of them.

    Raises ValueError, with a clause, where the folder has no such manifest.
    """
    if kind_of(folder) != "a folder" or kind_of(folder / MANIFEST) != "a file":
        raise ValueError(f"it has no {MANIFEST}")
    data = _read(folder / MANIFEST)
    version, files = (data.get(key) for key in ("format_version", "files"))
    if type(version) is not int or not isinstance(files, dict):
        raise ValueError(f"its {MANIFEST} names no format_version and no files")
    return schema.read(dict[FileName, Any], files, "files")


def _plan_files(folder: Path) -> set[Path]:
    """The files in a folder of plans that are ours: records, the plans that they name, leftovers, the timing cache."""
    found = {folder / TIMING_CACHE, *leftovers(folder)}
    for path in folder.glob("*.json"):
        plan = _named_plan(path)
        if plan is not None:
            found |= {path, folder / plan}
    return found


def _named_plan(path: Path) -> str | None:
    """The plan that a record names, of whatever format version; None where the file is no record."""
    if kind_of(path) != "a file":
        return None
    try:
        record = _read(path)
    except (OSError, ValueError):
        return None
    plan = record.get("plan")
    if record.get("component") != path.stem or type(record.get("format_version")) is not int:
        return None
    return plan if isinstance(plan, str) and re.fullmatch(r"[\w-]+\.plan", plan) else None


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError where there is none, OSError where it is no file."""
    data = schema.parse(read_file(path, MOST_BYTES + 1))
    if not isinstance(data, dict):
        raise SchemaError("it is no object")
    return data
