"""What every contract stands on: jobs are accepted, waited for, canceled; files are kept; who listens is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from kandinsky22 import memory
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import InputError
from kandinsky22.request.job import Job as Resolved
from kandinsky22.request.merge import batch_key
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve
from kandinsky22_serve.engine.supervisor import MOST_DEATHS, Supervisor
from kandinsky22_serve.events import Hearer
from kandinsky22_serve.settings import Settings
from kandinsky22_serve.store.jobs import NewJob
from kandinsky22_serve.store.records import File, Job, Options, Status, new_id
from kandinsky22_serve.store.store import Store

log = logging.getLogger(__name__)

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Of the formats that pictures are written in."""
UPLOAD_SECONDS = 86400.0
"""How long an upload stays that no job takes."""
_TIDY_SECONDS = 1.0
"""Between two looks at deadlines."""
_EXPIRY_SECONDS = 30.0
"""Between two looks at what has expired."""


@dataclass(frozen=True)
class Submission:
    """A job as a contract hands it in.

    `request` has its pictures as paths of the store's files, whose ids are `files`. `input` is what the client sent, to
    be shown back. `seconds` is a deadline. `id` is the client's own (Cog's PUT), else a new one is made.
    """

    contract: str
    request: Request
    input: Mapping[str, Any]
    options: Options = field(default_factory=Options)
    files: tuple[str, ...] = ()
    seconds: float | None = None
    id: str = ""


@dataclass
class Progress:
    """How a running job goes: steps done of all, what is computed, lines of its log, and the newest preview (PNG)."""

    began: float
    stage: str = ""
    step: int = 0
    steps: int = 0
    lines: list[str] = field(default_factory=list)
    preview: bytes | None = None
    previews: int = 0

    @property
    def log(self) -> str:
        """Its lines, as tqdm would have printed them, each ended by a newline."""
        return "".join(f"{line}\n" for line in self.lines)


