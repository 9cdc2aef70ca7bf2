"""Errors as HTTP answers: one sentence, never a stack trace, never a value that a client sent."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kandinsky22.errors import KandinskyError
from kandinsky22_serve.store.jobs import QueueFullError

log = logging.getLogger(__name__)

_HEADERS = {"X-Content-Type-Options": "nosniff"}

_SENTENCES = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address does not take this method.",
    "There was an error parsing the body": "The body cannot be read; expected JSON.",
}
"""In place of what FastAPI and Starlette say."""

Answer = Callable[[int, str], Response]
"""How a contract writes an error: from the HTTP status and a sentence."""


class Problem(Exception):  # noqa: N818 - an answer, not only an error
    """An answer that is an error: HTTP status, one sentence, and headers."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


def plain(status: int, detail: str) -> Response:
    """RFC 7807, as Replicate answers."""
    body = {"title": HTTPStatus(status).phrase, "detail": detail, "status": status}
    return JSONResponse(body, status, _HEADERS, media_type="application/problem+json")


def openai(status: int, detail: str) -> Response:
    """As OpenAI answers, which has 400 for what cannot be asked."""
    status = 400 if status == 422 else status
    kind = "invalid_request_error" if status < 500 else "server_error"
    codes = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
    error = {"message": detail, "type": kind, "param": None, "code": codes.get(status)}
    return JSONResponse({"error": error}, status, _HEADERS)


_PLAIN = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "detail": {"type": "string"}, "status": {"type": "integer"}},
    "required": ["title", "detail", "status"],
}
_OPENAI_ERROR = {
    "type": "object",
    "properties": {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    },
    "required": ["message", "type", "param", "code"],
}


def _documented(media_type: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    content = {media_type: {"schema": schema}}
    return {
        "4XX": {"description": "What was asked for cannot be", "content": content},
        "5XX": {"description": "The server cannot do it now", "content": content},
    }


PLAIN_RESPONSES = _documented("application/problem+json", _PLAIN)
"""For OpenAPI: what `plain` writes."""
OPENAI_RESPONSES = _documented(
    "application/json", {"type": "object", "properties": {"error": _OPENAI_ERROR}, "required": ["error"]}
)
"""For OpenAPI: what `openai` writes."""


def answer(path: str) -> Answer:
    """How errors are written at a path."""
    is_openai = path.startswith("/v1/images") or re.fullmatch(r"/v1/models/[^/]+", path)
    return openai if is_openai else plain


def add_handlers(app: FastAPI) -> None:
    """Answer what endpoints raise."""

    async def handle(request: Request, error: Exception) -> Response:
        status, detail, headers = told(error)
        if status >= 500:
            log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        response = answer(request.url.path)(status, detail)
        response.headers.update(headers)
        return response

    for kind in (
        Problem,
        HTTPException,
        RequestValidationError,
        KandinskyError,
        QueueFullError,
        sqlite3.Error,
        OSError,
    ):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(Exception, handle)


def told(error: Exception) -> tuple[int, str, dict[str, str]]:
    """HTTP status, sentence and headers of an error."""
    if isinstance(error, Problem):
        return error.status, error.detail, error.headers
    if isinstance(error, HTTPException):
        return error.status_code, _SENTENCES.get(error.detail, str(error.detail)), dict(error.headers or {})
    if isinstance(error, RequestValidationError):
        return 422, described(error), {}
    if isinstance(error, KandinskyError):
        return 422, str(error), {}
    if isinstance(error, QueueFullError):
        return 429, "So many jobs wait that no more are taken; try again later.", {"Retry-After": "10"}
    if isinstance(error, sqlite3.Error | OSError):
        return 507, "The server cannot store anything now; try again later.", {"Retry-After": "30"}
    return 500, "The server failed; its log has more.", {}


def described(error: RequestValidationError) -> str:
    """What is wrong in a request, by place and rule; what was sent is not repeated, since it may be a secret."""
    lines = []
    for each in error.errors()[:5]:
        place = ".".join(str(part) for part in each["loc"] if part not in ("body", "query", "path"))[:80]
        if each["type"] == "extra_forbidden":
            lines.append("an unknown input was given; leave out what the schema does not list")
        else:
            lines.append(f"{place or 'the request'}: {each['msg']}")
    return "; ".join(dict.fromkeys(lines)) + "."
