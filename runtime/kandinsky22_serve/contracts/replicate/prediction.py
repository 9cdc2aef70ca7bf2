"""A prediction: a job as Replicate shows it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from kandinsky22_serve.contracts.base import picture_url
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import File, Job, Status

CONTRACT = "replicate"


class Urls(BaseModel):
    """Where a prediction is found, ended, and followed; `web` is the server's page."""

    get: str
    cancel: str
    stream: str
    web: str


class Prediction(BaseModel):
    """A prediction."""

    id: str
    model: str
    version: str
    input: dict[str, Any]
    output: list[str] | None
    logs: str
    error: str | None
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    created_at: str
    started_at: str | None
    completed_at: str | None
    data_removed: bool
    metrics: dict[str, float]
    source: Literal["api"] = "api"
    urls: Urls


def timestamp(seconds: float) -> str:
    """A time as ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def prediction(service: Service, job: Job, base: str) -> Prediction:
    """A job as it is now; `base` is the address that the client reaches us at. Reads the store."""
    outputs = service.outputs(job)
    removed = job.status is Status.SUCCEEDED and len(outputs) < job.pictures
    url = f"{base}/v1/predictions/{job.id}"
    metrics = {}
    if job.completed is not None:
        metrics = {"total_time": job.completed - job.created}
        if job.predict_seconds is not None:
            metrics["predict_time"] = job.predict_seconds
    return Prediction(
        id=job.id,
        model=job.options.extra["model"],
        version=job.options.extra["version"],
        input=dict(job.input),
        output=None if removed or not outputs else [_link(service, job, base, each) for each in outputs],
        logs=service.logs(job),
        error=job.error if job.status is Status.FAILED else None,
        status=job.status.value,
        created_at=timestamp(job.created),
        started_at=None if job.started is None else timestamp(job.started),
        completed_at=None if job.completed is None else timestamp(job.completed),
        data_removed=removed,
        metrics=metrics,
        urls=Urls(
            get=url,
            cancel=f"{url}/cancel",
            stream=f"{base}/files/stream/{job.id}/{job.options.extra['stream']}",
            web=f"{base}/",
        ),
    )


def _link(service: Service, job: Job, base: str, file: File) -> str:
    if not job.options.data_uris:
        return picture_url(base, service, file)
    data = base64.b64encode(service.store.files.path(file).read_bytes()).decode()
    return f"data:{file.media_type};base64,{data}"


def body(service: Service) -> Callable[[Job, str], Mapping[str, Any]]:
    """What webhooks are sent: the prediction; for events before the end, as it was before it."""

    def body_at(job: Job, event: str) -> Mapping[str, Any]:
        found = prediction(service, job, job.options.base)
        if event != "completed" and job.status.is_terminal:
            before: dict[str, Any] = {"status": "processing", "error": None, "completed_at": None, "metrics": {}}
            found = found.model_copy(update=before | ({} if event == "output" else {"output": None}))
        return found.model_dump()

    return body_at
