"""The engine's own process: a `Pipeline`, one batch of jobs at a time, pictures written as they are finished.

Started as `python -m kandinsky22_serve.engine.worker`; it reads its settings and then batches from standard input, and
ends the moment that input ends: a server that dies takes its engine along.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from kandinsky22 import Cancelled, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.callbacks import Callbacks
from kandinsky22.errors import BundleError, KandinskyError
from kandinsky22.files import write_file
from kandinsky22.images import writing
from kandinsky22.machine import resident_memory
from kandinsky22.pipeline import Output
from kandinsky22.request.job import Job
from kandinsky22.request.merge import merged
from kandinsky22.request.request import Request
from kandinsky22_serve import logs
from kandinsky22_serve.engine.messages import Descriptor, Lines, Sender, messages

log = logging.getLogger(__name__)

NICE = 19
"""How much the engine stands back, so that the server answers while it computes."""
PREVIEW_SECONDS = 0.25
"""Least time between two previews of a batch."""
PREVIEW_SIDE = 512
"""Pixels of a preview's longer side, at most."""
_MOST_UNSAVED = 2
"""Batches whose pictures wait to be written: where the disk is slower than the engine, the engine waits."""


@dataclass
class Asked:
    """One job of a batch: `outputs` are paths of its picture files, in order.

    `first` is the place of its first picture in the batch; `dropped` says that its pictures are no longer computed.
    """

    id: str
    job: Job
    outputs: list[Path]
    form: str
    quality: int
    previews: bool
    first: int = 0
    dropped: bool = False


@dataclass
class Batch:
    """Jobs that run together. Every callback sees the pictures of those that were not dropped, in order."""

    jobs: list[Asked]
    unwanted: frozenset[str] = frozenset()
    timings: dict[str, float] = field(default_factory=dict)
    step: int = 0
    shown: float = 0.0
    stage: str = ""
    stepped: float = 0.0
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        first = 0
        for each in self.jobs:
            each.first = first
            first += len(each.job.seeds)

    def computed(self) -> list[Asked]:
        """Jobs whose pictures are computed still."""
        return [each for each in self.jobs if not each.dropped]

    def count_step(self, stage: str, steps: int) -> None:
        """A step is done; `steps` are those of the batch. The quickest tells what one takes: others wait or compile."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.step_seconds = stage, 0.0
        else:
            took = now - self.stepped
            self.step_seconds = min(self.step_seconds or took, took)
        self.step, self.stepped = min(self.step + 1, steps), now


class Worker:
    """Runs batches, one after the other, and tells the server how they go."""

    def __init__(self, pipeline: Pipeline, sender: Sender) -> None:
        self._pipeline, self._sender = pipeline, sender
        self._canceled: set[str] = set()
        self._compile_seconds = 0.0
        """What a run on shapes that are new spends on loading and compiling, by the last that was seen."""
        self._saving: queue.Queue[tuple[Output, Batch]] = queue.Queue(_MOST_UNSAVED)
        threading.Thread(target=self._save_all, name="save", daemon=True).start()

    def cancel(self, jobs: Sequence[str]) -> None:
        """From the thread that listens: these jobs are left out, of the batch that runs from its next step on."""
        self._canceled.update(jobs)

    def run(self, number: int, jobs: Sequence[Mapping[str, Any]]) -> None:
        """One batch. What fails for one job fails for it alone."""
        wanted = [job for job in jobs if job["id"] not in self._canceled]
        asked = [each for each in (self._resolved(job) for job in wanted) if each is not None]
        batch = Batch(asked)
        if asked:
            self._attempt(batch)
        self._canceled.difference_update([job["id"] for job in jobs])
        self._sender.send("ready", batch=number, timings=batch.timings, resident=resident_memory())

    def _attempt(self, batch: Batch) -> None:
        """Denoise a batch. Where that fails, each of its jobs is tried alone: one must not take the others along."""
        try:
            self._denoise(batch)
        except Cancelled:
            pass  # nothing of the batch is wanted any more
        except (KandinskyError, MemoryError, OSError) as error:
            left = batch.computed()
            if len(left) == 1:
                self._fail(left[0], error)
                return
            log.warning("a batch of %d jobs failed, and each is tried alone: %s", len(left), _sentence(error))
            for each in left:
                self._attempt(Batch([each]))

    def _resolved(self, job: Mapping[str, Any]) -> Asked | None:
        try:
            resolved = self._pipeline.resolve(Request.from_json(job["request"]))
        except (KandinskyError, OSError) as error:
            self._sender.send("failed", job=job["id"], error=_sentence(error))
            return None
        return Asked(
            job["id"], resolved, [Path(each) for each in job["outputs"]], job["form"], job["quality"], job["previews"]
        )

    def _denoise(self, batch: Batch) -> None:
        jobs = [each.job for each in batch.jobs]
        whole = jobs[0] if len(jobs) == 1 else merged(jobs)
        steps = whole.steps
        callbacks = Callbacks(
            self._pipeline,
            on_step=lambda _, step, __, tensors: self._after(batch, "decoder", steps, tensors),
            on_prior_step=lambda _, step, __, tensors: self._after(batch, "prior", steps, tensors),
        )
        output = self._pipeline.pictures(whole, callbacks)
        self._compile_seconds = output.timings.get("load", self._compile_seconds)
        batch.timings = output.timings
        batch.unwanted = frozenset(self._canceled)
        self._saving.put((output, batch))

    def _after(self, batch: Batch, stage: str, steps: int, tensors: Mapping[str, Array]) -> None:
        """After each step: tell of it, and leave out who was canceled."""
        batch.count_step(stage, steps)
        jobs = [each.id for each in batch.computed()]
        self._sender.send("step", jobs=jobs, stage=stage, step=batch.step, steps=steps)
        self._leave_out_canceled(batch, steps)
        if stage == "decoder" and time.monotonic() - batch.shown >= PREVIEW_SECONDS:
            self._show(batch, tensors["x0"])

    def _leave_out_canceled(self, batch: Batch, steps: int) -> None:
        """Raise Cancelled for the pictures of jobs that were canceled, if that pays; the server is told.

        A backend that compiles for shapes compiles for the pictures that stay: near the end of a batch, or in a small
        network, the others are done sooner when those that nobody wants are computed beside them.
        """
        leaving = [each for each in batch.computed() if each.id in self._canceled]
        if not leaving:
            return
        pictures = sum(len(each.job.seeds) for each in batch.computed())
        share = sum(len(each.job.seeds) for each in leaving) / pictures
        saved = share * batch.step_seconds * (steps - batch.step)
        if share < 1 and saved <= self._compile_seconds:
            return
        for each in leaving:
            each.dropped = True
            self._sender.send("stopped", job=each.id)
        places = [place for each in leaving for place in range(each.first, each.first + len(each.job.seeds))]
        raise Cancelled(places if share < 1 else None)

    def _show(self, batch: Batch, latents: Array) -> None:
        """Previews of the jobs that asked for some: their first pictures."""
        place = 0
        for each in batch.computed():
            if each.previews:
                batch.shown = time.monotonic()
                height, width = (side * self._pipeline.bundle.manifest.downscale for side in latents.shape[2:])
                try:
                    (picture,) = self._pipeline.preview(np.asarray(latents[place : place + 1]))
                except BundleError:  # of an older exporter: it has no previews, and pictures all the same
                    return
                self._sender.send("preview", job=each.id, png=_png(picture, height, width))
            place += len(each.job.seeds)

    def _save_all(self) -> None:
        """Encode and write pictures while the next batch is computed."""
        while True:
            output, batch = self._saving.get()
            place = 0
            for each in batch.computed():
                count = len(each.job.seeds)
                try:
                    if each.id not in batch.unwanted:
                        self._save(each, output, slice(place, place + count))
                except Exception as error:
                    self._fail(each, error)
                place += count

    def _save(self, asked: Asked, output: Output, of: slice) -> None:
        told = []
        data = asked.job.request.data()
        for path, picture, seed in zip(asked.outputs, output.images[of], output.seeds[of], strict=True):
            assert isinstance(picture, PIL.Image.Image)
            body = writing.encode(picture, asked.form, _parameters(data, seed), quality=asked.quality)
            write_file(path, body)
            told.append({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})
        self._sender.send("saved", job=asked.id, files=told, timings=output.timings)

    def _fail(self, asked: Asked, error: BaseException) -> None:
        if not isinstance(error, KandinskyError | MemoryError | OSError):
            log.exception("job %s", asked.id)
        self._sender.send("failed", job=asked.id, error=_sentence(error))


def _parameters(data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How a picture was made, as it is stored in the file: without the server's paths."""
    plain = {name: value for name, value in data.items() if isinstance(value, str | int | float | bool)}
    return {**plain, "seed": seed}


