"""Errors as Replicate writes them: RFC 7807, `{title, detail, status}`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

_SCHEMA = {
    "type": "object",
    "required": ["title", "detail", "status"],
    "properties": {"title": {"type": "string"}, "detail": {"type": "string"}, "status": {"type": "integer"}},
}
_ALWAYS = (401, 403, 422, 500, 507)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description: `statuses` beside those that every route can have."""
    content = {"application/problem+json": {"schema": _SCHEMA}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*_ALWAYS, *statuses})
    }
