"""Uploads: pictures that clients send before they name them as inputs."""

from __future__ import annotations

import asyncio
import json
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from kandinsky22_serve.contracts.base import base_of
from kandinsky22_serve.contracts.replicate.errors import problems
from kandinsky22_serve.contracts.replicate.pages import Page, page
from kandinsky22_serve.contracts.replicate.prediction import timestamp
from kandinsky22_serve.pictures import keep
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import File

KIND = "upload"
MOST_METADATA = 1 << 16
"""Bytes of an upload's metadata."""
_LONGEST_NAME = 200
_FORM = {
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["content"],
                "properties": {
                    "content": {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP file"},
                    "metadata": {"type": "string", "description": "A JSON object, given back as it is"},
                },
            }
        }
    }
}


class FileUrls(BaseModel):
    """Where an upload is found; the same address names it as an input."""

    get: str


class Upload(BaseModel):
    """An upload."""

    id: str
    name: str
    content_type: str
    size: int
    etag: str
    checksums: dict[str, str]
    metadata: dict[str, Any]
    created_at: str
    expires_at: str | None
    urls: FileUrls


def upload(file: File, base: str) -> Upload:
    """A file of the store as Replicate shows it."""
    return Upload(
        id=file.id,
        name=file.name,
        content_type=file.media_type,
        size=file.bytes,
        etag=file.sha256,
        checksums={"sha256": file.sha256},
        metadata=json.loads(file.metadata),
        created_at=timestamp(file.created),
        expires_at=None if file.expires is None else timestamp(file.expires),
        urls=FileUrls(get=f"{base}/v1/files/{file.id}"),
    )


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    files = service.store.files

    @routes.post("/files", status_code=201, responses=problems(400), openapi_extra={"requestBody": _FORM})
    async def create(request: Request) -> Upload:
        """Keep a picture for a day."""
        async with request.form(max_files=4, max_fields=8, max_part_size=MOST_METADATA) as form:
            content = form.get("content")
            if not isinstance(content, UploadFile):
                raise Problem(422, "There is no content; send the file as content, in multipart/form-data.")
            metadata = await _metadata(form)
            body = await content.read()
        name = _name(content.filename)
        file = await keep(service, "content", body, kind=KIND, file_name=name, metadata=metadata)
        return upload(file, base_of(service, request))

    @routes.get("/files", responses=problems())
    async def listed(request: Request, cursor: str | None = None) -> Page[Upload]:
        """The uploads, the newest first."""
        base = base_of(service, request)
        return await asyncio.to_thread(
            page,
            cursor,
            f"{base}/v1/files",
            older=lambda limit, key: files.newest(KIND, limit, None if key is None else float(key)),
            newer=lambda limit, key: files.newer(KIND, limit, float(key)),
            key=lambda file: repr(file.created),
            shown=lambda file: upload(file, base),
        )

    @routes.get("/files/{id}", responses=problems(404))
    async def get(request: Request, id: str) -> Upload:
        """An upload."""
        return upload(await asyncio.to_thread(_found, service, id), base_of(service, request))

    @routes.delete("/files/{id}", status_code=204, responses=problems(404))
    async def delete(id: str) -> Response:
        """Delete an upload. Jobs that were given it have a copy."""
        file = await asyncio.to_thread(_found, service, id)
        await asyncio.to_thread(files.remove, file)
        return Response(status_code=204)

    return routes


def _found(service: Service, id: str) -> File:
    file = service.store.files.get(id)
    if file is None or file.kind != KIND:
        raise Problem(404, "There is no such file, or it has expired.")
    return file


async def _metadata(form: FormData) -> str:
    """The metadata of an upload, which the Python client sends as text and the JavaScript client as a file."""
    given = form.get("metadata") or "{}"
    text = given if isinstance(given, str) else await given.read(MOST_METADATA + 1)
    try:
        found = json.loads(text) if len(text) <= MOST_METADATA else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(422, f"metadata is no JSON object of at most {MOST_METADATA >> 10} KiB.")
    return json.dumps(found)


def _name(given: str | None) -> str:
    """A file's name as it is shown: the last part of what a client sent, without control characters."""
    name = "".join(each for each in PurePosixPath(given or "").name if each.isprintable())
    return name[:_LONGEST_NAME] or "file"
