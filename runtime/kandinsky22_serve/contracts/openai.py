"""OpenAI's images API: generations, edits, variations; answered whole, or streamed with partial pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import File as FormFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kandinsky22.errors import InputError
from kandinsky22_serve import problems
from kandinsky22_serve.contracts import base, models, openai_schemas, openai_stream, waiting
from kandinsky22_serve.contracts.openai_pictures import Kept, fitting, keep_mask, keep_upload
from kandinsky22_serve.inputs import Input, input_model
from kandinsky22_serve.pictures import forget
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import File, Job, Options

_PATH = "/v1/images"
_STREAM = {
    "description": "The pictures; with `stream`, server-sent events with them",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "description": "Of each event",
                "properties": {
                    "event": {"type": "string"},
                    "data": {"type": "string", "contentMediaType": "application/json"},
                },
            }
        }
    },
}


def router(service: Service) -> APIRouter:
    """The routes, and those of the list of models."""
    images, inputs = Images(service), input_model(service.manifest)
    routes = APIRouter(tags=["OpenAI images"], responses=problems.OPENAI_RESPONSES)
    whole = {"model": openai_schemas.Images}
    streamed = {**whole, **_STREAM}
    for name, endpoint, model, place, responses in (
        ("generations", images.generations, openai_schemas.generation_model, Body(), streamed),
        ("edits", images.edits, openai_schemas.edit_model, FormFile(), streamed),
        ("variations", images.variations, openai_schemas.variation_model, FormFile(), whole),
    ):
        _add(routes, name, endpoint, Annotated[model(inputs), place], responses)
    routes.include_router(models.router(service))
    return routes


def _add(routes: APIRouter, name: str, endpoint: Callable[..., Any], body: Any, responses: Mapping[str, Any]) -> None:
    """Add a route whose body is of a model that is made when the program runs."""

    async def answered(request: Request, asked: Any) -> Response:
        answer: Response = await endpoint(request, asked)
        return answer

    answered.__annotations__["asked"] = body
    answered.__doc__ = endpoint.__doc__
    routes.add_api_route(
        f"{_PATH}/{name}", answered, methods=["POST"], name=name, responses={200: dict(responses)}, response_model=None
    )


class Images:
    """The three routes over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._inputs = input_model(service.manifest, openai_schemas.MOST_PICTURES)
        self._largest = min(2048, service.manifest.limits.max_size)

    async def generations(self, request: Request, asked: Any) -> Response:
        """Pictures from a prompt, and with `hint` after a depth map."""
        self._check(asked)
        return await self._made(request, asked, {**_sent(asked, self._inputs), **self._sized(asked, None)})

    async def edits(self, request: Request, asked: Any) -> Response:
        """Pictures from pictures and a prompt.

        With a mask, or a picture that is transparent somewhere: its fully transparent part is painted anew. One picture
        without: it is given up by `strength`. Several: what the prompt says and they show is mixed.
        """
        self._check(asked)
        uploads = [*asked.image, *asked.images]
        if not 1 <= len(uploads) <= 16:
            raise InputError("image is expected once, or image[] up to 16 times, as files.")
        if len(uploads) > 1 and asked.mask is not None:
            raise InputError("mask is of one picture, and several are mixed; send one picture, or no mask.")
        if len(uploads) == 1 and asked.mix_weights:
            raise InputError("mix_weights is of several pictures; send more of them, or leave it out.")
        names = ["image"] if len(uploads) == 1 else [f"image[{place}]" for place in range(len(uploads))]
        kept: list[Kept] = []
        try:
            for name, upload in zip(names, uploads, strict=True):
                kept.append(await keep_upload(self._service, name, upload))
            values = await self._edit(request, asked, kept)
            return await self._made(request, asked, values, kind="image_edit")
        except Exception:
            await forget(self._service, [each.file for each in kept])
            raise

    async def _edit(self, request: Request, asked: Any, kept: Sequence[Kept]) -> dict[str, Any]:
        """The inputs of an edit of these pictures."""
        values = {**_sent(asked, self._inputs), **self._sized(asked, kept[0])}
        if len(kept) > 1:
            values |= {"mix_prompts": [values.pop("prompt")], "mix_images": [self._url(request, k.file) for k in kept]}
            return {**values, "mix_weights": asked.mix_weights or None}
        values["image"] = self._url(request, kept[0].file)
        mask = await keep_mask(self._service, kept[0], asked.mask)
        return values if mask is None else {**values, "mask": self._url(request, mask)}

    async def variations(self, request: Request, asked: Any) -> Response:
        """More pictures of what a picture shows."""
        self._check(asked)
        kept = await keep_upload(self._service, "image", asked.image)
        values = {**_sent(asked, self._inputs), **self._sized(asked, kept), "image": self._url(request, kept.file)}
        return await self._made(request, asked, {**values, "task": "variations"})

    def _check(self, asked: Any) -> None:
        """Refuse what can be refused before a picture is looked at."""
        waiting.require_engine(self._service)
        models.require_model(self._service, asked.model)
        if getattr(asked, "background", None) == "transparent":
            raise InputError('background "transparent" cannot be painted; expected "opaque" or "auto".')
        openai_schemas.form_of(asked)
        openai_schemas.size_of(asked, self._largest)

    def _sized(self, asked: Any, kept: Kept | None) -> dict[str, int]:
        found = openai_schemas.size_of(asked, self._largest)
        if found is None and kept is not None:
            found = fitting(kept.width, kept.height)
        return {} if found is None else {"width": found[0], "height": found[1]}

    def _url(self, request: Request, file: File) -> str:
        return base.picture_url(base.base_of(self._service, request), self._service, file)

    async def _made(
        self, request: Request, asked: Any, values: Mapping[str, Any], kind: str = "image_generation"
    ) -> Response:
        """Accept the job, and answer with its pictures or with a stream."""
        service, address = self._service, base.base_of(self._service, request)
        form, quality = openai_schemas.form_of(asked)
        given = _validated(self._inputs, {**values, "output_format": form, "output_quality": quality})
        streamed = bool(getattr(asked, "stream", None))
        partial = (getattr(asked, "partial_images", None) or 0) if streamed else 0
        job = await base.submit(
            service,
            "openai",
            given,
            Options(form=form, quality=quality, previews=partial > 0, base=address),
            shown=given.model_dump(mode="json", exclude_unset=True),
            seconds=waiting.MOST_SECONDS,
        )
        headers = {"x-request-id": job.id}
        if streamed:
            # Canceling is nothing where the job has ended; where the client has left, it has not.
            after = BackgroundTask(service.cancel, job.id)
            events = openai_stream.events(service, job, kind, partial)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers, background=after)
        job = await waiting.ended(service, request, job)
        waiting.require_success(job)
        body = await asyncio.to_thread(self._answer, job, asked.response_format)
        return JSONResponse(body, headers=headers)

    def _answer(self, job: Job, response_format: str | None) -> dict[str, Any]:
        files = self._service.outputs(job)
        data = []
        for file, seed in zip(files, job.seeds, strict=True):
            image = openai_schemas.Image(seed=seed)
            if response_format != "b64_json":
                image.url = base.picture_url(job.options.base, self._service, file)
            if response_format != "url":
                image.b64_json = openai_stream.base64_of(self._service, file)
            data.append(image)
        answer = openai_schemas.Images(
            created=int(time.time()),
            data=data,
            output_format=job.options.form,
            size=openai_stream.size_of(self._service, job),
        )
        return answer.model_dump(exclude_none=True)


def _sent(asked: BaseModel, inputs: type[Input]) -> dict[str, Any]:
    """Inputs of ours that a client gave, by the names of inputs."""
    names = asked.model_fields_set & inputs.model_fields.keys() - {"image", "mask", "output_format"}
    values = {name: value for name in sorted(names) if (value := getattr(asked, name)) is not None}
    number = getattr(asked, "n", None)
    return values if number is None else {**values, "num_outputs": number}


def _validated(inputs: type[Input], values: Mapping[str, Any]) -> Input:
    try:
        return inputs.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
