"""Comparisons that earlier processes made, so that not every start reads gigabytes.

A processor without instructions for SHA-256 takes 17 s for the published checkpoint. What was compared is recorded in
the user's cache folder, a file of JSON each, with what the file system says of the file: writing to it changes that. A
record is believed, and written, only where nobody but this user and root can have written to it, or to the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from pathlib import Path

from kandinsky22 import files, schema
from kandinsky22.errors import first_line

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 12
"""Size of a record that is read. One has 200 bytes."""

Comparison = tuple[str, int, int, int, int, int]
"""A SHA-256, and the state of the file that has it: see `checksums.State`."""


class _SharedError(Exception):
    """Why a file's comparison is neither believed nor kept: a clause."""


def has(path: Path, status: os.stat_result, comparison: Comparison) -> bool:
    """Whether an earlier process of this user made this comparison of the file `path`, which has this status."""
    try:
        _require_ours(path, status)
        record = _cache() / _name(path)
        if not files.kind_of(record):
            return False
        for each in (record.parent.parent, record.parent, record):
            _require(each, each.lstat())
        found = schema.parse(files.read_file(record, MOST_BYTES + 1), most_bytes=MOST_BYTES)
    except _SharedError as reason:
        log.info("%s is read, and not remembered as verified: %s", path, reason)
        return False
    except (OSError, schema.SchemaError) as error:
        log.info("%s is read: what is remembered of it cannot be (%s)", path, first_line(error))
        return False
    return bool(found == list(comparison))


def keep(path: Path, status: os.stat_result, comparison: Comparison) -> None:
    """Record a comparison. Where that is impossible (a read-only home) the file is read again at the next start."""
    try:
        _require_ours(path, status)
        record = _cache() / _name(path)
        record.parent.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (record.parent.parent, record.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
            _require(folder, folder.lstat())
        files.write_file(record, json.dumps(comparison).encode(), mode=0o600)
    except _SharedError as reason:
        log.debug("%s is not remembered as verified: %s", path, reason)
    except OSError as error:
        log.info("%s is not remembered as verified: %s", path, first_line(error))


def _require_ours(path: Path, status: os.stat_result) -> None:
    """Raise _SharedError where somebody else may write to a file, to its folder, or to the cache."""
    folder = path.resolve().parent
    _require(path, status)
    _require(folder, folder.stat())
    if (cache := _cache()).exists():
        _require(cache, cache.stat())


def _require(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _SharedError(f"{path} is a link")
    if not files.is_ours_alone(status):
        raise _SharedError(f"others than this user may write to {path} (chmod go-w mends it, where it is this user's)")


def _cache() -> Path:
    """The user's cache folder. Raises _SharedError where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise _SharedError("this user has no home folder") from None


def _name(path: Path) -> Path:
    """The place of a record in the cache folder."""
    return Path("kandinsky22", "checked", f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json")
