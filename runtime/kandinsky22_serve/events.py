"""Who hears what happens to jobs: webhooks, metrics, logs. Each is a `Hearer` of the service."""

from __future__ import annotations

from collections.abc import Sequence

from kandinsky22_serve.store.records import Job


class Hearer:
    """Hears of jobs, from several threads, and must not be long about it. What is of no interest is passed over."""

    def accepted(self, job: Job) -> None:
        """A job was accepted, or asked for again."""

    def started(self, job: Job) -> None:
        """A job runs; again, where it was put back."""

    def stepped(self, job: str) -> None:
        """A step of a job is done."""

    def ending(self, job: Job) -> None:
        """A job ends; within the transaction that says so."""

    def ended(self, job: Job) -> None:
        """A job has ended."""

    def died(self, jobs: Sequence[Job]) -> None:
        """The engine died while it ran these."""

    def computed(self, pictures: int, timings: dict[str, float], resident: int) -> None:
        """A batch is computed; `timings` are seconds by stage, `resident` is the engine's memory in bytes."""
