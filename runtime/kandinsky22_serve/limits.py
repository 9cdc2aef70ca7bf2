"""How much a client may send, and how slowly."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandinsky22_serve import problems

MOST_BODY = 64 << 20
"""Bytes of a request's body."""
BODY_SECONDS = 60.0
"""In which a body must have come."""


class _RefusedError(Exception):
    """A body is too large or too slow."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Limits:
    """Refuses bodies beyond the limits; sets headers that every answer has."""

    def __init__(self, app: ASGIApp, most_body: int = MOST_BODY, body_seconds: float = BODY_SECONDS) -> None:
        self._app, self._most, self._seconds = app, most_body, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        began = False

        async def limited_send(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._check_length(length)
            await self._app(scope, self._limited(receive), limited_send)
        except _RefusedError as error:
            if not began:
                response = problems.answer(scope["path"])(error.status, error.detail)
                response.headers["connection"] = "close"
                await response(scope, receive, limited_send)

    def _check_length(self, length: str) -> None:
        if not length.isdecimal() or int(length) > self._most:
            raise _RefusedError(413, f"The body is larger than {self._most >> 20} MiB.")

    def _limited(self, receive: Receive) -> Receive:
        loop = asyncio.get_running_loop()
        deadline, taken, whole = loop.time() + self._seconds, 0, False

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:  # the body is there; what comes next is the client's leaving, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - loop.time()))
            except TimeoutError:
                raise _RefusedError(408, f"The body did not come within {self._seconds:.0f} seconds.") from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
            if taken > self._most:
                raise _RefusedError(413, f"The body is larger than {self._most >> 20} MiB.")
            return message

        return limited
