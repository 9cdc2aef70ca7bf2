"""Predictions: made, waited for, listed, canceled."""

# The annotations are read when the routes are made, and name models that are made then (no `from __future__`).

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.requests import Request

from kandinsky22_serve.contracts.base import base_of, submit
from kandinsky22_serve.contracts.replicate.errors import problems
from kandinsky22_serve.contracts.replicate.names import Names, names
from kandinsky22_serve.contracts.replicate.pages import Page, page
from kandinsky22_serve.contracts.replicate.prediction import CONTRACT, Prediction, prediction
from kandinsky22_serve.inputs import input_model
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Job, Options, Status, Webhook, new_id

LONGEST_WAIT = 59.0
"""Seconds until `Prefer: wait` is answered; the Python client gives up after 60.5."""
_LARGEST_KEY = 2**62
_DURATION = re.compile(r"(?:([0-9]{1,6}(?:\.[0-9]{1,3})?)h)?(?:([0-9]{1,6}(?:\.[0-9]{1,3})?)m)?"
                       r"(?:([0-9]{1,6}(?:\.[0-9]{1,3})?)s?)?")  # fmt: skip

Event = Literal["start", "output", "logs", "completed"]


class NewPrediction(BaseModel):
    """What clients send beside `input`; whatever else they send is refused."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    webhook: str | None = Field(None, description="Where events go: an address that begins with http:// or https://")
    webhook_completed: str | None = Field(None, description="Of old clients: where the end alone goes")
    webhook_events_filter: list[Event] | None = Field(
        None, description="Events that are sent; by default output and completed", max_length=16
    )
    stream: bool | None = Field(None, description="Of old clients, and of no effect: every prediction can be streamed")

    def hook(self) -> Webhook | None:
        """The webhook that was asked for."""
        if self.webhook is None:
            return None if self.webhook_completed is None else Webhook(self.webhook_completed, ("completed",))
        if self.webhook_events_filter is None:
            return Webhook(self.webhook)
        return Webhook(self.webhook, tuple(dict.fromkeys(self.webhook_events_filter)))


def seconds_to_wait(prefer: str | None) -> float:
    """Seconds that `Prefer: wait` or `wait=n` asks for, within what is possible; 0 where nothing is to be waited for.

    What is none of these is passed over: it is a preference.
    """
    for each in (prefer or "").lower().replace(";", ",").split(","):
        name, _, value = each.strip().partition("=")
        if name.strip() == "wait":
            value = value.strip().strip('"')
            return min(float(value), LONGEST_WAIT) if re.fullmatch("[0-9]{1,9}", value) else LONGEST_WAIT
    return 0.0


def lifetime(cancel_after: str | None) -> float | None:
    """Seconds of a `Cancel-After` header: 90, 90s, 1m, 1h30m. Raises Problem where it is none of these."""
    if cancel_after is None:
        return None
    found = _DURATION.fullmatch(cancel_after.strip().lower())
    parts = found.groups(default="0") if found and found[0] else ("0", "0", "0")
    seconds = sum(float(part) * factor for part, factor in zip(parts, (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise Problem(422, "Cancel-After is no duration; expected one such as 90s, 15m or 1h30m.")
    return seconds


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    ours = names(service)
    inputs = input_model(service.manifest)
    body = create_model("ModelPredictionRequest", __base__=NewPrediction, input=(inputs, ...))
    versioned = create_model("VersionedPredictionRequest", __base__=body, version=(str, ...))
    prefer_header = Annotated[str | None, Header(description="wait, or wait=n with n seconds: answer at the end")]
    after_header = Annotated[str | None, Header(description="A deadline: 90s, 15m, 1h30m")]

    @routes.post("/predictions", status_code=201, responses=problems(429))
    async def create(
        request: Request,
        asked: versioned,  # type: ignore[valid-type]
        prefer: prefer_header = None,
        cancel_after: after_header = None,
    ) -> Prediction:
        """Make pictures. `version` is a version's id, owner/name:id, or owner/name."""
        if not ours.is_ours(asked.version):  # type: ignore[attr-defined]
            raise Problem(422, f"There is no such version; this server has {ours.model}:{ours.version}.")
        return await _create(service, ours, request, asked, prefer, cancel_after)

    @routes.post("/models/{owner}/{name}/predictions", status_code=201, responses=problems(404, 429))
    async def create_of_model(
        request: Request,
        owner: str,
        name: str,
        asked: body,  # type: ignore[valid-type]
        prefer: prefer_header = None,
        cancel_after: after_header = None,
    ) -> Prediction:
        """Make pictures with the newest version of a model."""
        ours.require(owner, name)
        return await _create(service, ours, request, asked, prefer, cancel_after)

    @routes.get("/predictions", responses=problems())
    async def listed(request: Request, cursor: str | None = None) -> Page[Prediction]:
        """The predictions, the newest first."""
        return await asyncio.to_thread(_page, service, base_of(service, request), cursor)

    @routes.get("/predictions/{id}", responses=problems(404))
    async def get(request: Request, id: str) -> Prediction:
        """A prediction as it is now."""
        return await asyncio.to_thread(_found, service, base_of(service, request), id)

    @routes.post("/predictions/{id}/cancel", responses=problems(404))
    async def cancel(request: Request, id: str) -> Prediction:
        """End a prediction; one that has ended stays as it is."""

        def canceled() -> Prediction:
            base = base_of(service, request)
            _found(service, base, id)
            service.cancel(id)
            return _found(service, base, id)

        return await asyncio.to_thread(canceled)

    return routes


async def _create(
    service: Service, ours: Names, request: Request, asked: Any, prefer: str | None, cancel_after: str | None
) -> Prediction:
    wait, began = seconds_to_wait(prefer), time.monotonic()
    seconds = lifetime(cancel_after)
    given = asked.input
    options = Options(
        given.output_format,
        given.output_quality,
        given.output == "data-uri",
        webhook=asked.hook(),
        base=base_of(service, request),
        extra={"model": ours.model, "version": ours.version, "stream": new_id()},
    )
    shown = given.model_dump(exclude_unset=True)
    job = await submit(service, CONTRACT, given, options, shown=shown, seconds=seconds)
    if wait:
        job = await service.wait(job.id, max(0.0, wait - (time.monotonic() - began))) or job
    made = await asyncio.to_thread(prediction, service, job, options.base)
    if wait and not job.status.is_terminal:
        # Clients take "processing" for the end, with no pictures; at "starting" they go on to poll.
        made.status = Status.STARTING.value
    return made


def _page(service: Service, base: str, cursor: str | None) -> Page[Prediction]:
    jobs = service.store.jobs

    def older(limit: int, key: str | None) -> Sequence[Job]:
        return jobs.newest(limit, None if key is None else _seq(key), (CONTRACT,))

    return page(
        cursor,
        f"{base}/v1/predictions",
        older=older,
        newer=lambda limit, key: jobs.newer(limit, _seq(key), (CONTRACT,)),
        key=lambda job: str(job.seq),
        shown=lambda job: prediction(service, job, base),
    )


def _seq(key: str) -> int:
    number = int(key)
    if not 0 <= number <= _LARGEST_KEY:
        raise ValueError
    return number


def _found(service: Service, base: str, id: str) -> Prediction:
    job = service.job(id)
    if job is None or job.contract != CONTRACT:
        raise Problem(404, "There is no such prediction.")
    return prediction(service, job, base)
