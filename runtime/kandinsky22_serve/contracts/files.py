"""Pictures by their ids: `/files/{id}.png`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import FileResponse

from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.head("/files/{name}", include_in_schema=False)
    @routes.get("/files/{name}", response_class=FileResponse)
    async def picture(name: str) -> FileResponse:
        """A picture that a job made, or that a client uploaded."""
        gone = Problem(404, "There is no such file, or it has expired.")
        file = await asyncio.to_thread(service.store.files.get, name.partition(".")[0])
        if file is None or name != f"{file.id}{service.store.files.suffix(file.media_type)}":
            raise gone
        path = service.store.files.path(file)
        try:
            status = await asyncio.to_thread(path.stat)
        except FileNotFoundError:  # it expires at this moment
            raise gone from None
        headers = {
            "Cache-Control": "private, max-age=3600",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        return FileResponse(path, media_type=file.media_type, headers=headers, stat_result=status)

    return routes