def _sentence(error: BaseException) -> str:
    if isinstance(error, KandinskyError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory; ask for a smaller picture or fewer."
    if isinstance(error, OSError):
        return f"The pictures could not be written ({error.strerror or type(error).__name__})."
    return f"The engine failed ({type(error).__name__}); the server's log has more."


def _png(picture: PIL.Image.Image, height: int, width: int) -> str:
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    stream = io.BytesIO()
    resized = picture.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.BICUBIC)
    resized.save(stream, "png", compress_level=1)
    return base64.b64encode(stream.getvalue()).decode()


def main() -> int:
    """Read settings, then batches, from standard input."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)  # the server hears them too, and ends the engine when it is ready to
    incoming, outgoing = _streams()
    sender = Sender(outgoing)
    logs.begin()
    told = messages(incoming)
    settings = next(told, None)
    if settings is None:
        return 0
    work: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    workers: list[Worker] = []
    threading.Thread(target=_listen, args=(told, work, workers), name="listen", daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        pipeline = Pipeline.load(
            settings["bundle"],
            settings["backend"],
            precision=settings["precision"],
            threads=settings["threads"],
            low_memory=settings["low_memory"],
            memory_limit=settings["memory_limit"],
        )
        found = pipeline.backend
    except (KandinskyError, OSError) as error:
        sender.send("broken", error=str(error))
        return 1
    worker = Worker(pipeline, sender)
    workers.append(worker)
    name = "" if found.gpu else found.name
    sender.send("loaded", backend=found.name, version=found.version, precision=pipeline.precision, cost=name)
    while True:
        message = work.get()
        worker.run(message["batch"], message["jobs"])


def _listen(told: Any, work: queue.SimpleQueue[Mapping[str, Any]], workers: list[Worker]) -> None:
    """Take messages while a batch runs. When the server is gone the process ends at once: nobody waits for it."""
    for message in told:
        if message["kind"] == "run":
            work.put(message)
        elif message["kind"] == "cancel" and workers:
            workers[0].cancel(message["jobs"])
    os._exit(0)


def _streams() -> tuple[Lines, BinaryIO]:
    """Standard input and output for messages alone: what a library prints goes to standard error."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return Descriptor(0), outgoing


if __name__ == "__main__":
    sys.exit(main())
