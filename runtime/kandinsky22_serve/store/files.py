"""Pictures in the store: a row a file, the bytes in a folder under the file's id."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

from kandinsky22 import files as disk
from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.records import File, new_id

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
"""Of the file's name, by media type."""


class Files:
    """Uploads, inputs and outputs. Names on the disk are ours alone: an id, and a suffix by the type."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def suffix(self, media_type: str) -> str:
        """Of a file's name; media types are those of SUFFIXES."""
        return SUFFIXES[media_type]

    def path(self, file: File) -> Path:
        """Where a file's bytes are."""
        return self.place(file.id, file.media_type)

    def place(self, file: str, media_type: str) -> Path:
        """Where the bytes of the file with this id go; media types are those of SUFFIXES."""
        return self.folder / f"{file}{SUFFIXES[media_type]}"

    def add(self, body: bytes, media_type: str, kind: str, name: str, seconds: float, metadata: str = "{}") -> File:
        """Keep a file for so many seconds, or longer where a job takes it. Raises OSError where the disk is full."""
        now = time.time()
        digest = hashlib.sha256(body).hexdigest()
        file = File(new_id(), kind, name, media_type, len(body), digest, now, now + seconds, metadata=metadata)
        disk.write_file(self.path(file), body)
        self._insert(file)
        return file

    def copy(self, file: File, seconds: float) -> File:
        """A file of its own with the bytes of another, as an input that a job can take; they share the disk's space.

        Raises FileNotFoundError where the other has just been deleted.
        """
        now = time.time()
        copied = replace(file, id=new_id(), kind="input", created=now, expires=now + seconds, job=None, place=0)
        try:
            os.link(self.path(file), self.path(copied))
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            disk.write_file(self.path(copied), self.path(file).read_bytes())
        self._insert(copied)
        return copied

    def _insert(self, file: File) -> None:
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO files (id, kind, name, media_type, bytes, sha256, created, expires, metadata)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    file.id,
                    file.kind,
                    file.name,
                    file.media_type,
                    file.bytes,
                    file.sha256,
                    file.created,
                    file.expires,
                    file.metadata,
                ),
            )

    def get(self, file: str) -> File | None:
        """The file of that id, or None: where there never was one, or it has expired."""
        row = self._database.row("SELECT * FROM files WHERE id = ?", (file,))
        return None if row is None else File.of(row)

    def of_job(self, job: str, kind: str) -> list[File]:
        """A job's files of one kind, in order."""
        rows = self._database.rows("SELECT * FROM files WHERE job = ? AND kind = ? ORDER BY place", (job, kind))
        return [File.of(row) for row in rows]

    def newest(self, kind: str, limit: int, before: float | None = None) -> list[File]:
        """Files of a kind, the newest first; `before` is a time of creation, for the next page."""
        rows = self._database.rows(
            "SELECT * FROM files WHERE kind = ? AND created < ? ORDER BY created DESC LIMIT ?",
            (kind, 1e18 if before is None else before, limit),
        )
        return [File.of(row) for row in rows]

    def newer(self, kind: str, limit: int, after: float) -> list[File]:
        """The files of a kind that came next after a time of creation, the newest first."""
        rows = self._database.rows(
            "SELECT * FROM files WHERE kind = ? AND created > ? ORDER BY created LIMIT ?", (kind, after, limit)
        )
        return [File.of(row) for row in reversed(rows)]

    def remove(self, file: File) -> None:
        """Forget a file and delete its bytes."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file.id,))
        self.path(file).unlink(missing_ok=True)

    def remove_expired(self) -> int:
        """Delete what has expired; how many files that were. Jobs remain."""
        rows = self._database.rows("SELECT * FROM files WHERE expires < ?", (time.time(),))
        for row in rows:
            self.remove(File.of(row))
        return len(rows)

    def sweep(self) -> int:
        """Delete files that no row names, which a killed server or engine left; how many. Nothing may be running."""
        known = {self.path(File.of(row)).name for row in self._database.rows("SELECT * FROM files")}
        stray = [path for path in self.folder.iterdir() if path.name not in known and path.is_file()]
        for path in stray:
            path.unlink(missing_ok=True)
        return len(stray)
