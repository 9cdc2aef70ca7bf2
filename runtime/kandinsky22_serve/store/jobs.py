"""Jobs in the store: every accepted one ends once, whatever dies in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.records import File, Job, Options, Status

_WAITING, _RUNNING = Status.STARTING.value, Status.PROCESSING.value
_ENDED = "('succeeded', 'failed', 'canceled')"


class QueueFullError(Exception):
    """So many jobs wait already that no more are taken."""


@dataclass(frozen=True)
class NewJob:
    """A job that is to be accepted; the fields are those of `Job`. `files` are ids of inputs that become the job's."""

    id: str
    contract: str
    request: Mapping[str, Any]
    input: Mapping[str, Any]
    options: Options
    key: str
    pictures: int
    demand: Mapping[str, Any]
    seeds: tuple[int, ...]
    seconds: float | None = None
    files: tuple[str, ...] = ()


Ending = Callable[[Job], None]
"""Called within the transaction that ends a job: what must be on the disk together with the end."""


class Jobs:
    """The queue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def accept(self, new: NewJob, most: int) -> Job:
        """Add a job, or give back the one that has its id already (a client that asks again).

        Raises QueueFullError where `most` jobs wait.
        """
        now = time.time()
        with self._database.write() as connection:
            there = connection.execute("SELECT * FROM jobs WHERE id = ?", (new.id,)).fetchone()
            if there is not None:
                return Job.of(there)
            (waiting,) = connection.execute("SELECT count(*) FROM jobs WHERE status = ?", (_WAITING,)).fetchone()
            if waiting >= most:
                raise QueueFullError
            connection.execute(
                "INSERT INTO jobs (id, contract, status, request, input, options, key, pictures, demand, created,"
                " deadline, seeds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new.id,
                    new.contract,
                    _WAITING,
                    json.dumps(new.request),
                    json.dumps(new.input),
                    new.options.to_json(),
                    new.key,
                    new.pictures,
                    json.dumps(new.demand),
                    now,
                    None if new.seconds is None else now + new.seconds,
                    json.dumps(new.seeds),
                ),
            )
            for each in new.files:
                connection.execute("UPDATE files SET job = ?, expires = NULL WHERE id = ?", (new.id, each))
            return Job.of(connection.execute("SELECT * FROM jobs WHERE id = ?", (new.id,)).fetchone())

    def get(self, job: str) -> Job | None:
        """The job of that id, or None."""
        row = self._database.row("SELECT * FROM jobs WHERE id = ?", (job,))
        return None if row is None else Job.of(row)

    def newest(self, limit: int, before: int | None = None, contracts: Sequence[str] = ()) -> list[Job]:
        """Jobs, the newest first; `before` is a `seq`, for the next page."""
        marks = ", ".join("?" * len(contracts))
        which = f"AND contract IN ({marks})" if contracts else ""
        rows = self._database.rows(
            f"SELECT * FROM jobs WHERE seq < ? {which} ORDER BY seq DESC LIMIT ?",
            (2**62 if before is None else before, *contracts, limit),
        )
        return [Job.of(row) for row in rows]

    def newer(self, limit: int, after: int, contracts: Sequence[str] = ()) -> list[Job]:
        """The jobs that came next after a `seq`, the newest first: the page before that of `newest`."""
        marks = ", ".join("?" * len(contracts))
        which = f"AND contract IN ({marks})" if contracts else ""
        rows = self._database.rows(
            f"SELECT * FROM jobs WHERE seq > ? {which} ORDER BY seq LIMIT ?", (after, *contracts, limit)
        )
        return [Job.of(row) for row in reversed(rows)]

    def count(self, status: Status) -> int:
        """How many jobs are in a status that is not terminal."""
        row = self._database.row("SELECT count(*) FROM jobs WHERE status = ?", (status.value,))
        return int(row[0]) if row else 0

    def place(self, job: Job) -> int:
        """How many jobs wait before this one."""
        row = self._database.row("SELECT count(*) FROM jobs WHERE status = ? AND seq < ?", (_WAITING, job.seq))
        return int(row[0]) if row else 0

    def oldest_waiting(self) -> Job | None:
        """The job whose turn it is."""
        row = self._database.row("SELECT * FROM jobs WHERE status = ? ORDER BY seq LIMIT 1", (_WAITING,))
        return None if row is None else Job.of(row)

    def alike(self, job: Job, limit: int) -> Iterator[Job]:
        """Waiting jobs that can be denoised together with this one, the oldest first, without itself."""
        rows = self._database.rows(
            "SELECT * FROM jobs WHERE status = ? AND key = ? AND alone = 0 AND seq > ? ORDER BY seq LIMIT ?",
            (_WAITING, job.key, job.seq, limit),
        )
        return map(Job.of, rows)

    def start(self, jobs: Sequence[str]) -> list[Job]:
        """Those of some waiting jobs that still wait, now running."""
        started = []
        with self._database.write() as connection:
            for job in jobs:
                changed = connection.execute(
                    "UPDATE jobs SET status = ?, started = coalesce(started, ?) WHERE id = ? AND status = ?"
                    " AND canceling = 0",
                    (_RUNNING, time.time(), job, _WAITING),
                ).rowcount
                if changed:
                    started.append(Job.of(connection.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()))
        return started

    def end(
        self,
        job: str,
        status: Status,
        *,
        error: str | None = None,
        logs: str = "",
        outputs: Sequence[File] = (),
        keep: float = 0.0,
        then: Ending | None = None,
    ) -> Job | None:
        """End a job that has not ended, with its pictures; the job as it is now, or None where it had ended before.

        Its files expire `keep` seconds from now. `then` writes what belongs to the end.
        """
        now = time.time()
        with self._database.write() as connection:
            changed = connection.execute(
                f"UPDATE jobs SET status = ?, completed = ?, error = ?, logs = CASE WHEN ? = '' THEN logs ELSE ? END"
                f" WHERE id = ? AND status NOT IN {_ENDED}",
                (status.value, now, error, logs, logs, job),
            ).rowcount
            if not changed:
                return None
            for each in outputs:
                connection.execute(
                    "INSERT INTO files (id, job, kind, place, name, media_type, bytes, sha256, created, expires)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        each.id,
                        job,
                        each.kind,
                        each.place,
                        each.name,
                        each.media_type,
                        each.bytes,
                        each.sha256,
                        now,
                        None,
                    ),
                )
            connection.execute("UPDATE files SET expires = ? WHERE job = ?", (now + keep, job))
            ended = Job.of(connection.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone())
            if then is not None:
                then(ended)
            return ended

    def ask_to_cancel(self, job: str) -> None:
        """Note that a job is to be canceled; who runs it reads the note."""
        with self._database.write() as connection:
            connection.execute(f"UPDATE jobs SET canceling = 1 WHERE id = ? AND status NOT IN {_ENDED}", (job,))

    def put_back(self, jobs: Sequence[str], *, died: bool) -> None:
        """Let running jobs wait again: the server was ended, or (`died`) the engine that ran them died.

        One that ran alone when its engine died is marked with the death; of several, each runs alone from now on.
        """
        with self._database.write() as connection:
            for job in jobs:
                if died:
                    column = "alone = 1" if len(jobs) > 1 else "alone = 1, deaths = deaths + 1"
                    connection.execute(f"UPDATE jobs SET {column} WHERE id = ?", (job,))
                connection.execute("UPDATE jobs SET status = ? WHERE id = ? AND status = ?", (_WAITING, job, _RUNNING))

    def running(self) -> list[Job]:
        """Jobs that are marked as running."""
        rows = self._database.rows("SELECT * FROM jobs WHERE status = ? ORDER BY seq", (_RUNNING,))
        return [Job.of(row) for row in rows]

    def overdue(self) -> list[Job]:
        """Jobs whose deadline is over and which have not ended."""
        rows = self._database.rows(
            f"SELECT * FROM jobs WHERE deadline < ? AND status NOT IN {_ENDED} AND canceling = 0", (time.time(),)
        )
        return [Job.of(row) for row in rows]

    def to_cancel(self) -> list[Job]:
        """Jobs that are to be canceled and wait."""
        rows = self._database.rows("SELECT * FROM jobs WHERE status = ? AND canceling = 1", (_WAITING,))
        return [Job.of(row) for row in rows]
