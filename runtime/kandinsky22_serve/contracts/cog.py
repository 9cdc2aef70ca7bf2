"""Cog's HTTP API: predictions that are waited for, or called back; and how the server is."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kandinsky22_serve.contracts import base, cog_schemas, waiting
from kandinsky22_serve.contracts.cog_health import Watch, iso
from kandinsky22_serve.contracts.cog_schemas import Health, Index, PredictionResponse
from kandinsky22_serve.contracts.index import IndexRoute
from kandinsky22_serve.inputs import input_model
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.jobs import QueueFullError
from kandinsky22_serve.store.records import File, Job, Options, Webhook

_Id = Annotated[str, Path(pattern=cog_schemas.PREDICTION_ID)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": PredictionResponse, "description": "It has ended"},
    202: {"model": PredictionResponse, "description": "It is accepted, or runs"},
}


def router(service: Service) -> APIRouter:
    """The routes. Cog's `POST /shutdown` is not among them: who may ask for pictures may not end the server."""
    routes = APIRouter(tags=["Cog"])
    predictions, watch = Predictions(service), Watch(service)

    async def create(request: Request, body: Any = None) -> Response:
        """Make a prediction and wait for it; with `Prefer: respond-async`, answer at once."""
        return await predictions.create(request, body)

    async def put(request: Request, prediction_id: _Id, body: Any = None) -> Response:
        """Make a prediction under an id; asked for again, the one that there is."""
        return await predictions.put(request, prediction_id, body)

    model = cog_schemas.request_model(input_model(service.manifest))
    for endpoint, path, method in ((create, "/predictions", "POST"), (put, "/predictions/{prediction_id}", "PUT")):
        endpoint.__annotations__["body"] = model | None
        routes.add_api_route(path, endpoint, methods=[method], responses=_RESPONSES, response_model=None)

    @routes.post("/predictions/{prediction_id}/cancel", responses={200: {"model": dict[str, str]}})
    async def cancel(prediction_id: _Id) -> dict[str, str]:
        """Cancel a prediction, if it has not ended."""
        if await asyncio.to_thread(service.cancel, prediction_id) is None:
            raise Problem(404, "There is no such prediction.")
        return {}

    @routes.get("/health-check", response_model=Health, response_model_exclude_none=True)
    async def health_check() -> Health:
        """How the server is; 200 whatever it is."""
        return await asyncio.to_thread(watch.health)

    async def index() -> Index:
        """Where things are. Who accepts HTML is shown the page."""
        return Index()

    routes.routes.append(IndexRoute("/", index, response_model=Index, methods=["GET"], tags=["Cog"]))
    return routes


class Predictions:
    """Predictions over one service."""

    def __init__(self, service: Service) -> None:
        self._service, self._inputs = service, input_model(service.manifest)

    async def create(self, request: Request, asked: Any) -> Response:
        """A new prediction. A client that leaves while it waits has it canceled, as Cog does."""
        if asked is not None and asked.id is not None and await self._job(asked.id) is not None:
            raise Problem(409, "There is a prediction of this id; ask with PUT to have it, or choose another id.")
        job = await self._submit(request, asked, asked and asked.id)
        if not _is_async(request):
            job = await waiting.ended(self._service, request, job)
        return await self._answer(job)

    async def put(self, request: Request, prediction: str, asked: Any) -> Response:
        """The prediction of that id, made where there is none.

        One that runs is answered as it is, with 202, as Cog does. A client that leaves may come again: what it asked
        for goes on.
        """
        if asked is not None and asked.id not in (None, prediction):
            raise Problem(422, "The id in the body is another than that in the path; leave it out.")
        job = await self._job(prediction)
        if job is None:
            job = await self._submit(request, asked, prediction)
            if not _is_async(request):
                job = await self._service.wait(job.id, waiting.MOST_SECONDS + 10) or job
        return await self._answer(job)

    async def _job(self, prediction: str) -> Job | None:
        return await asyncio.to_thread(self._service.job, prediction)

    async def _submit(self, request: Request, asked: Any, prediction: str | None) -> Job:
        """Accept a job. Pictures are data: URIs unless its input says otherwise; webhooks get all events by default."""
        if "text/event-stream" in request.headers.get("accept", ""):
            raise Problem(406, "Predictions are not streamed; ask without Accept: text/event-stream.")
        if not _is_async(request):
            waiting.require_engine(self._service)
        given = self._inputs() if asked is None or asked.input is None else asked.input
        webhook = None
        if asked is not None and asked.webhook is not None:
            events = cog_schemas.EVENTS if asked.webhook_events_filter is None else asked.webhook_events_filter
            webhook = Webhook(asked.webhook, tuple(dict.fromkeys(events)))
        values: Any = given
        options = Options(
            form=values.output_format,
            quality=values.output_quality,
            data_uris="output" not in given.model_fields_set or values.output == "data-uri",
            webhook=webhook,
            base=base.base_of(self._service, request),
        )
        shown = given.model_dump(mode="json", exclude_unset=True)
        try:
            return await base.submit(
                self._service,
                "cog",
                given,
                options,
                shown=shown,
                seconds=None if _is_async(request) else waiting.MOST_SECONDS,
                job=prediction or "",
            )
        except QueueFullError:
            raise Problem(409, "So many predictions wait that no more are taken; try again later.") from None

    async def _answer(self, job: Job) -> Response:
        """A prediction: 200 where it has ended, however; 202 where it has not."""
        body = await asyncio.to_thread(_described, self._service, job)
        return JSONResponse(body.model_dump(mode="json"), 200 if job.status.is_terminal else 202)


def body(service: Service) -> Callable[[Job, str], Mapping[str, Any]]:
    """What webhooks are sent: the prediction; for events before the end, as it was before it."""

    def body_at(job: Job, event: str) -> Mapping[str, Any]:
        found = _described(service, job).model_dump(mode="json")
        if event != "completed" and job.status.is_terminal:
            found |= {"status": "processing", "error": None, "completed_at": None, "metrics": None}
            found |= {} if event == "output" else {"output": None}
        return found

    return body_at


def _described(service: Service, job: Job) -> PredictionResponse:
    """A prediction as it is now. Reads the store."""
    outputs = [_uri(service, job, file) for file in service.outputs(job)]
    return PredictionResponse.model_validate(
        {
            "id": job.id,
            "status": job.status.value,
            "input": job.input,
            "output": outputs or None,
            "error": job.error,
            "logs": service.logs(job),
            "metrics": None if job.predict_seconds is None else {"predict_time": job.predict_seconds},
            "created_at": iso(job.created),
            "started_at": job.started and iso(job.started),
            "completed_at": job.completed and iso(job.completed),
        }
    )


def _uri(service: Service, job: Job, file: File) -> str:
    if not job.options.data_uris:
        return base.picture_url(job.options.base, service, file)
    data = base64.b64encode(service.store.files.path(file).read_bytes()).decode()
    return f"data:{file.media_type};base64,{data}"


def _is_async(request: Request) -> bool:
    return "respond-async" in [each.strip() for each in request.headers.get("prefer", "").split(",")]
