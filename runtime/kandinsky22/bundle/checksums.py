"""SHA-256 of files, and which files were compared with theirs before, so that not every start reads gigabytes.

A comparison is remembered in the user's cache folder, with what the file system says of the file: who writes to it
changes that, so that it is compared again. Without instructions for SHA-256 a processor takes 17 s for the published
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

SETTLED_SECONDS = 2.0
"""A file that was changed later than that is not remembered: the clock of a file system may not tell changes apart."""


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, expected: str, *, afresh: bool = False) -> bool:
    """Whether the SHA-256 of a file is the `expected` one, in hexadecimal.

    Args:
        path: The file.
        expected: What its SHA-256 should be.
        afresh: Read the file even where it was compared before and was not written to since.

    Raises OSError where the file cannot be read.
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
    """What changes when a file is written to, replaced or expected to be another; the last two with each write."""
    found = path.stat()
    return [expected, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _record(path: Path) -> Path | None:
    """Where the comparison of a file is remembered; None where there is no home to keep it in."""
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
        return None  # none, or a broken one: the file is compared


def _remember(record: Path, state: list[int | str]) -> None:
    """Write beside and rename. Where nothing can be written the file is compared at the next start too."""
    partial = record.with_suffix(f".{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(state))
        os.replace(partial, record)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
