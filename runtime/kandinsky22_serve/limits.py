"""How much a client may send, and how slowly."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandinsky22_serve import problems

MOST_BODY = 64 << 20
"""Bytes of a request's body."""
BODY_SECONDS = 60.0
"""In which a body must have come."""
MOST_TOGETHER = 8 * MOST_BODY
"""Bytes of the bodies of all requests that are being answered."""
MOST_VALUES = 1 << 19
"""Brackets, commas and colons of a body that is no form: a value takes up to a hundred times its bytes in memory."""
_NO_SNIFF = (b"x-content-type-options", b"nosniff")


class _RefusedError(HTTPException):
    """A body is too large or too slow. It is an HTTPException since FastAPI takes any other, of a body, for a 400."""


class Limits:
    """Refuses bodies beyond the limits; sets headers that every answer has."""

    def __init__(
        self,
        app: ASGIApp,
        most_body: int = MOST_BODY,
        body_seconds: float = BODY_SECONDS,
        most_together: int = MOST_TOGETHER,
    ) -> None:
        """Sizes are in bytes."""
        self._app, self.most_body, self.seconds, self._most_together = app, most_body, body_seconds, most_together
        self._together = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def limited_send(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                if _NO_SNIFF not in message["headers"]:  # problems have it, wherever they come from
                    message["headers"] = [*message["headers"], _NO_SNIFF]
            await send(message)

        body = _Body(self, Headers(scope=scope), receive)
        try:
            body.check_length()
            await self._app(scope, body.receive, limited_send)
        except _RefusedError as error:
            if not began:
                response = problems.answer(scope["path"])(error.status_code, error.detail)
                response.headers.update(error.headers or {})
                await response(scope, receive, limited_send)
        finally:
            self._together -= body.taken

    def take(self, body: _Body, count: int) -> None:
        """Count bytes of a body. Raises _RefusedError where they are too many."""
        body.taken += count
        self._together += count
        if body.taken > self.most_body:
            raise self.too_large()
        if self._together > self._most_together:
            raise _refused(503, "The server has too many large requests at once; try again later.")

    def too_large(self) -> _RefusedError:
        """What is raised for a body that is too large."""
        return _refused(413, f"The body is larger than {self.most_body >> 20} MiB.")


class _Body:
    """The body of one request while it comes."""

    def __init__(self, limits: Limits, headers: Headers, receive: Receive) -> None:
        self.taken = 0
        self._limits, self._receive = limits, receive
        self._length = headers.get("content-length", "0")
        # A proxy before us might end the body elsewhere, and take what follows for another's request.
        self._is_twofold = "content-length" in headers and "transfer-encoding" in headers
        self._is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._deadline = asyncio.get_running_loop().time() + limits.seconds
        self._values, self._whole = 0, False

    def check_length(self) -> None:
        """Refuse a body by what is said of it, before it comes."""
        if self._is_twofold:
            raise _refused(400, "The body has a length and comes in chunks; expected one of them.")
        if not self._length.isdecimal() or len(self._length) > 20 or int(self._length) > self._limits.most_body:
            raise self._limits.too_large()

    async def receive(self) -> Message:
        """The next message."""
        if self._whole:  # the body is there; what comes next is the client's leaving, whenever that is
            return await self._receive()
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError:
            sentence = f"The body did not come within {self._limits.seconds:.0f} seconds."
            raise _refused(408, sentence) from None
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self._whole = not message.get("more_body", False)
            self._limits.take(self, len(body))
            self._count_values(body)
        return message

    def _count_values(self, body: bytes) -> None:
        if not self._is_form:
            self._values += sum(map(body.count, (b"[", b"{", b",", b":")))
            if self._values > MOST_VALUES:
                raise _refused(413, "The body has too many values.")


def _refused(status: int, detail: str) -> _RefusedError:
    headers = {"Connection": "close", **({"Retry-After": "10"} if status == 503 else {})}
    return _RefusedError(status, detail, headers)
