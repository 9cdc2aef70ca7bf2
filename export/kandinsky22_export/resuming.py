"""What a calibration has found so far, kept over a stop: in a folder beside the destination until the bundle is whole.

`NAME.calibration` holds `calibration.json`, which says what the parts are for, and the parts, each in a file of its
own. A file's name has the SHA-256 of what the parts are for and of its content, so that a part of another export, or
one that is damaged, is never used: it is made anew. Whatever else is in such a folder is not ours: the export is
refused then, and nothing of it is deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import re
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from kandinsky22 import schema
from kandinsky22.arrays import Array
from kandinsky22.errors import ExportError, KandinskyError
from kandinsky22.files import is_temporary, kind_of, locked_folder, read_file, write_file
from kandinsky22.schema import SchemaError, mismatch

log = logging.getLogger(__name__)

T = TypeVar("T")

SUFFIX = ".calibration"
"""Of the folder's name, which begins with that of the bundle."""
RECORD = "calibration.json"
FORMAT_VERSION = 2
"""Of the record and of the parts; to be raised when what is calibrated is computed in another way."""
MOST_BYTES = 1 << 30
"""Size of a part. What a prompt's pictures are recorded in has about 20 MB at the published size."""

_PART = re.compile(r"\w+-[0-9a-f]{64}\.(npz|json)", re.ASCII)


@dataclass(frozen=True)
class Record:
    """What the parts in a folder are for: SHA-256 of each thing that they depend on, by what it is."""

    format_version: int
    key: dict[str, str]


@dataclass(frozen=True)
class Form(Generic[T]):
    """How a part is written to a file, and read from one, where `read` raises an exception if it is no such part."""

    suffix: str
    write: Callable[[T], bytes]
    read: Callable[[bytes], T]


