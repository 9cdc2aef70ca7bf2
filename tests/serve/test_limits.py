"""How much a client may send, and how slowly: bodies, connections, work."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message

from kandinsky22_serve import connections, problems
from kandinsky22_serve.connections import Listener
from kandinsky22_serve.limits import MOST_VALUES, Limits

from .conftest import App
from .running import small


def application() -> FastAPI:
    app = FastAPI()
    problems.add_handlers(app)

    @app.post("/json")
    async def read(body: dict[str, Any]) -> int:
        return len(body)

    @app.post("/form")
    async def form(request: Request) -> int:
        async with request.form() as found:
            return len(found)

    @app.post("/hold")
    async def hold(request: Request) -> int:
        found = len(await request.body())
        await app.state.free.wait()
        return found

    @app.post("/v1/images/generations")
    async def images(body: dict[str, Any]) -> int:
        return len(body)

    return app


def client(**limits: Any) -> httpx.AsyncClient:
    inner = application()
    inner.state.free = asyncio.Event()
    app = Limits(inner, **limits)
    transport = httpx.ASGITransport(app=app)
    found = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    found.free = inner.state.free  # type: ignore[attr-defined]
    return found


async def chunks(count: int, size: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size
        await asyncio.sleep(pause)


JSON = {"content-type": "application/json"}


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes() -> None:
    async def main() -> None:
        async with client(most_body=1 << 20) as http:
            found = await http.post("/json", content=b"{}", headers={**JSON, "content-length": str(1 << 21)})
            assert found.status_code == 413
            assert found.json()["detail"] == "The body is larger than 1 MiB."
            assert found.headers["connection"] == "close"
            for length in ("9" * 5000, "-1", "+1", "1e3", "½"):
                headers = {**JSON, "content-length": length.encode("latin-1")}
                assert (await http.post("/json", content=b"{}", headers=headers)).status_code == 413  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/json", "/form", "/v1/images/generations"])
def test_a_body_that_grows_too_large_is_refused_on_its_way(path: str) -> None:
    kind = "multipart/form-data; boundary=x" if path == "/form" else "application/json"

    async def body() -> AsyncIterator[bytes]:
        if path == "/form":
            yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        async for chunk in chunks(40, 1 << 16):
            yield chunk

    async def main() -> None:
        async with client(most_body=1 << 20) as http:
            found = await http.post(path, content=body(), headers={"content-type": kind})
            assert found.status_code == 413
            told = found.json()
            assert (told["error"]["message"] if "error" in told else told["detail"]) == "The body is larger than 1 MiB."

    asyncio.run(main())


def test_a_body_that_does_not_come_in_time_is_refused() -> None:
    async def main() -> None:
        async with client(body_seconds=0.05) as http:
            found = await http.post("/json", content=chunks(20, 1, 0.02), headers=JSON)
            assert found.status_code == 408
            assert "seconds" in found.json()["detail"]

    asyncio.run(main())


def test_an_answer_may_take_longer_than_a_body() -> None:
    async def main() -> None:
        async with client(body_seconds=0.05) as http:
            waiting = asyncio.ensure_future(http.post("/hold", content=b"abc"))
            await asyncio.sleep(0.15)
            http.free.set()  # type: ignore[attr-defined]
            assert (await waiting).json() == 3

    asyncio.run(main())


def test_bodies_are_bounded_together_for_as_long_as_they_are_held() -> None:
    async def main() -> None:
        async with client(most_body=1000, most_together=2500) as http:
            waiting = [asyncio.ensure_future(http.post("/hold", content=b"a" * 1000)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await http.post("/hold", content=b"a" * 1000)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            http.free.set()  # type: ignore[attr-defined]
            assert [(await each).status_code for each in waiting] == [200, 200]
            assert (await http.post("/hold", content=b"a" * 1000)).status_code == 200

    asyncio.run(main())


def test_a_body_of_too_many_values_is_refused_and_a_picture_in_a_form_is_not() -> None:
    async def main() -> None:
        async with client() as http:
            commas = b'{"a": [' + b"0," * MOST_VALUES + b"0]}"
            assert (await http.post("/json", content=commas, headers=JSON)).status_code == 413
            form = await http.post("/form", files={"image": b"," * (MOST_VALUES + 1)})
            assert (form.status_code, form.json()) == (200, 1)

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 100_000, b"", b"{", b"\xff\xfe", b'{"a": NaN', b"null"])
def test_a_body_that_is_no_json_is_one_sentence(body: bytes) -> None:
    async def main() -> None:
        async with client() as http:
            found = await http.post("/json", content=body, headers=JSON)
            assert found.status_code in (400, 422)
            assert "\n" not in found.json()["detail"]

    asyncio.run(main())


def test_what_the_application_sends_twice_is_told_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await problems.plain(404, "There is none.")(scope, receive, send)

    sent: list[Message] = []

    async def main() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            sent.append(message)

        await Limits(app)({"type": "http", "path": "/", "headers": []}, receive, send)

    asyncio.run(main())
    assert [value for name, value in sent[0]["headers"] if name == b"x-content-type-options"] == [b"nosniff"]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(connections, "MOST", 2)
    with Listener(socket.AF_INET) as found:
        found.bind(("127.0.0.1", 0))
        found.listen(8)
        yield found


def test_a_full_server_closes_new_connections_and_takes_them_again_when_one_has_left(listener: Listener) -> None:
    def connect() -> socket.socket:
        return socket.create_connection(listener.getsockname(), timeout=5)

    with connect(), connect(), connect() as third, connect() as fourth:
        first, second = listener.accept()[0], listener.accept()[0]
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert third.recv(1) == b""
        first.close()
        accepted = listener.accept()[0]
        accepted.sendall(b"x")
        assert fourth.recv(1) == b"x"
        accepted.close()
        second.close()


def ask(app: App, **given: Any) -> httpx.Response:
    return app.client.post("/predictions", json={"input": {**small("a"), **given}}, headers={"prefer": "respond-async"})


def test_the_work_of_a_job_is_bounded_by_its_pictures_and_steps(make_app: Any) -> None:
    app = make_app(max_work=1)
    # 256 x 256 pixels, 4 pictures, are 0.26 megapixels.
    assert ask(app, width=256, height=256, num_outputs=4, num_inference_steps=3).status_code == 202
    for more in ({"num_inference_steps": 4}, {"num_inference_steps": 3, "width": 512}):
        found = ask(app, **{"width": 256, "height": 256, "num_outputs": 4, **more})
        assert found.status_code == 422
        assert "fewer steps" in found.json()["detail"]
        assert "up to 1." in found.json()["detail"]
    assert app.service.store.jobs.newest(9)[1:] == []


def test_the_published_defaults_are_within_the_bounds_at_every_size(shared_app: App) -> None:
    sides = {"width": 2048, "height": 2048} if shared_app.service.manifest.limits.max_size >= 2048 else {}
    assert ask(shared_app, **{**sides, "num_inference_steps": 75, "num_outputs": 4}).status_code == 202


def test_a_seed_that_javascript_cannot_hold_is_refused(shared_app: App) -> None:
    assert ask(shared_app, seed=2**53 - 1).status_code == 202
    found = ask(shared_app, seed=2**53)
    assert found.status_code == 422
    assert "seed" in found.json()["detail"]


def test_a_long_prompt_and_an_unknown_key_are_refused_without_their_values(shared_app: App) -> None:
    for given in ({"prompt": "secret" * 2000}, {"my_key": {"auth": "secret-token"}}):
        found = ask(shared_app, **given)
        assert found.status_code == 422
        assert "secret" not in found.text
        assert "my_key" not in found.text


def test_a_key_that_is_given_twice_counts_once(shared_app: App) -> None:
    body = '{"input": {"prompt": "a", "seed": 1, "seed": 2}}'
    headers = {**JSON, "prefer": "respond-async"}
    found = shared_app.client.post("/predictions", content=body, headers=headers)
    assert found.status_code == 202
    assert json.loads(found.text)["input"]["seed"] == 2
