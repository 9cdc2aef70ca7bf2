"""Addresses that strangers give, and connections to them, against real servers on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kandinsky22 import InputError
from kandinsky22_serve.outside import OutsideError, addresses, client
from kandinsky22_serve.outside.addresses import Target, check_allowed, check_url, is_allowed, is_public

HERE = "127.0.0.1"
Writer = asyncio.StreamWriter

URLS = {
    "http://example.org": Target("http", "example.org", 80, "/"),
    "HTTPS://EXAMPLE.org:8443/A%20b?c=d&e#f?g": Target("https", "example.org", 8443, "/A%20b?c=d&e"),
    "http://example.org.?q": Target("http", "example.org", 80, "/?q"),
    "http://a_b-c.example.org:1/": Target("http", "a_b-c.example.org", 1, "/"),
    "http://bücher.example/übung?ä": Target("http", "xn--bcher-kva.example", 80, "/%C3%BCbung?%C3%A4"),
    "http://BÜCHER。example/": Target("http", "xn--bcher-kva.example", 80, "/"),
    "http://93.184.216.34:81/": Target("http", "93.184.216.34", 81, "/"),
    "http://127.0.0.1./": Target("http", "127.0.0.1", 80, "/"),
    "http://１２７.0.0.1/": Target("http", "127.0.0.1", 80, "/"),
    "https://[2606:4700:0:0::1111]/": Target("https", "2606:4700::1111", 443, "/"),
    "http://[::ffff:127.0.0.1]:80/x": Target("http", "::ffff:7f00:1", 80, "/x"),
    "http://example.org/a/../b//c;d@e:f\\g": Target("http", "example.org", 80, "/a/../b//c;d@e:f\\g"),
    "http://localhost:8000/": Target("http", "localhost", 8000, "/"),
}

WRONG_URLS = [
    "",
    "example.org",
    "//example.org/",
    "http:example.org",
    "http:/example.org",
    "http:\\\\example.org",
    "http://",
    "http:///path",
    "http://?q",
    "ftp://example.org/",
    "file:///etc/passwd",
    "data:,x",
    "gopher://example.org/",
    " http://example.org",
    "http://example.org/\n",
    "http://example.org/a b",
    "http://exam\tple.org/",
    "http://example.org/\r\nHost: a",
    "http://example.org/\x00",
    "http://example.org/\x7f",
    "http://example.org/\u2028",
    "http://example.org/\u202e",
    "http://example.org/\ud800",
    "http://me@example.org/",
    "http://me:secret@example.org/",
    "http://@example.org/",
    "http://example.org\\@evil.example/",
    "http://example.org:80@evil.example/",
    "http://example.org:/",
    "http://example.org:0/",
    "http://example.org:65536/",
    "http://example.org:+80/",
    "http://example.org:８０/",
    "http://example.org:80:80/",
    "http://exa%6dple.org/",
    "http://ex..ample/",
    "http://.example/",
    "http://./",
    "http://-a.example/",
    "http://a!b.example/",
    "http://[::1/",
    "http://::1/",
    "http://[::1%25eth0]/",
    "http://[::1%eth0]/",
    "http://[127.0.0.1]/",
    "http://[v1.a]/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://127.1/",
    "http://127.0.0.0x1/",
    "http://127.0.0.01/",
    "http://1.2.3.256/",
    "http://1.2.3.4.5/",
    "http://example.0x/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a.x" * 90 + "/",
    "http://" + "ü" * 60 + "/",
    "http://\u00ad/",
]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "64:ff9b::808:808",
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.0.0",
    "169.254.169.254",
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:a00:1",
    "64:ff9b::a00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:a00:1::f5ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "2002:808:808::1",
    "3ffe::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_read_into_one_spelling(url: str) -> None:
    target = check_url(url)
    assert target == URLS[url]
    assert check_url(target.url) == target


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_url_that_two_readers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(OutsideError, match=r"^The address of image "):
        check_url(url)


def test_a_url_has_a_longest_length_and_the_schemes_that_are_asked_for() -> None:
    url = "https://example.org/".ljust(addresses.LONGEST, "a")
    assert len(check_url(url).url) == addresses.LONGEST
    with pytest.raises(OutsideError, match="The address of webhook has 8001 characters; expected 8000 at most"):
        check_url(url + "a", name="webhook")
    with pytest.raises(OutsideError, match="begins with https://, without"):
        check_url("http://example.org/", schemes=["https"])


def test_a_refused_url_is_not_repeated_as_it_may_have_a_password() -> None:
    with pytest.raises(OutsideError, match="has a user's name or password; expected none"):
        check_url("http://me:secret@example.org/")
    for url in ("http://me:secret@example.org/", "ftp://secret/", "http://example.org:0/?token=secret"):
        with pytest.raises(OutsideError) as refused:
            check_url(url)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_public_internet_is_public(address: str) -> None:
    assert is_public(address)
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_every_other_address_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_what_python_itself_calls_private_is_not_public() -> None:
    """The tables of the standard library, of whatever version, as a second opinion: at the edges of every network."""
    edges = set()
    for bits, prefix in itertools.product((32, 128), range(1, 33)):
        for network in (0, 10, 100, 127, 169, 172, 192, 198, 203, 224, 240, 0x20, 0x3F, 0xFC, 0xFE, 0xFF):
            base = network << (bits - 8)
            edges |= {(bits, base), (bits, base + (1 << bits - prefix)), (bits, (base + (1 << bits - prefix)) - 1)}
    for bits, value in edges:
        if value < 1 << bits:
            address = ipaddress.IPv4Address(value) if bits == 32 else ipaddress.IPv6Address(value)
            bad = address.is_private or address.is_multicast or address.is_reserved or address.is_link_local
            assert not (bad and is_public(address)), address


def test_hosts_are_allowed_by_their_exact_name_and_port() -> None:
    allowed = ["Hooks.Internal", "10.0.0.5:8080", "::1", "[fd00::1]:81", "bücher.example"]
    for url in (
        "http://hooks.internal/",
        "https://HOOKS.internal.:99/",
        "http://10.0.0.5:8080/",
        "http://[0::1]:5/",
        "http://[fd00::1]:81/",
        "http://xn--bcher-kva.example/",
    ):
        assert is_allowed(check_url(url), allowed), url
    for url in (
        "http://a.hooks.internal/",
        "http://hooks.internal.example/",
        "http://10.0.0.5/",
        "http://[fd00::1]/",
        "http://[::ffff:10.0.0.5]:8080/",
    ):
        assert not is_allowed(check_url(url), allowed), url
    for wrong in ("", "*", "*.internal", "http://a", "a/b", "10.0.0.0/8", "a:0", "a:b", "me@a", "a b", "127.1"):
        with pytest.raises(InputError, match="expected its exact name or IP address"):
            check_allowed(wrong)


class Names:
    """A resolver that gives one answer after another and the last one for ever, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Server:
    """A server on a port of its own; `requests` has what it was sent."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.port = 0
        self.closed_by_client = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://{HERE}:{self.port}/"

    @property
    def allowed(self) -> list[str]:
        return [f"{HERE}:{self.port}"]


@contextlib.asynccontextmanager
async def serving(answer: bytes | Callable[[Writer], Awaitable[None]], **options: Any) -> AsyncIterator[Server]:
    """Serve each connection one request, with bytes or by what writes them, and note when the client has gone."""
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            server.requests.append(head + await reader.readexactly(int(length[1]) if length else 0))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        writer.close()

    listening = await asyncio.start_server(handle, HERE, 0, **options)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def ok(body: bytes = b"body", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def fetched(answer: bytes | Callable[[Writer], Awaitable[None]], **options: Any) -> client.Fetched:
    """What `fetch` makes of a server's answer."""

    async def run() -> client.Fetched:
        async with serving(answer) as server:
            settings: dict[str, Any] = {"most_bytes": 1000, "seconds": 20, "allowed_hosts": server.allowed} | options
            return await client.fetch(server.url, **settings)

    return asyncio.run(run())


