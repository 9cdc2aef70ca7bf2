"""What Cog's HTTP API takes and answers, by the names of its schema (cog 0.23)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

from kandinsky22_serve.inputs import Input

COG_VERSION = "0.23.0"
"""The version whose HTTP API this is."""
PREDICTION_ID = r"^[A-Za-z0-9_-]{1,64}$"
"""What a client may call a prediction."""
EVENTS = ("start", "output", "logs", "completed")

Status = Literal["starting", "processing", "succeeded", "canceled", "failed"]
WebhookEvent = Literal["start", "output", "logs", "completed"]
Uri = Annotated[str, Field(json_schema_extra={"format": "uri"})]


class Asked(BaseModel):
    """Base of the model that `request_model` makes; `input` may be left out, as in Cog."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    id: str | None = Field(None, pattern=PREDICTION_ID, description="What the client calls the prediction")
    webhook: str | None = Field(
        None, max_length=2048, pattern=r"^https?://[!-~]+$", description="Where the prediction is sent as it goes"
    )
    webhook_events_filter: list[WebhookEvent] | None = Field(None, max_length=8, description="All when none is given")


def request_model(inputs: type[Input]) -> type[Asked]:
    """The body of a prediction."""
    fields: dict[str, Any] = {"input": (inputs | None, Field(None))}
    return create_model("PredictionRequest", __base__=Asked, **fields)


class Output(RootModel[list[Uri]]):
    """The pictures: data: URIs, or with the input `output` "url" where they are."""


class Metrics(BaseModel):
    """Seconds that it ran."""

    predict_time: float | None = None


class PredictionResponse(BaseModel):
    """A prediction."""

    id: str
    status: Status
    input: dict[str, Any]
    output: Output | None = None
    error: str | None = None
    logs: str = ""
    metrics: Metrics | None = None
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None


class Setup(BaseModel):
    """How loading the bundle went."""

    started_at: str
    completed_at: str | None = None
    status: Literal["starting", "succeeded", "failed"]
    logs: str = ""


class Health(BaseModel):
    """Whether predictions can be made."""

    status: Literal["STARTING", "READY", "BUSY", "SETUP_FAILED", "DEFUNCT", "UNHEALTHY"]
    setup: Setup
    version: dict[str, str]
    user_healthcheck_error: str | None = None


class Index(BaseModel):
    """Where things are."""

    cog_version: str = COG_VERSION
    docs_url: str = "/docs"
    openapi_url: str = "/openapi.json"
    healthcheck_url: str = "/health-check"
    predictions_url: str = "/predictions"
    predictions_idempotent_url: str = "/predictions/{prediction_id}"
    predictions_cancel_url: str = "/predictions/{prediction_id}/cancel"
