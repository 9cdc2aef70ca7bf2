"""The secret that webhooks are signed with."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from kandinsky22_serve import webhooks
from kandinsky22_serve.contracts.replicate.errors import problems
from kandinsky22_serve.service import Service


class Secret(BaseModel):
    """The secret."""

    key: str


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/webhooks/default/secret", responses=problems())
    async def default_secret() -> Secret:
        """What receivers verify the signatures of webhooks with."""
        return Secret(key=webhooks.secret(service.store))

    return routes
