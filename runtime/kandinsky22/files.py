"""What writing plans asks of the disk: files that are whole or absent, and a lock."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".part"
"""What the names of files end with that are not finished."""


class NewFile:
    """A file that is written under a temporary name, and gets its own by `commit`; SHA-256 and size on the way."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / (name + TEMPORARY)
        self._file = self._path.open("wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises OSError where there is no room."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += memoryview(data).nbytes

    def commit(self, name: str) -> None:
        """Put the file in the place of `name`: from here on it is there in its full size, even after a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._path.with_name(name))
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove what was written, if it was not committed."""
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(folder: Path, name: str) -> Iterator[NewFile]:
    """A NewFile that is discarded at the end unless it was committed."""
    file = NewFile(folder, name)
    try:
        yield file
    finally:
        file.discard()


def write_file(path: Path, data: bytes) -> None:
    """Write a small file at once, whole or not at all."""
    with new_file(path.parent, path.name) as file:
        file.write(data)
        file.commit(path.name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether the lock in file `path` could be taken; it is held until the end, or until the process is killed."""
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two builds at once are the user's to avoid
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
