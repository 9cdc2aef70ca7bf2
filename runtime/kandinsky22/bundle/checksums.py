"""SHA-256 of files, and whether a file is still the one whose SHA-256 was compared."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import weakref
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from kandinsky22 import files
from kandinsky22.bundle import remembered

SETTLED_SECONDS = 2.0
"""Age from which a change shows: of a younger file, a file system's clock may not tell two changes apart."""


class AlteredError(ValueError):
    """A file is not what it should be. The message is a clause, to follow the file's path."""


class State(NamedTuple):
    """What the file system says of a file. Writing to it moves both times (nanoseconds), of which a program can put
    back only the first; a new link to it, or other rights, move the second alone.
    """

    device: int
    inode: int
    bytes: int
    written: int
    changed: int


class Verified(NamedTuple):
    """The state in which a file had the right SHA-256. Where it is not `settled`, a later write may not show in it."""

    state: State
    settled: bool


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks. Raises OSError where it is no file, or cannot be read."""
    with files.open_regular(path, sys.maxsize) as file:
        return _digest(file)


def state(path: Path) -> State:
    """The state of a file; links are followed. Raises OSError where there is none."""
    return _state(path.stat())


def compare(path: Path, expected: str, *, afresh: bool = False) -> Verified:
    """Compare the SHA-256 of a file with the `expected` one, in hexadecimal.

    Args:
        path: The file.
        expected: What its SHA-256 should be.
        afresh: Read the file even where an earlier process did, and it has not been written to since.

    Raises:
        AlteredError: It is another, or the file was written to meanwhile.
        OSError: It is no file, or cannot be read.
    """
    with files.open_regular(path, sys.maxsize) as file:
        return _compare(file, path, expected, afresh=afresh)


class HeldFile:
    """A verified file that is held open, to see whether its bytes are written to, whatever has its name by then.

    A library that has a file mapped into memory sees what is written to it: there is nothing else to ask.
    """

    def __init__(self, path: Path, expected: str, verified: Verified) -> None:
        """Open the file `path`, whose SHA-256 was the `expected` one when it was in the state of `verified`.

        Raises OSError where it is no file or cannot be read.
        """
        self.path, self._expected, self._verified = path, expected, verified
        with files.open_regular(path, sys.maxsize) as file:
            self._descriptor = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def intact(self) -> bool:
        """Whether it is the file that was verified, and nobody has written to it.

        It is read again where nothing but the second time has moved, or where its times cannot tell.
        """
        before, now = self._verified, _state(os.fstat(self._descriptor))
        if now == before.state and before.settled:
            return True
        if now[:-1] != before.state[:-1]:
            return False
        try:
            with open(os.dup(self._descriptor), "rb") as file:
                self._verified = _compare(file, self.path, self._expected, afresh=True)
        except (AlteredError, OSError):
            return False
        return True

    def close(self) -> None:
        """Let go of it. It is also let go of with the last reference."""
        self._close()


def _compare(file: BufferedReader, path: Path, expected: str, *, afresh: bool) -> Verified:
    """See `compare`. What has the name `path` by now may be another file than the open one."""
    started = time.time()
    status = os.fstat(file.fileno())
    before = _state(status)
    comparison = (expected, *before)
    if not afresh and remembered.has(path, status, comparison):
        return Verified(before, True)
    file.seek(0)
    if _digest(file) != expected:
        raise AlteredError("is not the file that was exported (SHA-256 differs)")
    after = _state(os.fstat(file.fileno()))
    if after[:-1] != before[:-1]:
        raise AlteredError("was written to while it was read")
    # Its age when reading began: a write just after that has the time of one just before.
    settled = after == before and started - before.changed / 1e9 > SETTLED_SECONDS
    if settled:
        remembered.keep(path, status, comparison)
    return Verified(after, settled)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _state(found: os.stat_result) -> State:
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
