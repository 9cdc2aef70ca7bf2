"""An engine that paints nothing: jobs end at once, with a small picture for each; for tests of the contracts."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Job, Status, new_id

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class QuickEngine:
    """Stands in the place of a service's supervisor. `hold` keeps jobs waiting; `fails` is what they fail with.

    `steps` are told before a job ends, with a preview each where it asked for some.
    """

    def __init__(self, service: Service, *, steps: int = 0, fails: str | None = None) -> None:
        self.state, self.why, self.restarts = "closed", "", 0
        self.engine: Mapping[str, Any] = {}
        self.pid = None
        self.hold = threading.Event()
        self.steps, self.fails = steps, fails
        self.canceled: list[str] = []
        self._service, self._turn = service, threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self.set("starting")
        self.set("ready")

    def set(self, state: str) -> None:
        self.state = state
        self._service.changed()

    def wake(self) -> None:
        if not self.hold.is_set():
            thread = threading.Thread(target=self.work)
            thread.start()
            self._threads.append(thread)

    def cancel(self, jobs: Sequence[str]) -> None:
        self.canceled += jobs

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self.set("closed")

    def work(self) -> None:
        """Every job that waits."""
        with self._turn:
            while (job := self._service.store.jobs.oldest_waiting()) is not None:
                started = self._service.store.jobs.start([job.id])
                self._service.started(started)
                for each in started:
                    self._run(each)

    def _run(self, job: Job) -> None:
        for step in range(1, self.steps + 1):
            self._service.stepped([job.id], "decoder", step, self.steps)
            if job.options.previews:
                self._service.previewed(job.id, _base64(_picture(job, "png")))
        if self.fails is not None:
            self._service.failed(job.id, self.fails)
            return
        files = self._service.store.files
        ids = [new_id() for _ in range(job.pictures)]
        told = []
        for each in ids:
            body = _picture(job, job.options.form)
            (files.folder / f"{each}{SUFFIXES[job.options.form]}").write_bytes(body)
            told.append({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})
        self._service.saved(job.id, ids, told)


def waits(service: Service) -> int:
    """How many jobs wait."""
    return service.store.jobs.count(Status.STARTING)


def _picture(job: Job, form: str) -> bytes:
    stream = io.BytesIO()
    height, width = (side * 8 for side in job.demand["latents"])
    PIL.Image.new("RGB", (width, height), (job.seeds[0] % 256, 20, 200)).save(stream, form)
    return stream.getvalue()


def _base64(body: bytes) -> str:
    import base64

    return base64.b64encode(body).decode()