def test_a_picture_is_fetched_with_its_media_type() -> None:
    assert fetched(ok(b"\0picture", "Content-Type: Image/PNG; charset=x")) == client.Fetched(b"\0picture", "image/png")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert fetched(chunked).body == b"abcde"
    assert fetched(b"HTTP/1.0 200 OK\r\nContent-Encoding: identity\r\n\r\nuntil it closes").body == b"until it closes"
    for odd in ("Content-Type: <script>", "Content-Type:", "X: y"):
        assert fetched(ok(b"", odd)).media_type == "application/octet-stream"


def test_what_is_sent_names_the_host_and_has_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def run() -> bytes:
        async with serving(ok()) as server:
            await client.fetch(
                f"http://pictures.example:{server.port}/a?b#c",
                most_bytes=10,
                seconds=20,
                allowed_hosts=["pictures.example"],
                resolver=Names([HERE]),
            )
            return server.requests[0].replace(str(server.port).encode(), b"PORT")

    lines = asyncio.run(run()).decode().split("\r\n")
    assert lines[0] == "GET /a?b HTTP/1.1"
    assert {line.partition(":")[0].lower() for line in lines[1:] if line} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
    }
    assert {"Host: pictures.example:PORT", "Accept-Encoding: identity", f"Accept: {client.PICTURES}"} <= set(lines)


