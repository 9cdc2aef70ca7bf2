"""Replicate's HTTP API (api.replicate.com/v1), for the clients that speak it.

Clients differ in whether their base address has `/v1`: what adds it once more is answered as well.
"""

from __future__ import annotations

from fastapi import APIRouter

from kandinsky22_serve.contracts.replicate import files, models, predictions, secret, stream
from kandinsky22_serve.contracts.replicate.prediction import CONTRACT, body
from kandinsky22_serve.service import Service

__all__ = ["CONTRACT", "body", "router"]


def router(service: Service) -> APIRouter:
    """The routes."""
    whole = APIRouter()
    for part in (predictions, models, files, secret):
        routes = part.router(service)
        whole.include_router(routes, prefix="/v1", tags=["replicate"])
        whole.include_router(routes, prefix="/v1/v1", include_in_schema=False)
    whole.include_router(stream.router(service), tags=["replicate"])
    return whole
