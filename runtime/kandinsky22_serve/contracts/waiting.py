"""Answers that wait for a job: what they wait for is canceled when their reader leaves."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Job, Status

MOST_SECONDS = 3600.0
"""That an answer waits; the job has this as its deadline."""
_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients send again what was answered with 409 or 5xx, unless told not to: the same would come of it."""


def require_engine(service: Service) -> None:
    """Raise Problem (503) where no answer can be waited for: the engine cannot load its bundle."""
    if service.supervisor.state == "broken":
        raise Problem(503, "The engine cannot start; the server's log has more.", {"Retry-After": "60"})


async def ended(service: Service, request: Request, job: Job) -> Job:
    """The job when it has ended. Raises Problem, the job canceled, where the client leaves before.

    The body of `request` was read.
    """
    waiting = asyncio.ensure_future(service.wait(job.id, MOST_SECONDS + 10))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.to_thread(service.cancel, job.id)
            raise Problem(408, "The client has left.")  # nobody reads it
        return waiting.result() or job
    finally:
        waiting.cancel()
        leaving.cancel()


def require_success(job: Job) -> None:
    """Raise Problem where a job that has ended has no pictures."""
    if job.status is Status.FAILED:
        raise Problem(500, job.error or "The job has failed.", _NO_RETRY)
    if job.status is not Status.SUCCEEDED:
        raise Problem(409, "The job was canceled before it was done.", _NO_RETRY)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