REFUSED = {
    "not found": (ok(status="404 Not Found"), "status 404"),
    "a part": (ok(status="206 Partial Content"), "status 206"),
    "a redirect": (ok(b"", "Location: /b", status="302 Found"), "status 302"),
    "a redirect inwards": (ok(b"", "Location: http://169.254.169.254/", status="307 Temporary Redirect"), "status 307"),
    "gzip": (ok(gzip.compress(bytes(10**6)), "Content-Encoding: gzip"), "compressed"),
    "brotli": (ok(b"x", "Content-Encoding: identity, br"), "compressed"),
    "too large": (ok(bytes(1001)), "more than 1000 bytes"),
    "said to be too large": (ok(b"", length=10**12), "more than 1000 bytes"),
    "too large until it closes": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001), "more than 1000 bytes"),
    "too large in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1001,
        "more than 1000 bytes",
    ),
    "cut off": (ok(b"short", length=100), "no answer that can be read"),
    "nothing": (b"", "no answer that can be read"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "no answer that can be read"),
    "an encoding of the transfer": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "no answer that can be read",
    ),
    "many headers": (ok(b"", *[f"X-{i}: {'y' * 1000}" for i in range(300)]), "no answer that can be read"),
    "a long header": (ok(b"", "X: " + "y" * 300_000), "no answer that can be read"),
    "another protocol next": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nabc",
        "no answer that can be read",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_answer_that_is_not_plainly_a_small_body_is_refused(kind: str) -> None:
    answer, match = REFUSED[kind]
    with pytest.raises(OutsideError, match=match) as refused:
        fetched(answer)
    assert HERE not in str(refused.value)


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    assert fetched(ok(bytes(1000))).body == bytes(1000)
    assert fetched(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1000)).body == bytes(1000)


def test_a_redirect_is_not_followed() -> None:
    async def run() -> tuple[int, int]:
        async with (
            serving(ok()) as elsewhere,
            serving(ok(b"", f"Location: {elsewhere.url}", status="302 Found")) as server,
        ):
            hosts = [HERE]
            with pytest.raises(OutsideError, match="status 302"):
                await client.fetch(server.url, most_bytes=10, seconds=20, allowed_hosts=hosts)
            assert await client.post(server.url, b"", {}, seconds=20, allowed_hosts=hosts) == 302
            return len(server.requests), len(elsewhere.requests)

    assert asyncio.run(run()) == (2, 0)


