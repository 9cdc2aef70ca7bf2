"""Webhook calls that are to be made, kept over restarts."""

from __future__ import annotations

import time

from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.records import Delivery, new_id


class Deliveries:
    """Calls that wait, the oldest due first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: str, event: str, url: str, body: bytes, *, terminal: bool) -> None:
        """Note a call; within a transaction of this thread, it is part of it."""
        now = time.time()
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO deliveries (id, job, event, url, body, terminal, created, due)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (f"msg_{new_id()}", job, event, url, body, int(terminal), now, now),
            )

    def due(self, limit: int = 32) -> list[Delivery]:
        """Calls whose time has come."""
        rows = self._database.rows(
            "SELECT * FROM deliveries WHERE state = 'waiting' AND due <= ? ORDER BY due LIMIT ?", (time.time(), limit)
        )
        return [Delivery.of(row) for row in rows]

    def next_due(self) -> float | None:
        """When the next call is due, or None."""
        row = self._database.row("SELECT min(due) FROM deliveries WHERE state = 'waiting'")
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