def _pack(arrays: dict[str, Array]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _unpack(data: bytes) -> dict[str, Array]:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")  # and might be far larger than the file
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


ARRAYS = Form("npz", _pack, _unpack)
"""Arrays by name."""


def numbers_of(names: Collection[str]) -> Form[dict[str, float]]:
    """The form of a part with a number for each of these names."""

    def read(data: bytes) -> dict[str, float]:
        found = schema.read(dict[str, float], schema.parse(data))
        if found.keys() != set(names):
            raise mismatch("", found, "an object with a number for each layer")
        return found

    return Form("json", lambda numbers: json.dumps(numbers).encode(), read)


class Saved:
    """The parts of one export's calibration. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held = contextlib.ExitStack()
        self._mine = False
        self._digest = b""

    def require_own(self) -> None:
        """Raise ExportError where the folder is there and not ours to go on in."""
        if self._folder is None:
            return
        with _one_sentence(self._folder):
            if kind_of(self._folder):
                _require_own(self._folder)
                self._lock(self._folder)

    def begin(self, key: Mapping[str, object]) -> None:
        """Take the folder for what depends on `key`, values of JSON by what they are; parts of another are removed.

        Raises ExportError where the folder is not ours, or cannot be written.
        """
        if self._folder is None:
            return
        digests = {name: _sha256(json.dumps(value, sort_keys=True).encode()) for name, value in key.items()}
        record = Record(FORMAT_VERSION, digests)
        data = json.dumps(dataclasses.asdict(record), indent=2).encode()
        self._digest = hashlib.sha256(data).digest()
        with _one_sentence(self._folder):
            if not kind_of(self._folder):
                self._folder.mkdir(mode=0o700)  # prompts and pictures are nobody else's
            _require_own(self._folder)
            self._lock(self._folder)
            if (before := _record(self._folder)) != record:
                if before is not None:
                    log.warning("%s is begun anew: it was for %s", self._folder, _difference(before, record))
                _clear(self._folder)
                write_file(self._folder / RECORD, data)

    def get(self, part: str, form: Form[T], make: Callable[[], T], found: Callable[[], None]) -> T:
        """The part with this name: as it was kept, of which `found` is told, or made now, and kept.

        Raises ExportError where it cannot be written.
        """
        if self._folder is None:
            return make()
        with _one_sentence(self._folder):
            kept = self._find(self._folder, part, form)
        if kept is not None:
            found()
            return kept
        made = make()
        data = form.write(made)
        if len(data) <= MOST_BYTES:
            with _one_sentence(self._folder):
                write_file(self._folder / f"{part}-{self._sha256(data)}.{form.suffix}", data)
        return made

    @property
    def note(self) -> str:
        """What to say of the folder where an export ends without a bundle; "" where nothing is kept."""
        with contextlib.suppress(OSError):
            if self._folder is not None and self._mine and any(map(_is_part, _entries(self._folder))):
                return f"{self._folder} keeps what was calibrated so far: the same command goes on from it."
        return ""

    def close(self) -> None:
        """Let others have the folder; one with no part is removed."""
        if self._mine and not self.note:
            self.remove()
        self._held.close()

    def remove(self) -> None:
        """Remove the folder, unless something came into it that is not ours."""
        if self._folder is None:
            return
        try:
            if not kind_of(self._folder):
                return
            if not _is_own(self._folder):
                log.warning("%s is no longer needed, and stays: something in it is not of a calibration", self._folder)
                return
            _clear(self._folder)
            self._folder.rmdir()
        except OSError as error:
            log.warning("%s is no longer needed, and cannot be removed: %s", self._folder, error)

    def _lock(self, folder: Path) -> None:
        """Keep other exports out of the folder, where folders can be locked."""
        self._held.close()  # of a folder that had the name before, perhaps
        alone = True
        with contextlib.suppress(OSError):
            alone = self._held.enter_context(locked_folder(folder))
        if not alone:
            self._held.close()
            raise ExportError(f"{folder} is another export's, which runs now; wait for it, or choose another -o.")
        self._mine = True

    def _find(self, folder: Path, part: str, form: Form[T]) -> T | None:
        """What is kept under a name; files that have the name and are damaged are removed."""
        pattern = re.compile(rf"{re.escape(part)}-([0-9a-f]{{64}})\.{form.suffix}")
        for path in _entries(folder):
            if (named := pattern.fullmatch(path.name)) is None:
                continue
            try:
                data = read_file(path, MOST_BYTES + 1)
                if self._sha256(data) == named[1]:
                    return form.read(data)
            except Exception as error:  # of many classes: of the disk, of zip files, of NumPy
                log.debug("%s: %s", path, error)
            log.warning("%s is damaged: it is made anew", path)
            path.unlink()
        return None

    def _sha256(self, data: bytes) -> str:
        """What a part's name says: it is bound to what the parts are for."""
        return _sha256(self._digest + data)


@contextlib.contextmanager
def resuming(destination: Path) -> Iterator[Saved]:
    """The parts that exports to `destination` keep, which are removed at the end of the block.

    Where the block is left early they stay, and a note of the error says so. Raises ExportError where the folder is not
    ours.
    """
    saved = Saved(destination.with_name(destination.name + SUFFIX))
    saved.require_own()
    try:
        yield saved
        with _also_after_ctrl_c(destination, saved):
            saved.remove()
    except (KandinskyError, MemoryError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and hasattr(error, "__notes__"):
            saved.remove()  # the bundle has its place: the note says so
        elif note := saved.note:
            error.add_note(note)
        raise
    finally:
        saved.close()


@contextlib.contextmanager
def _also_after_ctrl_c(destination: Path, saved: Saved) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:  # the command line hears no second
        saved.remove()
        stop.add_note(f"{destination} is written.")
        raise


@contextlib.contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Turn what the disk says into ExportError."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"{folder} cannot be written: {reason}.") from error


def _require_own(folder: Path) -> None:
    """Raise ExportError where something has the folder's name that is none, or there is something foreign in it."""
    if (kind := kind_of(folder)) != "a folder":
        raise ExportError(f"{folder} is {kind}, expected a folder of ours; move it away, or choose another -o.")
    if not _is_ours_alone(folder):
        raise ExportError(f"{folder} is not this user's alone to write to; move it away, or choose another -o.")
    if (foreign := _foreign(folder)) is not None:
        raise ExportError(f"{foreign} is not of a calibration; move {folder} away, or choose another -o.")


def _is_own(folder: Path) -> bool:
    return kind_of(folder) == "a folder" and _is_ours_alone(folder) and _foreign(folder) is None


def _is_ours_alone(folder: Path) -> bool:
    """Whether nobody but this user can have written to the folder, where the system knows users."""
    user = getattr(os, "geteuid", None)
    status = folder.lstat()
    return user is None or (status.st_uid == user() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _is_part(path: Path) -> bool:
    return _PART.fullmatch(path.name) is not None


def _foreign(folder: Path) -> Path | None:
    """The first thing in a folder that no export has written there; parts are ours beside a record alone."""
    entries = _entries(folder)
    ours = _record(folder) is not None
    for path in entries:
        known = is_temporary(path.name) or (ours and (path.name == RECORD or _is_part(path)))
        if not known or kind_of(path) != "a file":
            return path
    return None


def _record(folder: Path) -> Record | None:
    """The record in a folder; None where there is none, or it is none."""
    path = folder / RECORD
    try:
        return schema.read(Record, schema.parse(read_file(path, schema.MOST_BYTES + 1)))
    except (OSError, SchemaError):
        return None


def _difference(before: Record, now: Record) -> str:
    """What two records differ in, as a clause."""
    names = sorted(name for name in before.key.keys() | now.key if before.key.get(name) != now.key.get(name))
    return f"other {', '.join(names)}" if names else "another version"


def _clear(folder: Path) -> None:
    """Remove all files of a folder of ours. The record goes last: the rest can be removed another time then."""
    for path in sorted(_entries(folder), key=lambda path: path.name == RECORD):
        path.unlink()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
