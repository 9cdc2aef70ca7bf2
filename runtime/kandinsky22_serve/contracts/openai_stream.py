"""Server-sent events of OpenAI's images API: partial pictures, then the pictures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import PIL.Image

from kandinsky22.images import writing
from kandinsky22_serve.contracts import waiting
from kandinsky22_serve.contracts.openai_schemas import Event, Usage
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Progress, Service
from kandinsky22_serve.store.records import File, Job

QUIET_SECONDS = 15.0
"""After which a comment is sent, so that no proxy takes the stream for dead."""


async def events(service: Service, job: Job, kind: str, partial: int) -> AsyncIterator[str]:
    """Events of a job until it has ended: up to `partial` pictures of its unfinished state, then its pictures.

    `kind` is what their names begin with. A job that ends otherwise gives an error event.
    """
    told = _Partial(service, job, kind, partial)
    changes = service.follow(job.id, waiting.MOST_SECONDS + 10)
    async with contextlib.aclosing(_pinged(changes)) as found:
        async for each in found:
            if each is None:
                yield ": waiting\n\n"
            elif each.status.is_terminal:
                async for last in _ended(service, each, kind):
                    yield last
            elif (event := await told.next(service.progress(job.id))) is not None:
                yield event


class _Partial:
    """Partial pictures: the first as soon as there is one, the others at equal shares of the steps."""

    def __init__(self, service: Service, job: Job, kind: str, most: int) -> None:
        self._service, self._job, self._kind, self._most = service, job, kind, most
        self._sent = self._seen = 0

    async def next(self, progress: Progress | None) -> str | None:
        """The event of the newest preview, where it is its turn."""
        if progress is None or progress.preview is None or self._sent == self._most or progress.previews <= self._seen:
            return None
        if progress.step * self._most < self._sent * progress.steps:
            return None
        self._seen = progress.previews
        form, quality = self._job.options.form, self._job.options.quality
        body = await asyncio.to_thread(_in_form, progress.preview, form, quality)
        event = _event(self._service, self._job, f"{self._kind}.partial_image", body, partial_image_index=self._sent)
        self._sent += 1
        return event


async def _ended(service: Service, job: Job, kind: str) -> AsyncIterator[str]:
    """An event for each picture of a job that has ended, or the error that it has ended with."""
    try:
        waiting.require_success(job)
    except Problem as problem:
        code = "server_error" if problem.status >= 500 else "invalid_request_error"
        error = {"type": code, "code": None, "message": problem.detail, "param": None}
        yield _written("error", {"type": "error", "error": error})
        return
    for file in await asyncio.to_thread(service.outputs, job):
        body = await asyncio.to_thread(service.store.files.path(file).read_bytes)
        yield _event(service, job, f"{kind}.completed", body, usage=Usage())


def size_of(service: Service, job: Job) -> str:
    """Of a job's pictures, as "WIDTHxHEIGHT": sides that were asked for are rounded up."""
    height, width = (side * service.manifest.downscale for side in job.demand["latents"])
    return f"{width}x{height}"


def base64_of(service: Service, file: File) -> str:
    """The bytes of a picture. Raises OSError where it has just expired."""
    return base64.b64encode(service.store.files.path(file).read_bytes()).decode()


def _in_form(png: bytes, form: str, quality: int) -> bytes:
    """A preview in the format that the pictures will have."""
    if form == "png":
        return png
    with PIL.Image.open(io.BytesIO(png)) as picture:
        return writing.encode(picture.convert("RGB"), form, {}, quality=quality)


def _event(service: Service, job: Job, name: str, body: bytes, **more: Any) -> str:
    event = Event(
        type=name,
        b64_json=base64.b64encode(body).decode(),
        created_at=int(time.time()),
        size=size_of(service, job),
        output_format=job.options.form,
        **more,
    )
    return _written(name, event.model_dump(exclude_none=True))


def _written(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _pinged(changes: AsyncIterator[Job]) -> AsyncGenerator[Job | None, None]:
    """What comes, and None whenever nothing has come for a while."""
    coming = asyncio.ensure_future(anext(changes, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=QUIET_SECONDS)
            if not done:
                yield None
                continue
            found = coming.result()
            if found is None:
                return
            coming = asyncio.ensure_future(anext(changes, None))
            yield found
    finally:
        coming.cancel()
