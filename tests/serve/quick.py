"""An engine that paints nothing: jobs end at once, with a small picture for each; for tests of the contracts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import PIL.Image
import uvicorn

from kandinsky22_serve.app import create_app
from kandinsky22_serve.engine.supervisor import Supervisor
from kandinsky22_serve.service import Service
from kandinsky22_serve.settings import Settings
from kandinsky22_serve.store.records import Job, Status, new_id

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class QuickEngine:
    """Stands in the place of a service's supervisor. `hold` keeps jobs waiting; `fails` is what they fail with.

    `steps` are told before a job ends, with a preview each where it asked for some. `most_side` bounds its pictures.
    """

    def __init__(self, service: Service, *, steps: int = 0, fails: str | None = None) -> None:
        self.state, self.why, self.restarts = "closed", "", 0
        self.engine: Mapping[str, Any] = {}
        self.loaded: float | None = None
        self.pid = None
        self.hold = threading.Event()
        self.steps, self.step_seconds, self.fails = steps, 0.0, fails
        self.most_side = 4096
        self.canceled: list[str] = []
        self._service, self._turn = service, threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self.set("starting")
        self.loaded = time.time()
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
                self._service.previewed(job.id, _base64(self._picture(job, "png")))
            time.sleep(self.step_seconds)
        if self.fails is not None:
            self._service.failed(job.id, self.fails)
            return
        files = self._service.store.files
        ids = [new_id() for _ in range(job.pictures)]
        told = []
        for each in ids:
            body = self._picture(job, job.options.form)
            (files.folder / f"{each}{SUFFIXES[job.options.form]}").write_bytes(body)
            told.append({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})
        self._service.saved(job.id, ids, told)

    def _picture(self, job: Job, form: str) -> bytes:
        stream = io.BytesIO()
        height, width = (min(self.most_side, side * 8) for side in job.demand["latents"])
        PIL.Image.new("RGB", (width, height), (job.seeds[0] % 256, 20, 200)).save(stream, form)
        return stream.getvalue()


class Serving(NamedTuple):
    """A server in a thread of this process, with its engine."""

    base: str
    service: Service
    engine: QuickEngine

    def newest(self) -> Job | None:
        """The job that was accepted last."""
        found = self.service.store.jobs.newest(1)
        return found[0] if found else None

    def wait_until(self, status: Status, seconds: float = 20) -> Job:
        """The newest job when it has that status."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.newest()
            if job is not None and job.status is status:
                return job
            time.sleep(0.01)
        raise TimeoutError(f"the newest job is {job and job.status}, not {status}")

    def wait_until_told(self, job: Job, seconds: float = 20) -> None:
        """Wait until the engine is told that a job is canceled."""
        deadline = time.monotonic() + seconds
        while job.id not in self.engine.canceled:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextlib.contextmanager
def serving(bundle: Path, data: Path, tokens: Sequence[bytes] = (), **settings: Any) -> Iterator[Serving]:
    """A server with a quick engine and no page, that real clients reach."""
    service = Service(Settings(bundle=bundle, data=data, **{"ui": False, **settings}))
    engine = QuickEngine(service)
    service.supervisor = cast(Supervisor, engine)
    config = uvicorn.Config(create_app(service, tokens), port=0, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Serving(f"http://127.0.0.1:{port}", service, engine)
    finally:
        server.should_exit = True
        thread.join(30)


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode()
