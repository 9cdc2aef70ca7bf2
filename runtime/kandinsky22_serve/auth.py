"""Who may ask: a token, or nobody but this machine."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
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
_BY_ID = re.compile(r"/files/([a-z0-9]{26}\.[a-z]{3,4}|stream/[a-z0-9]{26}/[a-z0-9]{26})")
"""Pictures: whoever knows a file's id of 128 random bits was given it."""
_LOCAL = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
"""What the header Host is on this machine."""
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,262}")
"""What the header Host is anywhere: our own addresses are written with it."""
_TOKEN = re.compile(rb"[!-~]+")
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
    if not all(map(_TOKEN.fullmatch, tokens)):
        raise InputError(f"{path} has a token with spaces or control characters; expected letters and digits.")
    return tokens


class Auth:
    """Refuses who has no token, and what a web page elsewhere could make a browser send.

    A browser that knows the token (as Basic) adds it to whatever any page asks of us, as it reaches this machine for
    any page: where no header names the token, the page must be ours.
    """

    def __init__(self, app: ASGIApp, tokens: Sequence[bytes], public_url: str | None = None) -> None:
        """`public_url` is the address that browsers know us by, where a proxy stands before us."""
        self._app, self._tokens = app, tuple(tokens)
        self._public = urlsplit(public_url or "").netloc.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4000 + refused[0]})
        else:
            response = problems.answer(scope["path"])(*refused)
            if refused[0] == 401:
                # A header for each: of several challenges in one, Chromium reads the first alone, and never asks.
                response.headers.append("WWW-Authenticate", 'Basic realm="kandinsky22: the token is the password"')
                response.headers.append("WWW-Authenticate", "Bearer")
            await response(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """HTTP status and sentence for what is refused; None for what is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._tokens:
            if not _LOCAL.fullmatch(host):
                return 403, "Without a token the server answers this machine alone, by its local names."
            return self._refused_page(scope, headers)
        if not _HOST.fullmatch(host):
            return 400, "The header Host is no host and port."
        if scope["path"] in _OPEN or _BY_ID.fullmatch(scope["path"]):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not self._has_token(scheme.lower(), given.strip()):
            return 401, "The token is missing or wrong; send Authorization: Bearer."
        return self._refused_page(scope, headers) if scheme.lower() == "basic" else None

    def _refused_page(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Refuse what the page of another site asks for. A link from there to here is none of that."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            ours = _netloc(origin) in {headers.get("host", "").lower(), self._public} - {""}
        else:
            is_link = scope.get("method") in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
            ours = site in ("none", "same-origin") or is_link
        return None if ours else (403, "Pages of other sites may not use the server; send Authorization: Bearer.")

    def _has_token(self, scheme: str, given: str) -> bool:
        """Bearer, Replicate's older Token, or Basic with the token as the password; all compared in constant time."""
        token = given.encode("utf-8", "surrogateescape")
        if scheme == "basic":
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme not in ("bearer", "token"):
            return False
        found = [hmac.compare_digest(token, each) for each in self._tokens]  # all of them, whichever fits
        return any(found)


def _netloc(origin: str) -> str:
    """Host and port of an Origin; empty where it has none, as "null" has."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
