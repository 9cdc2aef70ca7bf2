"""Webhook calls that are to be made, kept over restarts."""

from __future__ import annotations

import time
from collections.abc import Collection

from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.records import Delivery, new_id


class Deliveries:
    """Calls that wait, the oldest due first. What is sent is read from the job when it is sent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: str, event: str, url: str, *, terminal: bool = False, once: bool = False) -> None:
        """Note a call; within a transaction of this thread, it is part of it.

        `once` passes over an event that was noted for the job before. Logs take the place of logs that wait still: they
        say the same and more.
        """
        now = time.time()
        host = url.partition("://")[2].partition("/")[0].partition("?")[0].lower()
        known = "SELECT 1 FROM deliveries WHERE job = ? AND event = ?"
        with self._database.write() as connection:
            if once and connection.execute(known, (job, event)).fetchone() is not None:
                return
            if event == "logs":
                connection.execute(
                    "DELETE FROM deliveries WHERE job = ? AND event = 'logs' AND state = 'waiting'", (job,)
                )
            connection.execute(
                "INSERT INTO deliveries (id, job, event, url, host, terminal, created, due)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (f"msg_{new_id()}", job, event, url, host, int(terminal), now, now),
            )

    def due(
        self, limit: int = 32, *, per_host: int = 32, no_jobs: Collection[str] = (), no_hosts: Collection[str] = ()
    ) -> list[Delivery]:
        """Calls whose time has come: the first of each job, at most `per_host` to one host, the oldest first.

        Calls of `no_jobs` and to `no_hosts` are left where they are.
        """
        jobs, hosts = ", ".join("?" * len(no_jobs)), ", ".join("?" * len(no_hosts))
        rows = self._database.rows(
            "WITH first AS (SELECT min(rowid) AS number FROM deliveries WHERE state = 'waiting' AND due <= ?"
            f" AND job NOT IN ({jobs}) AND host NOT IN ({hosts}) GROUP BY job),"
            " placed AS (SELECT *, row_number() OVER (PARTITION BY host ORDER BY due, rowid) AS place"
            " FROM deliveries WHERE rowid IN (SELECT number FROM first))"
            " SELECT * FROM placed WHERE place <= ? ORDER BY due LIMIT ?",
            (time.time(), *no_jobs, *no_hosts, per_host, limit),
        )
        return [Delivery.of(row) for row in rows]

    def next_due(self) -> float | None:
        """When a call is due that is not yet, or None."""
        row = self._database.row("SELECT min(due) FROM deliveries WHERE state = 'waiting' AND due > ?", (time.time(),))
        return None if row is None else row[0]

    def settle(self, delivery: Delivery, state: str, due: float | None = None) -> None:
        """Note how an attempt went: "delivered", "given up", or "waiting" for another at `due`."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE deliveries SET state = ?, attempts = attempts + 1, due = coalesce(?, due) WHERE id = ?",
                (state, due, delivery.id),
            )

    def count(self, state: str) -> int:
        """How many calls are in a state."""
        row = self._database.row("SELECT count(*) FROM deliveries WHERE state = ?", (state,))
        return int(row[0]) if row else 0

    def forget(self, before: float) -> None:
        """Delete calls that were settled and are older than a time."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM deliveries WHERE state != 'waiting' AND created < ?", (before,))
