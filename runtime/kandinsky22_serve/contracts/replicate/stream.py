"""A prediction as server-sent events, at its `urls.stream`: lines of logs, pictures, the end.

The address has a secret of its own, since the JavaScript client sends no token there.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import StreamingResponse

from kandinsky22_serve.contracts.base import base_of
from kandinsky22_serve.contracts.replicate.errors import problems
from kandinsky22_serve.contracts.replicate.prediction import CONTRACT, prediction
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Job, Status

BEAT_SECONDS = 10.0
"""Between two signs of life, where nothing else is sent; clients give up after 30."""
_REASONS = {Status.FAILED: {"reason": "error"}, Status.CANCELED: {"reason": "canceled"}}


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()
    described: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @routes.get("/files/stream/{id}/{key}", response_class=StreamingResponse, responses=described | problems(404))
    async def stream(request: Request, id: str, key: str) -> StreamingResponse:
        """Events `logs`, `output` (an address each), `error` and `done`, from the first one on."""
        job = await asyncio.to_thread(service.job, id)
        known = "" if job is None or job.contract != CONTRACT else str(job.options.extra["stream"])
        if not hmac.compare_digest(known.encode(), key.encode("utf-8", "surrogatepass")):
            raise Problem(404, "There is no such stream.")
        events = _events(service, id, base_of(service, request))
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return routes


async def _events(service: Service, id: str, base: str) -> AsyncIterator[str]:
    number, sent, found = 0, 0, True
    while found:
        found = False
        async for job in service.follow(id, BEAT_SECONDS):
            found = True
            logs = service.logs(job)
            if len(logs) < sent:  # it is run again
                sent = 0
            if len(logs) > sent:
                number += 1
                yield _event("logs", logs[sent:], number)
                sent = len(logs)
            if job.status.is_terminal:
                for kind, data in await asyncio.to_thread(_end, service, job, base):
                    number += 1
                    yield _event(kind, data, number)
                return
        yield ": waiting\n\n"


def _end(service: Service, job: Job, base: str) -> list[tuple[str, str]]:
    """The last events: kinds and data."""
    found = [("output", each) for each in prediction(service, job, base).output or ()]
    if job.status is Status.FAILED:
        found.append(("error", job.error or ""))
    return [*found, ("done", json.dumps(_REASONS.get(job.status, {})))]


def _event(kind: str, data: str, number: int) -> str:
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"event: {kind}\nid: {number}\n{lines}\n"
