"""The model, its one version, and the schema of its inputs."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from kandinsky22.bundle.bundle import MANIFEST
from kandinsky22.version import VERSION
from kandinsky22_serve.contracts.base import base_of
from kandinsky22_serve.contracts.replicate.errors import problems
from kandinsky22_serve.contracts.replicate.names import Names, names
from kandinsky22_serve.contracts.replicate.pages import Page
from kandinsky22_serve.contracts.replicate.prediction import CONTRACT, timestamp
from kandinsky22_serve.inputs import input_model
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service

COG_VERSION = "0.23.0"
"""Whose schemas ours is like. Below 0.3.9 the Python client takes an array for a stream of its elements."""
DESCRIPTION = "Kandinsky 2.2: pictures from text, pictures, masks and depth"


class Version(BaseModel):
    """A version: `openapi_schema` has the inputs and the outputs, at components.schemas."""

    id: str
    created_at: str
    cog_version: str
    openapi_schema: dict[str, Any]


class Model(BaseModel):
    """A model, as Replicate shows it; the last four are as OpenAI shows one."""

    url: str
    owner: str
    name: str
    description: str | None
    visibility: Literal["public", "private"]
    github_url: str | None = None
    paper_url: str | None = None
    license_url: str | None = None
    run_count: int
    cover_image_url: str | None = None
    default_example: None = None
    latest_version: Version | None
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


def schema(service: Service) -> dict[str, Any]:
    """The inputs and outputs of the bundle that is served, as Cog describes those of a model (OpenAPI 3.0)."""
    inputs = input_model(service.manifest).model_json_schema()
    inputs.pop("additionalProperties", None)  # what Cog leaves out, and readers of its schemas do not expect
    for place, (name, each) in enumerate(inputs["properties"].items()):
        inputs["properties"][name] = {**_plain(each), "x-order": place}
    output = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    return {
        "openapi": "3.0.2",
        "info": {"title": "kandinsky22", "version": VERSION},
        "paths": {},
        "components": {"schemas": {"Input": inputs, "Output": output}},
    }


def _plain(each: dict[str, Any]) -> dict[str, Any]:
    """An input that may be left out, without `null` as one of its types: OpenAPI 3.0 has none."""
    types = [found for found in each.get("anyOf", ()) if found != {"type": "null"}]
    if len(types) != 1:
        return each
    return {**types[0], **{key: value for key, value in each.items() if key not in ("anyOf", "default")}}


def version(service: Service, ours: Names) -> Version:
    """The version that is served."""
    written = (service.bundle.path / MANIFEST).stat().st_mtime
    return Version(
        id=ours.version,
        created_at=timestamp(written),
        cog_version=COG_VERSION,
        openapi_schema=schema(service),
    )


def model(service: Service, base: str) -> Model:
    """The model that is served; `base` is the address that the client reaches us at."""
    ours = names(service)
    newest = version(service, ours)
    jobs = service.store.jobs.newest(1, contracts=(CONTRACT,))
    return Model(
        url=f"{base}/",
        owner=ours.owner,
        name=ours.name,
        description=DESCRIPTION,
        visibility="private",
        run_count=jobs[0].seq if jobs else 0,
        latest_version=newest,
        id=ours.model,
        created=int((service.bundle.path / MANIFEST).stat().st_mtime),
        owned_by=ours.owner,
    )


def router(service: Service) -> APIRouter:
    """The routes. `GET /v1/models` is a route of its own: OpenAI's clients ask for it, too."""
    routes = APIRouter()
    ours = names(service)
    newest = version(service, ours)

    @routes.get("/models/{owner}/{name}", responses=problems(404))
    async def get(request: Request, owner: str, name: str) -> Model:
        """The model."""
        ours.require(owner, name)
        return await asyncio.to_thread(model, service, base_of(service, request))

    @routes.get("/models/{owner}/{name}/versions", responses=problems(404))
    async def versions(owner: str, name: str) -> Page[Version]:
        """Its versions: there is one."""
        ours.require(owner, name)
        return Page(results=[newest])

    @routes.get("/models/{owner}/{name}/versions/{id}", responses=problems(404))
    async def get_version(owner: str, name: str, id: str) -> Version:
        """A version; the published model's ids are answered with ours."""
        ours.require(owner, name)
        if not ours.is_version(id):
            raise Problem(404, f"There is no such version; this server has {ours.model}:{ours.version}.")
        return newest

    return routes
