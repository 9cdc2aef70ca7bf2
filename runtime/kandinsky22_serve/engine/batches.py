"""Which waiting jobs run together: the oldest, and those that are denoised alike, as far as memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kandinsky22 import memory
from kandinsky22.bundle.manifest import Manifest
from kandinsky22.memory import Cost, Demand
from kandinsky22_serve.store.jobs import Jobs
from kandinsky22_serve.store.records import Job

_LOOKED_AT = 64
"""Waiting jobs alike that are looked at for one batch."""


@dataclass(frozen=True)
class Room:
    """What a batch may take: pictures, and bytes by the estimate of `kandinsky22.memory`.

    `cost` and `limit` are None where memory is not modelled (a GPU) or not limited.
    """

    manifest: Manifest
    pictures: int
    cost: Cost | None
    limit: float | None
    low_memory: bool

    def fits(self, jobs: Sequence[Job]) -> bool:
        """Whether these jobs may run together."""
        pictures = sum(job.pictures for job in jobs)
        if pictures > self.pictures:
            return False
        if self.cost is None or self.limit is None:
            return True
        components = tuple(dict.fromkeys(name for job in jobs for name in job.demand["components"]))
        asked = jobs[0].demand
        demand = Demand(components, tuple(asked["latents"]), pictures, pictures, frozenset(asked["branches"]))
        kept = () if self.low_memory else components
        return memory.estimate(self.manifest, demand, self.cost, kept) <= self.limit


def next_batch(jobs: Jobs, room: Room) -> list[Job]:
    """The jobs that run next, the oldest first; none where none waits.

    Beside the oldest, as many as make the pictures a power of two: a backend that compiles for shapes then knows few of
    them. A job that is too large for the room runs alone: it was accepted, and the engine refuses it in one sentence if
    it must.
    """
    first = jobs.oldest_waiting()
    if first is None:
        return []
    chosen, best = [first], 1
    pictures = first.pictures
    alike = iter(()) if first.alone else jobs.alike(first, _LOOKED_AT)
    while pictures < room.pictures and (each := next(alike, None)) is not None:
        if room.fits([*chosen, each]):
            chosen.append(each)
            pictures += each.pictures
            if pictures.bit_count() == 1:
                best = len(chosen)
    return chosen[:best]
