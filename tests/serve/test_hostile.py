"""A hundred hostile requests to a real server: each is refused in bounds, and the server is well afterwards."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import io
import json
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import PIL.Image
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from kandinsky22_serve import connections
from kandinsky22_serve.connections import BoundedProtocol

from .conftest import TOKEN, wait_until
from .running import Running, free_port, resident, small

MEGABYTE = 1 << 20
MOST_GROWTH = 300 * MEGABYTE
"""Of the server's memory, by all of this together. One request alone may hold 64 MiB, and its JSON as much again."""
NAMES = {
    "loopback.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "private.test": ["10.0.0.1"],
    "six.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "both.test": ["8.8.8.8", "127.0.0.1"],
}
"""What the server's resolver says: names that are somebody else's, and lead into our network."""
RESOLVER = f"""
import socket, sys
def looked_up(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    found = {NAMES!r}.get(name)
    if found is None and name not in ("127.0.0.1", "::1", "localhost"):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return real(host, *rest, **more) if found is None else [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in found
    ]
real, socket.getaddrinfo = socket.getaddrinfo, looked_up
from kandinsky22.cli.main import main
sys.exit(main())
"""


class Canary(http.server.ThreadingHTTPServer):
    """Stands for what only this machine should reach; notes who came. `/redirect` leads there from an allowed host."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Canary)
        self.hits: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Canary(http.server.BaseHTTPRequestHandler):
    server: Canary

    def do_GET(self) -> None:
        self.server.hits.append(self.path)
        self.send_response(302 if "redirect" in self.path else 200)
        if "redirect" in self.path:
            self.send_header("location", f"http://localhost:{self.server.server_address[1]}/secret")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class Target(NamedTuple):
    """The server under attack, and what it must not be led to."""

    server: Running
    canary: Canary
    redirector: Canary
    before: int

    @property
    def process(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    def connect(self, seconds: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=seconds)

    def say(self, data: bytes) -> int:
        """Send bytes; the status of the answer, or 0 where the connection is closed without one."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # it may be refused before all is sent
                connection.sendall(data)
            return status(connection)

    def is_well(self) -> bool:
        return httpx.get(f"{self.server.base}/healthz", timeout=20).status_code == 200


def status(connection: socket.socket) -> int:
    found = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in found:
            got = connection.recv(65536)
            if not got:
                break
            found += got
    if not found:
        return 0
    assert b"Traceback" not in found
    assert b'File "' not in found
    return int(found.split(b" ")[1])


@pytest.fixture(scope="module")
def target(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "token").write_text(f"{TOKEN}\n")
    with Canary() as canary, Canary() as redirector:
        allowed = f"127.0.0.1:{redirector.server_address[1]}"
        flags = ("--token-file", str(folder / "token"), "--backend", "onnxruntime", "--max-queue", "20")
        server = Running(shapes_bundle, folder / "data", *flags, "--allow-input-host", allowed)
        server._command = [sys.executable, "-c", RESOLVER, *server._command[3:]]
        with server:
            server.wait_for("/readyz")
            assert server.process is not None
            yield Target(server, canary, redirector, resident(server.process.pid))
        canary.shutdown()
        redirector.shutdown()


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, token: str | None = TOKEN
) -> bytes:
    """A request as it goes over the line; `headers` replace those that it would have."""
    found = {"Host": "127.0.0.1", "Connection": "close"}
    if token is not None:
        found["Authorization"] = f"Bearer {token}"
    if body:
        found |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    found |= headers or {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in found.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def asked(**given: Any) -> bytes:
    body = json.dumps({"input": {**small("a"), **given}}).encode()
    return request("POST", "/predictions", body, {"Prefer": "respond-async"})


def uri(body: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(body).decode()}"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def saved(form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(stream, form, **options)
    return stream.getvalue()


ID = "a" * 26
OK, BAD, GONE = {200}, {400, 422}, {0, 400}
WHOLE = saved("png")
BOMB = chunk(b"IDAT", zlib.compress(b"\0" * (32 * MEGABYTE), 9))
TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (64 * MEGABYTE), 9))
MANY = [PIL.Image.new("RGB", (64, 64), (each, 0, 0)) for each in range(20)]

