"""Keeps one engine running: hands it batches, hears how they go, and starts another when it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kandinsky22 import memory
from kandinsky22.bundle.manifest import Manifest
from kandinsky22_serve.engine.batches import Room, next_batch
from kandinsky22_serve.engine.messages import Sender, messages
from kandinsky22_serve.settings import Settings
from kandinsky22_serve.store.jobs import Jobs
from kandinsky22_serve.store.records import Job, new_id

log = logging.getLogger(__name__)

MOST_DEATHS = 4
"""Engines that may die while a job runs alone before it has failed. Fewer would do for jobs that crash an engine; but
what kills engines for other reasons (an operator, the system when memory is short) often comes in storms."""
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before the next engine is started, by how many have died in a row without finishing a batch."""
_PATIENCE = 10.0
"""Seconds that an engine gets to end when it is told to."""


class Listener(Protocol):
    """Who hears of jobs. Called from the supervisor's threads."""

    def started(self, jobs: Sequence[Job]) -> None:
        """These run now."""

    def stepped(self, jobs: Sequence[str], stage: str, step: int, steps: int) -> None:
        """A step of a batch is done."""

    def previewed(self, job: str, png: str) -> None:
        """A picture of an unfinished state, as base64."""

    def saved(self, job: str, outputs: Sequence[str], files: Sequence[Mapping[str, Any]]) -> None:
        """The pictures of a job are on the disk, under the ids `outputs`."""

    def failed(self, job: str, error: str) -> None:
        """A job cannot be done."""

    def died(self, jobs: Sequence[Job]) -> None:
        """The engine died while it ran these."""

    def computed(self, pictures: int, timings: dict[str, float], resident: int) -> None:
        """A batch is computed: seconds by stage, and the engine's memory in bytes."""

    def changed(self) -> None:
        """The engine's state is another."""


