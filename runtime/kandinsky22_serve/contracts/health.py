"""Whether the server is well: `/healthz` (it answers), `/readyz` (it computes)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from kandinsky22_serve.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        """The engine can take jobs; 503 where it is starting or broken."""
        state = service.supervisor.state
        ready = state in ("ready", "busy")
        return JSONResponse({"status": state}, 200 if ready else 503)

    return routes
