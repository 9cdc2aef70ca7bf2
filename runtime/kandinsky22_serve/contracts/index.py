"""The address `/`: an index in JSON for programs; where there is a page, it is for browsers."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match, Mount


class IndexRoute(APIRoute):
    """A route that leaves those who accept HTML to the page that is mounted at the same address, if one is."""

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        """Whether a request is for this route."""
        if scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", "") and _has_page(scope):
            return Match.NONE, {}
        return super().matches(scope)


def _has_page(scope: MutableMapping[str, Any]) -> bool:
    return any(isinstance(route, Mount) and not route.path for route in scope["app"].routes)