class Supervisor:
    """One engine process, and its batches.

    `state` is "starting", "ready", "busy", "broken" (it cannot load the bundle; `why` says it) or "closed".
    """

    def __init__(self, settings: Settings, manifest: Manifest, jobs: Jobs, folder: Path, listener: Listener) -> None:
        """`folder` is where picture files go."""
        self._settings, self._manifest, self._jobs, self._folder = settings, manifest, jobs, folder
        self._listener = listener
        self.state, self.why = "closed", ""
        self.engine: Mapping[str, Any] = {}
        """What the engine said of itself: backend, version, precision."""
        self.loaded: float | None = None
        """When the first engine had loaded the bundle, in Unix seconds."""
        self.restarts = 0
        self._wake = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._sender: Sender | None = None
        self._batch: list[Job] = []
        self._outputs: dict[str, list[str]] = {}
        self._number, self._barren = 0, 0
        self._closing, self._asked = False, True
        self._threads = [threading.Thread(target=each, name=each.__name__) for each in (self._watch, self._feed)]

    @property
    def pid(self) -> int | None:
        """Of the engine's process, while there is one."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Start the engine, and go on starting it."""
        self._set("starting")
        for each in self._threads:
            each.start()

    def wake(self) -> None:
        """A job waits."""
        with self._wake:
            self._asked = True
            self._wake.notify_all()

    def cancel(self, jobs: Sequence[str]) -> None:
        """Take jobs out of the batch that runs, within a step."""
        with self._wake:
            sender = self._sender if any(each.id in jobs for each in self._batch) else None
        if sender is not None:
            with contextlib.suppress(OSError, ValueError):  # it has just died
                sender.send("cancel", jobs=list(jobs))

    def close(self) -> None:
        """End the engine. What ran waits again: the next server runs it."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        for each in self._threads:
            if each.is_alive():
                each.join(_PATIENCE)
        self._set("closed")

    def _set(self, state: str, why: str = "") -> None:
        self.state, self.why = state, why
        self._listener.changed()

    def _watch(self) -> None:
        """One engine after the other."""
        while not self._closing:
            self._run_engine()
            if self._closing:
                break
            self._bury()
            pause = _PAUSES[min(self._barren, len(_PAUSES) - 1)]
            self._pause(pause)
        self._put_back(died=False)

    def _run_engine(self) -> None:
        """One engine from its start to its end."""
        settings = self._settings
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "kandinsky22_serve.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        sender = Sender(process.stdin)
        with self._wake:
            self._process = process
        try:
            with contextlib.suppress(OSError):
                sender.send(
                    "settings",
                    bundle=str(settings.bundle.absolute()),
                    backend=settings.backend,
                    precision=settings.precision,
                    threads=settings.threads,
                    low_memory=settings.low_memory,
                    memory_limit=settings.memory_limit,
                )
            for message in messages(process.stdout):
                self._hear(message, sender)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            code = process.wait()
            with self._wake:
                self._process = self._sender = None
        if not self._closing:
            log.warning("the engine ended with %s", code)

    def _hear(self, message: Mapping[str, Any], sender: Sender) -> None:
        """One message of the engine."""
        kind = message["kind"]
        if kind == "step":
            self._listener.stepped(message["jobs"], message["stage"], message["step"], message["steps"])
        elif kind == "preview":
            self._listener.previewed(message["job"], message["png"])
        elif kind == "saved":
            self._listener.saved(message["job"], self._outputs.pop(message["job"], []), message["files"])
        elif kind == "failed":
            self._outputs.pop(message["job"], None)
            self._listener.failed(message["job"], message["error"])
        elif kind == "stopped":
            self._outputs.pop(message["job"], None)
        elif kind == "ready":
            self._finished(message)
        elif kind == "loaded":
            self.loaded = self.loaded or time.time()
            self.engine = {name: message[name] for name in ("backend", "version", "precision", "cost")}
            log.info("the engine runs %s %s in %s", message["backend"], message["version"], message["precision"])
            self._idle(sender)
        elif kind == "broken":
            log.error("the engine cannot start: %s", message["error"])
            self._set("broken", message["error"])

    def _finished(self, message: Mapping[str, Any]) -> None:
        """A batch is computed; its pictures may still be on their way to the disk."""
        self._barren = 0
        pictures = sum(job.pictures for job in self._batch)
        self._listener.computed(pictures, message["timings"], int(message["resident"]))
        assert self._sender is not None
        self._idle(self._sender)

    def _idle(self, sender: Sender) -> None:
        with self._wake:
            self._sender, self._batch = sender, []
            self._set("ready")
            self._wake.notify_all()

    def _bury(self) -> None:
        """What a dead engine leaves: its jobs wait again."""
        self.restarts += 1
        self._barren += 1
        if self.state != "broken":
            self._set("starting")
        self._put_back(died=True)

    def _put_back(self, *, died: bool) -> None:
        with self._wake:
            self._batch = []
            self._outputs.clear()
        running = self._jobs.running()
        self._jobs.put_back([job.id for job in running], died=died)
        if died and running:
            self._listener.died([each for job in running if (each := self._jobs.get(job.id)) is not None])

    def _feed(self) -> None:
        """Batches to an engine that waits for one."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or (self._asked and self.state == "ready"))
                if self._closing:
                    return
                self._asked = False
            try:
                self._asked = self._hand_out() or self._asked
            except sqlite3.Error:  # a full disk, most often: the jobs wait until it is not
                log.exception("the queue cannot be written")
                self._asked = not self._pause(1.0)

    def _pause(self, seconds: float) -> bool:
        """Wait; True where the server is being closed."""
        with self._wake:
            return self._wake.wait_for(lambda: self._closing, seconds)

    def _hand_out(self) -> bool:
        """Give the engine the next batch; False where none waits."""
        chosen = next_batch(self._jobs, self._room())
        started = self._jobs.start([job.id for job in chosen])
        if not started:
            return bool(chosen)  # canceled in between: others may wait
        with self._wake:
            sender = self._sender
            if sender is None:  # it died in between
                self._jobs.put_back([job.id for job in started], died=False)
                return True
            self._number += 1
            self._batch = started
            self._outputs.update({job.id: [new_id() for _ in range(job.pictures)] for job in started})
            self._set("busy")
        self._listener.started(started)
        told = [self._told(job) for job in started]
        with contextlib.suppress(OSError, ValueError):  # it died: the jobs are put back where that is noticed
            sender.send("run", batch=self._number, jobs=told)
            canceled = [job.id for job in started if (now := self._jobs.get(job.id)) and now.status.is_terminal]
            if canceled:
                sender.send("cancel", jobs=canceled)
        return True

    def _told(self, job: Job) -> dict[str, Any]:
        """A job as the engine is told it."""
        options = job.options
        suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[options.form]
        outputs = [str((self._folder / f"{each}{suffix}").absolute()) for each in self._outputs[job.id]]
        return {
            "id": job.id,
            "request": job.request,
            "outputs": outputs,
            "form": options.form,
            "quality": options.quality,
            "previews": options.previews,
        }

    def _room(self) -> Room:
        settings = self._settings
        cost = memory.COSTS.get((str(self.engine.get("cost")), str(self.engine.get("precision"))))
        limit = memory.limit(settings.memory_limit)
        return Room(self._manifest, settings.max_batch, cost, limit, settings.low_memory)
