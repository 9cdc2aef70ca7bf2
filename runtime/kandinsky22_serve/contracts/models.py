"""The list of models: one answer, for clients of OpenAI (`object`, `data`) and of Replicate (`results`)."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from kandinsky22_serve import problems
from kandinsky22_serve.contracts.base import base_of
from kandinsky22_serve.contracts.replicate import models as replicate_models
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service


class ListedModel(BaseModel):
    """A model, as OpenAI has it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """The models of this server: one."""

    object: str = "list"
    data: list[ListedModel] = Field(description="As OpenAI lists them")
    results: list[replicate_models.Model] = Field(description="As Replicate lists them")
    next: str | None = None
    previous: str | None = None


def names(service: Service) -> tuple[str, ...]:
    """What the model is called in requests: owner/name, or the name alone."""
    model = service.settings.model
    return (model, model.rpartition("/")[2])


def require_model(service: Service, name: str | None) -> None:
    """Raise Problem (404) where another model than this server's is asked for."""
    if name is not None and name not in names(service):
        raise Problem(404, f"There is no such model here; ask for {service.settings.model}, or name none.")


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"])
    began = int(time.time())

    def described() -> ListedModel:
        owner, _, _ = service.settings.model.rpartition("/")
        return ListedModel(id=service.settings.model, created=began, owned_by=owner or "kandinsky22")

    @routes.get("/v1/models", response_model=Models)
    @routes.get("/v1/v1/models", response_model=Models, include_in_schema=False)
    async def models(request: Request) -> Models:
        """The one model that is served."""
        listed = await asyncio.to_thread(replicate_models.model, service, base_of(service, request))
        return Models(data=[described()], results=[listed])

    @routes.get("/v1/models/{model}", response_model=ListedModel, responses=problems.OPENAI_RESPONSES)
    async def model(model: str) -> ListedModel:
        """The model, by its name without the owner; owner/name is Replicate's route."""
        require_model(service, model)
        return described()

    return routes