PATHS = {
    f"a file's id that is {name}": (request("GET", f"/files/{path}", token=None), statuses)
    for name, path, statuses in (
        ("a step up", "../queue.sqlite3", {401}),
        ("two steps up", "../../../../etc/passwd", {401}),
        ("a step up, encoded", "%2e%2e/queue.sqlite3", {401}),
        ("a slash, encoded", "..%2fqueue.sqlite3", {401}),
        ("encoded twice", "%252e%252e%252fqueue.sqlite3", {401}),
        ("a backslash", "..%5cqueue.sqlite3", {401}),
        ("NUL", f"{ID}%00.png", {401}),
        ("NUL at the end", f"{ID}.png%00", {401}),
        ("a line's end", f"{ID}.png%0d%0aSet-Cookie:%20a=b", {401}),
        ("long", "a" * 8000 + ".png", {401}),
        ("beyond ASCII", "%e2%80%ae%f0%9f%92%a9.png", {401}),
        ("no UTF-8", "%ff%fe.png", {401}),
        ("absolute", "/etc/passwd", {401}),
        ("a pattern", "*.png", {401}),
        ("a wildcard of SQL", "%25%25%25%25.png", {401}),
        ("a quote of SQL", f"{ID}'%20OR%20'1'='1.png", {401}),
        ("nobody's", f"{ID}.png", {404}),
        ("nobody's, with a range", f"{ID}.webp", {404}),
        ("of another suffix", f"{ID}.html", {401, 404}),
        ("a device of Windows", "CON.png", {401}),
    )
}
INNER_PATHS = {
    f"with the token, {name}": (request("GET", path), statuses)
    for name, path, statuses in (
        ("a step up", "/files/../queue.sqlite3", {404}),
        ("a slash, encoded", "/files/..%2fqueue.sqlite3", {404}),
        ("NUL", "/files/%00.png", {404}),
        ("an upload's id that is NUL", "/v1/files/%00", {404}),
        ("an upload's id that is long", f"/v1/files/{'a' * 8000}", {404}),
        ("a prediction's id that is SQL", "/v1/predictions/'%20OR%201=1--", {404}),
        ("a prediction's id that breaks the line", "/v1/predictions/a%0d%0aX:%20b", {404}),
        ("a surrogate", "/v1/predictions/%ed%a0%80", {404}),
        ("a cursor that is none", "/v1/predictions?cursor=%00%ff", {400, 404, 422}),
        ("a cursor that is huge", f"/v1/predictions?cursor={'9' * 4000}", {400, 404, 422}),
        ("a model with steps up", "/v1/models/..%2f..%2fetc/passwd", {404}),
        ("an address of a proxy", "http://169.254.169.254/latest/meta-data", {404}),
    )
}
TOKENS = {
    f"a token that is {name}": (request("GET", "/v1/predictions", headers={"Authorization": value}, token=None), {401})
    for name, value in (
        ("empty", ""),
        ("short", f"Bearer {TOKEN[:-1]}"),
        ("long", f"Bearer {TOKEN}0"),
        ("very long", "Bearer " + "a" * 60_000),
        ("of another kind", f"Negotiate {TOKEN}"),
        ("in another case", f"Bearer {TOKEN.upper()}"),
        ("Basic without a name", "Basic " + base64.b64encode(TOKEN.encode()).decode()),
        ("Basic of a broken base64", "Basic ====="),
        ("beyond ASCII", "Bearer \xe9\xe8"),
        ("twice", f"Bearer {TOKEN}, Bearer {TOKEN}"),
    )
} | {"a token in the query": (request("GET", f"/v1/predictions?token={TOKEN}", token=None), {401})}
LINES: dict[str, tuple[bytes, set[int]]] = {
    "HTTP/0.9": (b"GET /\r\n\r\n", GONE),
    "no HTTP at all": (b"\x00\x01\x02\x03" * 64 + b"\r\n\r\n", GONE),
    "a ClientHello of TLS": (bytes.fromhex("16030100c8010000c40303") + b"\x07" * 192 + b"\r\n\r\n", GONE),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", GONE),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", GONE),
    "an unknown version": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", {0, 400, 401}),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
    "two Hosts": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    "a Host that is no host": (request("GET", "/v1/models", headers={"Host": "evil.example/<script>"}), {400}),
    "a Host with a user": (request("GET", "/v1/models", headers={"Host": "a@b"}), {400}),
    "a bare line's end in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n", {400, 401}),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", {400}),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", {400}),
    "a folded header": (b"GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n", {400, 401}),
    "a head of a megabyte": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"a" * MEGABYTE, {0, 400, 431}),
    "100,000 headers": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 100_000 + b"\r\n", {0, 400, 431}),
    "an address of 100 kB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {0, 400, 401, 414, 431}),
    "TRACE": (request("TRACE", "/v1/predictions"), {405}),
    "CONNECT": (request("CONNECT", "169.254.169.254:80"), {400, 404, 405}),
    "a method of its own": (request("GIBBERISH", "/v1/predictions"), {405}),
    "a websocket": (request("GET", "/v1/predictions", headers={"Connection": "Upgrade", "Upgrade": "websocket",
                    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}), {200, 400, 426}),
    "HTTP/2 by an upgrade": (request("GET", "/nowhere", headers={"Connection": "Upgrade, HTTP2-Settings",
                    "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}), {404}),
}  # fmt: skip
HALF = b'{"input":'
SMUGGLED: dict[str, tuple[bytes, set[int]]] = {
    name: (b"POST /predictions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n" + rest, GONE)
    for name, rest in (
        ("a length and chunks",
         b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"),
        ("two lengths", b"Content-Length: 4\r\nContent-Length: 40\r\n\r\n1234"),
        ("a negative length", b"Content-Length: -1\r\n\r\n"),
        ("a length that is no number", b"Content-Length: 0x10\r\n\r\n"),
        ("a length with a sign", b"Content-Length: +4\r\n\r\n1234"),
        ("an endless length", b"Content-Length: " + b"9" * 1000 + b"\r\n\r\n"),
        ("an unknown coding", b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("a coding in disguise", b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("a coding in xchunked", b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("a chunk that is no number", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ("a chunk of a negative size", b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n"),
        ("an endless chunk's size", b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 64 + b"\r\n"),
        ("an endless chunk's extension", b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 200_000 + b"\r\n"),
    )
}  # fmt: skip
JSON_ = {"Prefer": "respond-async"}
BODIES: dict[str, tuple[bytes, set[int]]] = {
    name: (request("POST", "/predictions", body, JSON_), statuses)
    for name, body, statuses in (
        ("lists within lists", b'{"input": {"mix_weights": ' + b"[" * 200_000, BAD),
        ("objects within objects", b'{"input": ' + b'{"a":' * 100_000, BAD),
        ("deep, and whole", b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", BAD),
        ("ten million values", b'{"input": {"mix_weights": [' + b"0," * 10_000_000 + b"0]}}", {413}),
        ("a million empty lists", b'{"input": [' + b"[]," * 1_000_000 + b"[]]}", {413}),
        ("a number of 100,000 digits", b'{"input": {"seed": ' + b"9" * 100_000 + b"}}", BAD),
        ("a number beyond floats", b'{"input": {"prompt": "a", "guidance_scale": 1e999}}', BAD),
        ("NaN", b'{"input": {"prompt": "a", "strength": NaN}}', BAD),
        ("a prompt of 8 MB", b'{"input": {"prompt": "' + b"a" * (8 * MEGABYTE) + b'"}}', BAD),
        ("half a surrogate", b'{"input": {"prompt": "\\ud800", "my": 1}}', BAD),
        ("no UTF-8", b'{"input": {"prompt": "\xff\xfe"}}', BAD),
        ("no object", b"[]", BAD),
        ("half of it", HALF, BAD),
        ("an unknown key", b'{"input": {"__class__": {"__init__": {}}}}', BAD),
        ("a whole client", b'{"input": {"auth": "r8_secret", "userAgent": "replicate"}}', BAD),
        ("work beyond measure", b'{"input": {"prompt": "a", "num_inference_steps": 1000000}}', BAD),
        ("a side of a million", b'{"input": {"prompt": "a", "width": 1000000}}', BAD),
        ("negative pictures", b'{"input": {"prompt": "a", "num_outputs": -1}}', BAD),
    )
}  # fmt: skip
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PLAIN_INPUT = json.dumps({"input": small("a")}).encode()
BODIES |= {
    "a body larger than it may be": (request("POST", "/predictions", b"{}", {"Content-Length": str(65 << 20)}), {413}),
    "chunks larger than a body may be": (
        request("POST", "/predictions", headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
        + (b"100000\r\n" + b" " * MEGABYTE + b"\r\n") * 66, {0, 413}),
    "text": (request("POST", "/predictions", b"a=a", {"Content-Type": "text/plain"}), {400, 415, 422}),
    "XML": (request("POST", "/predictions", b"<a/>", {"Content-Type": "application/xml"}), {400, 415, 422}),
    "JSON in UTF-7": (
        request("POST", "/predictions", b"+AHs-", {"Content-Type": "application/json; charset=utf-7"}), BAD),
    "gzip": (request("POST", "/predictions", zlib.compress(b"0" * MEGABYTE), {"Content-Encoding": "gzip"}), BAD),
    "a form without a boundary": (request("POST", "/v1/files", b"--", {"Content-Type": "multipart/form-data"}), BAD),
    "a form of a thousand parts": (
        request("POST", "/v1/files",
                b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1000 + b"--x--\r\n", FORM), BAD),
    "a part with a head of 2 MB": (
        request("POST", "/v1/files", b"--x\r\nX: " + b"a" * (2 * MEGABYTE) + b"\r\n\r\n\r\n--x--\r\n",
                FORM), BAD),
    "a file's name with steps up": (
        request("POST", "/v1/files",
                b'--x\r\nContent-Disposition: form-data; name="content"; filename="../../../a"\r\n\r\nno picture\r\n'
                b"--x--\r\n", FORM), BAD),
}  # fmt: skip
PICTURES: dict[str, tuple[bytes, set[int]]] = {
    name: (asked(image=uri(body)), set(BAD))
    for name, body in (
        ("a picture of 400 megapixels in 100 bytes", png(20_000, 20_000, chunk(b"IDAT", zlib.compress(b"")))),
        ("a picture of the largest sides", png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"")))),
        ("a picture that unpacks to far more than its size", png(64, 64, BOMB)),
        ("a picture whose comment unpacks to 64 MB", png(64, 64, TEXT_BOMB)),
        ("a moving picture", saved("webp", save_all=True, append_images=MANY)),
        ("a moving PNG", saved("png", save_all=True, append_images=MANY)),
        ("a GIF", saved("gif")),
        ("a TIFF", saved("tiff")),
        ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("a PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("a PDF", b"%PDF-1.7\n"),
        ("half a picture", WHOLE[: len(WHOLE) // 2]),
        ("nothing", b""),
    )
}
PICTURES["a picture that unpacks to far more than its size"][1].add(202)  # its 4096 pixels are read, and no more
ADDRESSES: dict[str, tuple[bytes, set[int]]] = {
    f"a picture at {url[:60]!r}": (asked(image=url), BAD)
    for url in (
        "http://127.0.0.1:CANARY/a",
        "http://localhost:CANARY/a",
        "http://[::1]:CANARY/a",
        "http://[::ffff:127.0.0.1]:CANARY/a",
        "http://0.0.0.0:CANARY/a",
        "http://2130706433:CANARY/a",
        "http://0x7f000001:CANARY/a",
        "http://0177.0.0.1:CANARY/a",
        "http://127.1:CANARY/a",
        "http://127.0.0.1:CANARY@example.org/a",
        "http://example.org@127.0.0.1:CANARY/a",
        "http://127.0.0.1:CANARY\\@example.org/a",
        "http://loopback.test:CANARY/a",
        "http://metadata.test/latest/meta-data",
        "http://private.test/a",
        "http://six.test:CANARY/a",
        "http://mapped.test:CANARY/a",
        "http://both.test:CANARY/a",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:REDIRECTOR/redirect",
        "http://127.0.0.1:CANARY/\r\nX-Injected: 1",
        "file:///etc/passwd",
        "gopher://127.0.0.1:CANARY/_GET",
        "ftp://127.0.0.1/a",
        "//127.0.0.1:CANARY/a",
        "/etc/passwd",
        "http://" + "a" * 9000,
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/png;base64,%%%",
    )
}
HOOKS: dict[str, tuple[bytes, set[int]]] = {
    f"a webhook to {url!r}": (
        request("POST", "/v1/models/ai-forever/kandinsky-2.2/predictions",
                json.dumps({"input": small("a"), "webhook": url}).encode()), BAD)
    for url in (
        "http://127.0.0.1:CANARY/hook",
        "http://loopback.test:CANARY/hook",
        "http://169.254.169.254/hook",
        "https://a.test/\r\nX-Injected: 1",
        "ftp://a.test/hook",
        "javascript:alert(1)",
    )
}  # fmt: skip
HEADERS: dict[str, tuple[bytes, set[int]]] = {
    "a deadline that is none": (request("POST", "/v1/models/ai-forever/kandinsky-2.2/predictions",
        PLAIN_INPUT, {"Cancel-After": "9" * 5000}), BAD),
    "a range beyond all": (
        request("GET", f"/files/{ID}.png", headers={"Range": "bytes=" + "0-," * 5000}), {400, 404, 416}),
    "an id that is long": (request("PUT", f"/predictions/{'a' * 5000}", PLAIN_INPUT), BAD),
    "an id with a line's end": (request("PUT", "/predictions/a%0d%0ab", PLAIN_INPUT), BAD),
}  # fmt: skip
TABLE = PATHS | INNER_PATHS | TOKENS | LINES | SMUGGLED | BODIES | PICTURES | ADDRESSES | HOOKS | HEADERS


def test_there_are_a_hundred_of_them() -> None:
    assert len(TABLE) >= 100


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused(target: Target, name: str) -> None:
    data, statuses = TABLE[name]
    if b"CANARY" in data or b"REDIRECTOR" in data:
        head, _, body = data.partition(b"\r\n\r\n")
        body = body.replace(b"CANARY", str(target.canary.server_address[1]).encode())
        body = body.replace(b"REDIRECTOR", str(target.redirector.server_address[1]).encode())
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        data = b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body
    assert target.say(data) in statuses
    assert target.is_well()
    assert not target.canary.hits
    assert "/secret" not in target.redirector.hits
    assert resident(target.process) < target.before + MOST_GROWTH


def test_none_of_them_was_taken_and_none_told_in_the_log(target: Target) -> None:
    """Run after the table, as files are run from top to bottom."""
    log = target.server._log.read_text()
    for secret in (TOKEN, "r8_secret", "CANARY", "etc/passwd", "Traceback"):
        assert secret not in log
    for line in log.splitlines():
        if not line.startswith("kandinsky22 serves"):
            json.loads(line)


def test_a_full_house_sends_new_ones_away_and_answers_those_inside(target: Target) -> None:
    crowd(target, connections.MOST + 300)


@pytest.mark.server
def test_ten_thousand_connections_leave_it_well(target: Target) -> None:
    crowd(target, 10_000)


def crowd(target: Target, count: int) -> None:
    """So many connections at once, as far as this process may open files."""
    resource = pytest.importorskip("resource")
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
        pytest.skip(f"this process may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, wanted), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (before, hard))
        inside = http.client.HTTPConnection("127.0.0.1", target.server.port, timeout=300)
        stack.callback(inside.close)
        for number in range(count):
            if number % 500 == 0:
                answers(inside)
            with contextlib.suppress(OSError):
                stack.enter_context(target.connect(5))
        answers(inside)
        opened = len(list(Path(f"/proc/{target.process}/fd").iterdir()))
        assert opened < connections.MOST + 200
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if target.is_well():
                break
    assert target.is_well()
    assert resident(target.process) < target.before + MOST_GROWTH


def answers(inside: http.client.HTTPConnection) -> None:
    connection = inside.sock
    inside.request("GET", "/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
    with inside.getresponse() as answer:
        answer.read()
        assert answer.status == 200
    assert connection in (None, inside.sock)  # the same, which holds its place


@pytest.fixture
def bounded_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    """A server that is as patient as a test."""
    for name in ("HEAD_SECONDS", "REST_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/read":
            await Request(scope, receive).body()
        body = b"x" * (32 * MEGABYTE) if scope["path"] == "/much" else b"ok"
        await PlainTextResponse(body)(scope, receive, send)

    port = free_port()
    config = uvicorn.Config(app, port=port, http=BoundedProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def bounded(bounded_server: uvicorn.Server) -> int:
    """Its port."""
    return bounded_server.config.port


def drip(port: int, first: bytes, more: bytes) -> bytes:
    """What comes back to a client that sends something, and then goes on a byte at a time, until it is sent away."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + 10
        with contextlib.suppress(ConnectionError):
            connection.sendall(first)
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    got = connection.recv(65536)
                    if not got:
                        return found
                    found += got
                if more:
                    connection.sendall(more)
            raise AssertionError("it was not sent away")
    return found


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"", b""), (b"", b"G"), (b"GET / HTTP/1.1\r\n", b"X"), (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a")],
)
def test_a_head_that_does_not_come_in_time_is_not_waited_for(bounded: int, first: bytes, more: bytes) -> None:
    assert drip(bounded, first, more) == b""


def test_a_second_head_that_does_not_come_in_time_is_not_waited_for_either(bounded: int) -> None:
    assert drip(bounded, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"G").endswith(b"ok")


def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for(bounded: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    assert drip(bounded, head, b"a").endswith(b"ok")


def test_a_broken_chunk_after_the_answer_ends_the_connection(bounded: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert drip(bounded, head, b"zz\r\n").count(b"HTTP/1.1 ") <= 1


def test_a_slow_body_that_is_read_and_comes_is_answered(bounded: int) -> None:
    with socket.create_connection(("127.0.0.1", bounded), timeout=10) as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            time.sleep(0.1)
            connection.sendall(b"a")
        assert status(connection) == 200


def test_who_takes_nothing_of_the_answer_is_sent_away(bounded_server: uvicorn.Server) -> None:
    with socket.create_connection(("127.0.0.1", bounded_server.config.port), timeout=10) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1) == b"H"
        wait_until(lambda: not bounded_server.server_state.connections, 10)


def test_what_is_no_http_is_answered_as_other_errors_are(bounded: int) -> None:
    with socket.create_connection(("127.0.0.1", bounded), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"nosniff" in head
    assert json.loads(body) == {"title": "Bad Request", "detail": "This is no HTTP request.", "status": 400}
