"""Fetching and posting, to addresses that were judged: the one place where the server connects to others.

A host is looked up once, and the connection goes to the very addresses that were judged; TLS verifies the name. There
are no redirects, no proxies and no credentials from the environment, no cookies, and no compression. Time and size are
limited as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import httpcore

from kandinsky22.version import VERSION
from kandinsky22_serve.outside import OutsideError, addresses
from kandinsky22_serve.outside.addresses import Resolver, Target

PICTURES = "image/png, image/jpeg, image/webp"
"""What `fetch` asks for when nothing else is asked for."""

USER_AGENT = f"kandinsky22/{VERSION}"

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_MEDIA_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})[ \t]*(?:;.*)?")
_UNKNOWN = "application/octet-stream"
_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What came from an address. `media_type` is what the sender called it, in lower case and without parameters."""

    body: bytes
    media_type: str


async def fetch(
    url: str,
    *,
    most_bytes: int,
    seconds: float,
    allowed_hosts: Iterable[str] = (),
    accept: str = PICTURES,
    name: str = "image",
    resolver: Resolver = addresses.resolve,
    is_public: Callable[[str], bool] = addresses.is_public,
    tls: ssl.SSLContext | None = None,
) -> Fetched:
    """Fetch what a URL names.

    Args:
        url: http or https, to a public host or an allowed one.
        most_bytes: Most bytes of the body. It is checked while they come.
        seconds: Time for all of it, from the lookup to the last byte.
        allowed_hosts: Hosts that need not be public, each as `host` or `host:port`.
        accept: Media types to ask for.
        name: What is fetched, for messages.
        resolver: Looks up names.
        is_public: Judges IP addresses.
        tls: Certificates to trust; None for the system's (SSL_CERT_FILE may name others) and certifi's.

    Raises:
        OutsideError: The address is not one that may be used; or what comes is no answer of status 200, is compressed,
            too large or too late. What is wrong inside our network is not told.
    """
    headers = {"Accept": accept}
    async with _failing(name, seconds):
        target = addresses.check_url(url, name=name)
        pinned = _Pinned(target, await _judged(target, name, allowed_hosts, resolver, is_public))
        async with _answer(pinned, "GET", headers, None, seconds, tls) as response:
            return Fetched(await _body(response, most_bytes, name), _media_type(response))


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float,
    allowed_hosts: Iterable[str] = (),
    name: str = "webhook",
    resolver: Resolver = addresses.resolve,
    is_public: Callable[[str], bool] = addresses.is_public,
    tls: ssl.SSLContext | None = None,
) -> int:
    """Post `body` to a URL: the status of the answer, whose body is not read.

    A status of 200 to 299 is a success. Every other is a failure, one of 300 to 399 as well: nothing is followed. The
    headers need a Content-Type; Host, Content-Length and User-Agent are set here. Arguments and errors are those of
    `fetch`.
    """
    async with _failing(name, seconds):
        target = addresses.check_url(url, name=name)
        pinned = _Pinned(target, await _judged(target, name, allowed_hosts, resolver, is_public))
        async with _answer(pinned, "POST", headers, body, seconds, tls) as response:
            return response.status


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were judged, in their order until one answers, whatever name it is asked for."""

    def __init__(self, target: Target, judged: Sequence[str]) -> None:
        self.target = target
        self._judged = judged
        self._backend = httpcore.AnyIOBackend()
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the target. Raises httpcore.ConnectError where no address answers in its share of the time."""
        for i, address in enumerate(self._judged):
            share = None if timeout is None else timeout / len(self._judged)
            try:
                self._stream = await self._backend.connect_tcp(
                    address, self.target.port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if i == len(self._judged) - 1:
                    raise
            else:
                return self._stream
        raise httpcore.ConnectError("no addresses")

    async def close(self) -> None:
        """Close the connection. httpcore leaves one open whose TLS was being negotiated when the time ran out."""
        if self._stream is not None:
            await self._stream.aclose()


async def _judged(
    target: Target, name: str, allowed_hosts: Iterable[str], resolver: Resolver, is_public: Callable[[str], bool]
) -> Sequence[str]:
    return await addresses.addresses_of(
        target, allowed_hosts=allowed_hosts, resolver=resolver, is_public=is_public, name=name
    )


@contextlib.asynccontextmanager
async def _failing(name: str, seconds: float) -> AsyncIterator[None]:
    """Limit the time, and make of every failure one sentence. The log has the reason."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        _log.info("No answer for %s in %s seconds", name, seconds)
        raise OutsideError(f"The address of {name} did not answer within {seconds:g} seconds.") from error
    except _FAILURES as error:
        _log.info("No answer for %s: %s: %s", name, type(error).__name__, error)
        raise OutsideError(f"The address of {name} gave no answer that can be read.") from error


@contextlib.asynccontextmanager
async def _answer(
    pinned: _Pinned,
    method: str,
    headers: Mapping[str, str],
    body: bytes | None,
    seconds: float,
    tls: ssl.SSLContext | None,
) -> AsyncIterator[httpcore.Response]:
    """The answer to a request, until its headers. The connection is closed afterwards, whatever happens."""
    target = pinned.target
    url = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )
    sent = {
        "Host": target.authority,
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        "Connection": "close",
        **headers,
    }
    connection = httpcore.AsyncHTTPConnection(url.origin, tls or _trusted(), network_backend=pinned)
    try:
        async with connection.stream(
            method, url, headers=list(sent.items()), content=body, extensions={"timeout": {"connect": seconds}}
        ) as response:
            yield response
    finally:
        await pinned.close()


async def _body(response: httpcore.Response, most_bytes: int, name: str) -> bytes:
    """The body of an answer of status 200, while it is not too large."""
    if response.status != 200:
        raise OutsideError(f"The address of {name} answered with status {response.status}; expected 200.")
    encoding = _header(response, "content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise OutsideError(f"The address of {name} answered with a compressed body; expected one that is not.")
    length = _header(response, "content-length")
    too_large = OutsideError(f"The address of {name} gives more than {most_bytes} bytes, which is the limit.")
    if length.isdecimal() and int(length) > most_bytes:
        raise too_large
    body = bytearray()
    async for part in response.aiter_stream():
        body += part
        if len(body) > most_bytes:
            raise too_large
        await asyncio.sleep(0)  # one packet can have thousands of parts, and others wait
    return bytes(body)


def _media_type(response: httpcore.Response) -> str:
    found = _MEDIA_TYPE.fullmatch(_header(response, "content-type").strip())
    return _UNKNOWN if found is None else found[1].lower()


def _header(response: httpcore.Response, name: str) -> str:
    """The values of a header, as one; "" where there is none."""
    return ",".join(value.decode("latin-1") for key, value in response.headers if key.lower() == name.encode())


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates to trust, read once: it takes a while."""
    return httpcore.default_ssl_context()
