"""The SQLite file: its tables, one connection that writes, one that reads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kandinsky22.errors import InputError

VERSION = 1
"""Of the tables. A file of another version is refused: nothing is guessed about jobs."""

_TABLES = """
CREATE TABLE jobs (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    contract   TEXT NOT NULL,
    status     TEXT NOT NULL,
    request    TEXT NOT NULL,
    input      TEXT NOT NULL,
    options    TEXT NOT NULL,
    key        TEXT NOT NULL,
    pictures   INTEGER NOT NULL,
    demand     TEXT NOT NULL,
    created    REAL NOT NULL,
    started    REAL,
    completed  REAL,
    deadline   REAL,
    deaths     INTEGER NOT NULL DEFAULT 0,
    alone      INTEGER NOT NULL DEFAULT 0,
    canceling  INTEGER NOT NULL DEFAULT 0,
    error      TEXT,
    logs       TEXT NOT NULL DEFAULT '',
    seeds      TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX waiting ON jobs (status, seq);
CREATE INDEX alike ON jobs (status, key, seq);
CREATE TABLE files (
    id         TEXT PRIMARY KEY,
    job        TEXT,
    kind       TEXT NOT NULL,
    place      INTEGER NOT NULL DEFAULT 0,
    name       TEXT NOT NULL,
    media_type TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    sha256     TEXT NOT NULL,
    created    REAL NOT NULL,
    expires    REAL,
    metadata   TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX of_job ON files (job, kind, place);
CREATE INDEX expiring ON files (expires);
CREATE TABLE deliveries (
    id         TEXT PRIMARY KEY,
    job        TEXT NOT NULL,
    event      TEXT NOT NULL,
    url        TEXT NOT NULL,
    host       TEXT NOT NULL,
    terminal   INTEGER NOT NULL,
    created    REAL NOT NULL,
    due        REAL NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    state      TEXT NOT NULL DEFAULT 'waiting'
);
CREATE INDEX due ON deliveries (state, due);
CREATE INDEX called ON deliveries (job, event);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Database:
    """One file. Threads take turns to write; they read beside it, what was committed last."""

    def __init__(self, path: Path) -> None:
        """Open the file, made where it is missing. Raises InputError where it is of another kind or version."""
        try:
            self._writer, self._reader = _connect(path), _connect(path)
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{path} cannot be used as the queue ({error}); name another folder with --data."
            ) from None
        self._writing, self._reading = threading.RLock(), threading.Lock()

    def _prepare(self, path: Path) -> None:
        with self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {VERSION}")
        if version not in (0, VERSION):
            raise InputError(
                f"{path} is a queue of version {version}, this kandinsky22 has {VERSION}; "
                "name another folder with --data."
            )

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block is on the disk when it ends, or nothing of it.

        Within a transaction of this thread the block is part of that. Raises sqlite3.OperationalError where the disk is
        full.
        """
        with self._writing:
            if self._writer.in_transaction:
                yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._reading:
            return self._reader.execute(statement, values).fetchall()

    def row(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        found = self.rows(statement, values)
        return found[0] if found else None

    def close(self) -> None:
        """Close the file; what was committed is in it."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: what a client was told to be accepted is on the disk, even when the power goes.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA busy_timeout = 30000")
    return connection
