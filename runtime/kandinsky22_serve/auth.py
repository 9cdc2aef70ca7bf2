"""Who may ask: a token, or nobody but this machine."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kandinsky22 import files
from kandinsky22.errors import InputError
from kandinsky22_serve import problems

_OPEN = ("/healthz", "/readyz", "/health-check")
"""Paths that tell nothing but whether the server is well."""
_BY_ID = "/files/"
"""Pictures: whoever knows a file's id of 128 random bits was given it."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SHORTEST = 16


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The tokens of a file, one a line. Raises InputError where there is none, or one is too short to be secret."""
    try:
        lines = files.read_regular(path, 1 << 16).decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} has a token that is not ASCII; expected letters and digits.") from error
    tokens = tuple(line.strip().encode() for line in lines if line.strip())
    if not tokens or min(map(len, tokens)) < _SHORTEST:
        raise InputError(f"{path} has no token of {_SHORTEST} characters or more; write one a line.")
    return tokens


class Auth:
    """Refuses who has no token. Without tokens, refuses what a web page elsewhere could make a browser here send."""

    def __init__(self, app: ASGIApp, tokens: Sequence[bytes]) -> None:
        self._app, self._tokens = app, tuple(tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] not in ("http", "websocket") or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401})
            return
        if self._tokens:
            response = problems.answer(scope["path"])(401, "The token is missing or wrong; send Authorization: Bearer.")
            # A header for each: of several challenges in one, Chromium reads the first alone, and never asks.
            response.headers.append("WWW-Authenticate", 'Basic realm="kandinsky22: the token is the password"')
            response.headers.append("WWW-Authenticate", "Bearer")
        else:
            sentence = "Without a token the server answers this machine alone, by its local names."
            response = problems.answer(scope["path"])(403, sentence)
        await response(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        if not self._tokens:
            return self._is_local(headers)
        path = scope["path"]
        return path in _OPEN or path.startswith(_BY_ID) or self._has_token(headers.get("authorization", ""))

    def _is_local(self, headers: Headers) -> bool:
        """Whether a request is for a local name, and from no other site's page (DNS rebinding, forged requests)."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return False
        try:
            return urlsplit(f"//{headers.get('host', '')}").hostname in _LOCAL
        except ValueError:
            return False

    def _has_token(self, header: str) -> bool:
        """Bearer, Replicate's older Token, or Basic with the token as the password; all compared in constant time."""
        scheme, _, given = header.partition(" ")
        token = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "basic":
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() not in ("bearer", "token"):
            return False
        found = [hmac.compare_digest(token, each) for each in self._tokens]  # all of them, whichever fits
        return any(found)