def trickle(begin: bytes, part: bytes) -> Callable[[Writer], Awaitable[None]]:
    """An answer that never ends: `part`, every few milliseconds."""

    async def answer(writer: Writer) -> None:
        writer.write(begin)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        trickle(b"", b""),
        trickle(b"", b"X"),
        trickle(b"HTTP/1.1 200 OK\r\n", b"X"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        trickle(ok(b"", length=1000), b"x"),
        trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["nothing", "a status", "a header", "continue", "a body", "chunks"],
)
def test_the_time_is_limited_as_a_whole_however_slowly_the_answer_comes(
    answer: Callable[[Writer], Awaitable[None]],
) -> None:
    async def run() -> None:
        async with serving(answer) as server, asyncio.timeout(20):
            with pytest.raises(OutsideError, match=r"did not answer within 0\.2 seconds"):
                await client.fetch(server.url, most_bytes=10**6, seconds=0.2, allowed_hosts=server.allowed)

    asyncio.run(run())


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_to_a_server_that_says_nothing_is_closed(scheme: str, cancelled: bool) -> None:
    """One that waits in the negotiation of TLS as well: a stranger could hold every file descriptor."""

    async def run() -> None:
        connected, gone = asyncio.Event(), asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: Writer) -> None:
            connected.set()
            with contextlib.suppress(OSError):
                await reader.read(-1)  # until the client closes
            gone.set()
            writer.close()

        server = await asyncio.start_server(handle, HERE, 0)
        port = server.sockets[0].getsockname()[1]
        asking = asyncio.ensure_future(
            client.fetch(
                f"{scheme}://{HERE}:{port}/", most_bytes=10, seconds=20 if cancelled else 0.2, allowed_hosts=[HERE]
            )
        )
        async with asyncio.timeout(20):
            await connected.wait()
            if cancelled:
                await asyncio.sleep(0.05)
                asking.cancel()
            with pytest.raises(asyncio.CancelledError if cancelled else OutsideError):
                await asking
            await gone.wait()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "found", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]]
)
def test_a_host_with_any_address_that_is_not_public_is_not_connected_to(
    found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connected(*_: object, **__: object) -> None:
        raise AssertionError("it connected")

    monkeypatch.setattr(client._Pinned, "connect_tcp", connected)
    names = Names(found)
    for asking in (
        client.fetch("http://rebind.example/", most_bytes=10, seconds=20, resolver=names),
        client.post("http://rebind.example/", b"", {}, seconds=20, resolver=names),
    ):
        with pytest.raises(OutsideError, match=r"is not public or does not exist; expected a public host\.$"):
            asyncio.run(asking)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://[::1]/", "https://169.254.169.254/latest", "http://0.0.0.0/"]
)
def test_an_address_in_the_url_is_judged_without_a_lookup(url: str) -> None:
    names = Names(["8.8.8.8"])
    with pytest.raises(OutsideError, match="is not public"):
        asyncio.run(client.fetch(url, most_bytes=10, seconds=20, resolver=names))
    assert names.asked == []


