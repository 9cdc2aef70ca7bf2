"""To be written."""

from __future__ import annotations

from fastapi import APIRouter

from kandinsky22_serve.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    return APIRouter()
