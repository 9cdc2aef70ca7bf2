"""SHA-256 of files, and a record of the files that were compared before, so that not every start reads gigabytes.

A comparison is recorded in the user's cache folder, with what the file system says of the file. Writing to the file
changes that, so that it is compared again. A processor without instructions for SHA-256 takes 17 s for the published
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from kandinsky22 import files

SETTLED_SECONDS = 2.0
"""Age from which a file is recorded: of a younger one, a file system's clock may not tell two changes apart."""


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, expected: str, *, afresh: bool = False) -> bool:
    """Whether the SHA-256 of a file is the `expected` one, in hexadecimal.

    Args:
        path: The file.
        expected: What its SHA-256 should be.
        afresh: Read the file even when it was compared before and has not been written to since.

    Raises:
        OSError: The file cannot be read.
    """
    record, before = _record(path), _state(path, expected)
    if not afresh and record is not None and _remembered(record) == before:
        return True
    if sha256(path) != expected:
        return False
    settled = time.time() - path.stat().st_ctime > SETTLED_SECONDS
    if record is not None and settled and _state(path, expected) == before:
        _remember(record, before)
    return True


def _state(path: Path, expected: str) -> list[int | str]:
    """What tells a file from another or from itself after a write; its two times change with every write."""
    found = path.stat()
    return [expected, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _record(path: Path) -> Path | None:
    """The file that records the comparison of `path`; None when the user has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache / "kandinsky22" / "checked" / f"{name}.json"


def _remembered(record: Path) -> object:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return None  # no record, or a broken one


def _remember(record: Path, state: list[int | str]) -> None:
    """Write a record. Where that is impossible (a read-only home) the file is only compared again at the next start."""
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        files.write_file(record, json.dumps(state).encode())