def test_only_the_first_lookup_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose second answer is private (DNS rebinding): there is no second lookup, and none by a library."""

    def looked_up(host: object, *_: object, **__: object) -> None:
        raise AssertionError(f"{host} was looked up")

    async def run() -> None:
        async with serving(ok(b"first")) as server:
            monkeypatch.setattr(socket, "getaddrinfo", looked_up)
            names = Names([HERE], ["10.0.0.1"])
            url = f"http://rebind.example:{server.port}/"
            found = await client.fetch(
                url, most_bytes=10, seconds=20, resolver=names, is_public=lambda address: address == HERE
            )
            assert found.body == b"first"
            assert names.asked == ["rebind.example"]
            assert f"Host: rebind.example:{server.port}".encode() in server.requests[0]
            with pytest.raises(OutsideError, match="is not public"):
                await client.fetch(
                    url, most_bytes=10, seconds=20, resolver=names, is_public=lambda address: address == HERE
                )
            assert len(server.requests) == 1

    asyncio.run(run())


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def run() -> bytes:
        async with serving(ok(b"second")) as server:
            found = await client.fetch(
                f"http://two.example:{server.port}/",
                most_bytes=10,
                seconds=20,
                resolver=Names(["::1", HERE]),
                is_public=lambda _: True,
            )
            return found.body

    assert asyncio.run(run()) == b"second"


def test_a_host_that_is_not_found_has_the_message_of_one_that_is_not_public() -> None:
    async def nothing(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is unknown to 10.0.0.53")

    told = []
    for resolver in (nothing, Names([]), Names(["10.0.0.1"])):
        with pytest.raises(OutsideError) as refused:
            asyncio.run(client.fetch("http://db.internal/", most_bytes=10, seconds=20, resolver=resolver))
        told.append(str(refused.value))
    assert len(set(told)) == 1


def test_a_closed_port_is_told_without_the_network() -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))  # and nobody listens
        port = taken.getsockname()[1]
        for asking in (
            client.fetch(f"http://{HERE}:{port}/", most_bytes=10, seconds=20, allowed_hosts=[HERE]),
            client.post(f"http://{HERE}:{port}/", b"", {}, seconds=20, allowed_hosts=[HERE]),
        ):
            with pytest.raises(OutsideError, match=r"^The address of \w+ gave no answer that can be read\.$"):
                asyncio.run(asking)


def test_a_post_arrives_whole_and_gives_the_status() -> None:
    async def run() -> tuple[list[int], bytes]:
        statuses = []
        for status in ("200 OK", "204 No Content", "302 Found", "410 Gone", "503 Busy"):
            async with serving(ok(b"", "Location: /elsewhere", status=status)) as server:
                headers = {"Content-Type": "application/json", "webhook-id": "msg_1"}
                statuses.append(
                    await client.post(server.url, b'{"a":1}', headers, seconds=20, allowed_hosts=server.allowed)
                )
                assert len(server.requests) == 1
        return statuses, server.requests[0]

    statuses, request = asyncio.run(run())
    assert statuses == [200, 204, 302, 410, 503]
    assert request.startswith(b"POST / HTTP/1.1\r\n")
    assert b"\r\nContent-Length: 7\r\n" in request
    assert b"\r\nwebhook-id: msg_1\r\n" in request
    assert request.endswith(b'\r\n\r\n{"a":1}')


def test_the_body_of_an_answer_to_a_post_is_not_waited_for() -> None:
    async def run() -> int:
        async with serving(trickle(ok(b"", length=10**9), b"x")) as server, asyncio.timeout(20):
            return await client.post(server.url, b"", {}, seconds=19, allowed_hosts=server.allowed)

    assert asyncio.run(run()) == 200


def test_a_post_goes_to_nobody_who_is_not_allowed() -> None:
    async def run() -> None:
        async with serving(ok()) as server:
            for allowed in ([], [f"{HERE}:{server.port + 1}"], ["localhost"]):
                with pytest.raises(OutsideError, match="The address of webhook is not public"):
                    await client.post(server.url, b"", {}, seconds=20, allowed_hosts=allowed)
            assert server.requests == []

    asyncio.run(run())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of pictures.example, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl, which makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    settings = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    files = ["-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([program, "req", "-x509", *settings, *names, *files], cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_verifies_the_name_and_not_the_address(certificate: tuple[Path, Path]) -> None:
    asked: list[str | None] = []
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(*certificate)
    theirs.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))

    async def run() -> None:
        async with serving(ok(b"secret"), ssl=theirs) as server:
            for host, tls, told in (
                ("pictures.example", trusting, None),
                ("other.example", trusting, "no answer"),
                ("pictures.example", None, "no answer"),
            ):
                asking = client.fetch(
                    f"https://{host}:{server.port}/",
                    most_bytes=10,
                    seconds=20,
                    resolver=Names([HERE]),
                    is_public=lambda _: True,
                    tls=tls,
                )
                if told is None:
                    assert (await asking).body == b"secret"
                else:
                    with pytest.raises(OutsideError, match=told):
                        await asking
            assert len(server.requests) == 1

    asyncio.run(run())
    assert asked == ["pictures.example", "other.example", "pictures.example"]


def test_the_systems_lookup_finds_this_machine() -> None:
    assert HERE in asyncio.run(addresses.resolve("localhost"))
    with pytest.raises(OutsideError, match="is not public"):
        asyncio.run(client.fetch("http://localhost/", most_bytes=10, seconds=20))


def test_names_that_never_answer_hold_nothing_but_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = threading.Event()

    def silent(*_: object, **__: object) -> list[Any]:
        answering.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    async def ask(seconds: float) -> str:
        with pytest.raises(OutsideError) as refused:
            await client.fetch("http://silent.example/", most_bytes=10, seconds=seconds)
        return str(refused.value)

    async def run() -> None:
        told = await asyncio.gather(*[ask(0.2) for _ in range(addresses.MOST_LOOKUPS)])
        assert set(told) == {"The address of image did not answer within 0.2 seconds."}
        assert "not public or does not exist" in await ask(60)  # at once: no thread is left
        assert await asyncio.to_thread(lambda: "still there") == "still there"

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        asyncio.run(run())
    finally:
        answering.set()
    for _ in range(addresses.MOST_LOOKUPS):  # every thread gives back what it took
        assert addresses._lookups.acquire(timeout=20)
    for _ in range(addresses.MOST_LOOKUPS):
        addresses._lookups.release()