class Service:
    """The queue, the files and the engine as one. Methods may be called from any thread but where they are async."""

    def __init__(self, settings: Settings) -> None:
        """Open bundle and store. Raises InputError or BundleError where that cannot be."""
        self.settings = settings
        self.give_up: Callable[[], None] = lambda: None
        """Called in the event loop when the engine cannot start at all."""
        self.hearers: list[Hearer] = []
        """Who is told what happens; added before `start`."""
        self.bundle = Bundle(settings.bundle)
        self.manifest = self.bundle.manifest
        self.store = Store(settings.data)
        self.supervisor = Supervisor(settings, self.manifest, self.store.jobs, self.store.files.folder, self)
        self._progress: dict[str, Progress] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._closing = threading.Event()

    async def start(self) -> None:
        """Take up what an earlier server left, and start the engine."""
        self._loop = asyncio.get_running_loop()
        left = [job.id for job in self.store.jobs.running()]
        self.store.jobs.put_back(left, died=False)
        swept = self.store.files.sweep()
        if left or swept:
            log.info("taken up: %d jobs that ran, %d files that nobody has", len(left), swept)
        self.supervisor.start()
        self._tidying = asyncio.create_task(self._tidy())

    async def close(self) -> None:
        """End the engine and close the store. Jobs that ran wait for the next server."""
        self._closing.set()
        if self._tidying is not None:
            self._tidying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tidying
        await asyncio.to_thread(self.supervisor.close)
        self.store.close()

    # What contracts call.

    def submit(self, new: Submission) -> Job:
        """Accept a job: checked against the bundle, its seeds drawn, on the disk when this returns.

        Raises InputError (or its kind MemoryLimitError) where it asks for what cannot be, BundleError where the bundle
        lacks what it needs, QueueFullError where too many wait, OSError or sqlite3.Error where the disk is full.
        """
        request = new.request
        if request.given.get("seed") is None:
            request = request.with_(seed=random.SystemRandom().randint(0, 2**31 - 1))
        constants = self.bundle.constants() if "image_embeds" in request.given else {}
        job = resolve(request, self.manifest, constants.get("zero_image_embeds"))
        self._require_work(job)
        self._require_memory(job.demand)
        demand = {
            "components": list(job.components),
            "latents": list(job.demand.latents),
            "branches": sorted(job.demand.branches),
        }
        accepted = self.store.jobs.accept(
            NewJob(
                new.id or new_id(),
                new.contract,
                request.to_json(),
                new.input,
                new.options,
                batch_key(job),
                len(job.seeds),
                demand,
                tuple(job.seeds),
                new.seconds,
                new.files,
            ),
            self.settings.max_queue,
        )
        for hearer in self.hearers:
            hearer.accepted(accepted)
        self.supervisor.wake()
        return accepted

    def _require_work(self, job: Resolved) -> None:
        """Raise InputError where a job would keep the engine for too long."""
        height, width = job.demand.latents
        steps = 0 if job.sampling is None else len(job.sampling.schedule.timesteps)
        work = 64 * height * width * steps * len(job.seeds) / 1e6
        if work > self.settings.max_work:
            raise InputError(
                f"The job asks for {work:,.0f} megapixels times steps; this server takes up to "
                f"{self.settings.max_work:,}. Ask for fewer steps, smaller pictures, or fewer of them."
            )

    def _require_memory(self, demand: memory.Demand) -> None:
        """Raise MemoryLimitError where a job could not run alone, as far as the engine is known already."""
        engine, limit = self.supervisor.engine, memory.limit(self.settings.memory_limit)
        cost = memory.COSTS.get((str(engine.get("cost")), str(engine.get("precision"))))
        if isinstance(self.settings.memory_limit, float) and cost is not None and limit is not None:
            memory.check(self.manifest, demand, cost, limit, low_memory=self.settings.low_memory)

    def job(self, job: str) -> Job | None:
        """The job of that id, or None."""
        return self.store.jobs.get(job)

    def progress(self, job: str) -> Progress | None:
        """How a job that runs goes; None where it does not run."""
        return self._progress.get(job)

    def logs(self, job: Job) -> str:
        """A job's log so far."""
        progress = self._progress.get(job.id)
        return job.logs if progress is None or job.status.is_terminal else progress.log

    def outputs(self, job: Job) -> list[File]:
        """The pictures of a job, in order; none where it has not succeeded, or they have expired."""
        return self.store.files.of_job(job.id, "output") if job.status is Status.SUCCEEDED else []

    def cancel(self, job: str) -> Job | None:
        """End a job as canceled, if it has not ended; the job, or None where there is none of that id.

        The engine stops computing it within a step.
        """
        self._end(job, Status.CANCELED)
        self.supervisor.cancel([job])
        return self.store.jobs.get(job)

    async def wait(self, job: str, seconds: float) -> Job | None:
        """The job when it has ended, or as it is after so many seconds."""
        deadline = time.monotonic() + seconds
        async for found in self.follow(job, seconds):
            if found.status.is_terminal or time.monotonic() >= deadline:
                return found
        return await asyncio.to_thread(self.store.jobs.get, job)

    async def follow(self, job: str, seconds: float = 3600.0) -> AsyncIterator[Job]:
        """The job now, and again whenever anything of it has changed (progress, too), until it has ended."""
        deadline = time.monotonic() + seconds
        changed = asyncio.Event()
        self._waiters.setdefault(job, set()).add(changed)
        try:
            while True:
                changed.clear()
                found = await asyncio.to_thread(self.store.jobs.get, job)
                if found is None:
                    return
                yield found
                left = deadline - time.monotonic()
                if found.status.is_terminal or left <= 0:
                    return
                # Not wait_for: in Python 3.11 it loses a cancel (a client that left) that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await changed.wait()
        finally:
            self._waiters[job].discard(changed)
            if not self._waiters[job]:
                del self._waiters[job]

    # What the supervisor tells, from its threads.

    def started(self, jobs: Sequence[Job]) -> None:
        """Jobs run now."""
        for job in jobs:
            self._progress[job.id] = Progress(time.monotonic(), lines=[f"Using seed: {job.seeds[0]}"])
            for hearer in self.hearers:
                hearer.started(job)
            self._tell(job.id)

    def stepped(self, jobs: Sequence[str], stage: str, step: int, steps: int) -> None:
        """A step of a batch is done."""
        for job in jobs:
            progress = self._progress.get(job)
            if progress is None:
                continue
            progress.stage, progress.step, progress.steps = stage, step, steps
            elapsed = time.monotonic() - progress.began
            progress.lines.append(tqdm.format_meter(step, steps, elapsed, ncols=79))
            for hearer in self.hearers:
                hearer.stepped(job)
            self._tell(job)

    def previewed(self, job: str, png: str) -> None:
        """There is a picture of a job's unfinished state."""
        progress = self._progress.get(job)
        if progress is not None:
            progress.preview = base64.b64decode(png)
            progress.previews += 1
            self._tell(job)

    def saved(self, job: str, outputs: Sequence[str], files: Sequence[Mapping[str, Any]]) -> None:
        """The pictures of a job are on the disk: it has succeeded, unless it was canceled meanwhile."""
        found = self.store.jobs.get(job)
        if found is None:
            return
        media_type = MEDIA_TYPES[found.options.form]
        records = [
            File(each, "output", f"out-{place}{self.store.files.suffix(media_type)}", media_type, told["bytes"],
                 told["sha256"], 0.0, None, job, place)
            for place, (each, told) in enumerate(zip(outputs, files, strict=True))
        ]  # fmt: skip
        if self._surely_end(job, Status.SUCCEEDED, outputs=records) is None:
            for record in records:
                self.store.files.path(record).unlink(missing_ok=True)

    def failed(self, job: str, error: str) -> None:
        """A job cannot be done."""
        self._surely_end(job, Status.FAILED, error=error)

    def died(self, jobs: Sequence[Job]) -> None:
        """The engine died while it ran these; those that it died of too often have failed."""
        for hearer in self.hearers:
            hearer.died(jobs)
        for job in jobs:
            self._progress.pop(job.id, None)
            if job.deaths >= MOST_DEATHS:
                self._surely_end(
                    job.id, Status.FAILED, error=f"The engine died {MOST_DEATHS} times while it ran this job."
                )
            self._tell(job.id)

    def computed(self, pictures: int, timings: dict[str, float], resident: int) -> None:
        """A batch is computed."""
        for hearer in self.hearers:
            hearer.computed(pictures, timings, resident)

    def changed(self) -> None:
        """The engine's state is another: one that is broken before it ever ran ends the server."""
        loop, supervisor = self._loop, self.supervisor
        if supervisor.state == "broken" and not supervisor.engine and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self.give_up)

    # The end of a job, and who waits for it.

    def _end(self, job: str, status: Status, *, error: str | None = None, outputs: Sequence[File] = ()) -> Job | None:
        """End a job once; None where it had ended before. Raises sqlite3.Error where the disk cannot take it."""
        progress = self._progress.get(job)
        ended = self.store.jobs.end(
            job,
            status,
            error=error,
            logs="" if progress is None else progress.log,
            outputs=outputs,
            keep=self.settings.keep,
            then=self._ending,
        )
        self._progress.pop(job, None)
        if ended is not None:
            for hearer in self.hearers:
                hearer.ended(ended)
        self._tell(job)
        return ended

    def _ending(self, job: Job) -> None:
        for hearer in self.hearers:
            hearer.ending(job)

    def _surely_end(
        self, job: str, status: Status, *, error: str | None = None, outputs: Sequence[File] = ()
    ) -> Job | None:
        """As `_end`; what the disk cannot take is tried again and again, for an accepted job must end."""
        while True:
            try:
                return self._end(job, status, error=error, outputs=outputs)
            except sqlite3.Error:
                log.exception("the end of job %s cannot be written; it is tried again", job)
                if self._closing.wait(1.0):
                    return None  # it counts as running still, and the next server runs it again

    def _tell(self, job: str) -> None:
        """Wake who follows a job."""
        loop = self._loop
        if loop is not None and job in self._waiters:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._wake, job)

    def _wake(self, job: str) -> None:
        for each in self._waiters.get(job, ()):
            each.set()

    async def _tidy(self) -> None:
        """Deadlines, and what has expired."""
        expired = 0.0
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                for job in await asyncio.to_thread(self.store.jobs.overdue):
                    await asyncio.to_thread(self.cancel, job.id)
                if time.monotonic() - expired >= _EXPIRY_SECONDS:
                    expired = time.monotonic()
                    await asyncio.to_thread(self.store.files.remove_expired)
            except (sqlite3.Error, OSError):
                log.exception("the store could not be tidied; it is tried again")
