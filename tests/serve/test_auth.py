"""Who may ask: tokens, pages of other sites, names that are not ours."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from kandinsky22.errors import InputError
from kandinsky22_serve import problems
from kandinsky22_serve.auth import Auth, read_tokens

TOKEN, OTHER = b"0123456789abcdef", b"another-token-of-ours"
PICTURE = f"/files/{'a' * 26}.png"


def client(*tokens: bytes, public_url: str | None = None) -> TestClient:
    app = Auth(PlainTextResponse("inside"), tokens, public_url)
    return TestClient(app, "http://127.0.0.1:8022", raise_server_exceptions=True)


def ask(client: TestClient, headers: Mapping[str, str | bytes], path: str = "/v1/models", method: str = "GET") -> int:
    found: httpx.Response = client.request(method, path, headers=dict(headers))  # type: ignore[arg-type]
    assert (found.text == "inside") == (found.status_code == 200)
    return found.status_code


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {TOKEN.decode()}",
        f"bearer   {TOKEN.decode()}",
        f"Token {TOKEN.decode()}",
        f"Bearer {OTHER.decode()}",
        basic(f"anyone:{TOKEN.decode()}"),
        basic(f":{OTHER.decode()}"),
    ],
)
def test_whoever_has_a_token_may_ask(header: str) -> None:
    assert ask(client(TOKEN, OTHER), {"authorization": header}) == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN.decode(),
        f"Bearer {TOKEN.decode()[:-1]}",
        f"Bearer {TOKEN.decode()}0",
        f"Bearer {TOKEN.decode().upper()}",
        f"Bearer {TOKEN.decode()} {TOKEN.decode()}",
        f"Digest {TOKEN.decode()}",
        "Bearer " + "x" * 8000,
        "Bearer null",
        "Bearer é".encode("latin-1"),
        "Bearer ключ".encode(),
        basic(TOKEN.decode()),
        basic(f"{TOKEN.decode()}:"),
        "Basic !!!",
        "Basic é".encode("latin-1"),
        f"Basic {TOKEN.decode()}",
    ],
)
def test_whoever_has_none_is_refused(header: str | bytes) -> None:
    assert ask(client(TOKEN, OTHER), {"authorization": header}) == 401


def test_a_refusal_says_how_to_ask_and_repeats_nothing() -> None:
    found = client(TOKEN).get("/v1/models", headers={"authorization": "Bearer my-wrong-secret"})
    challenges = found.headers.get_list("www-authenticate")
    assert [each.split()[0] for each in challenges] == [
        "Basic",
        "Bearer",
    ]  # one a header: browsers read the first alone
    assert found.headers["content-type"] == "application/problem+json"
    assert found.json() == {
        "title": "Unauthorized",
        "detail": "The token is missing or wrong; send Authorization: Bearer.",
        "status": 401,
    }
    found = client(TOKEN).post("/v1/images/generations")
    assert found.json()["error"]["code"] == "invalid_api_key"


def test_every_token_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = __import__("hmac").compare_digest

    def seen(given: bytes, token: bytes) -> bool:
        compared.append(token)
        return bool(real(given, token))

    monkeypatch.setattr("kandinsky22_serve.auth.hmac.compare_digest", seen)
    assert ask(client(TOKEN, OTHER), {"authorization": f"Bearer {TOKEN.decode()}"}) == 200
    assert compared == [TOKEN, OTHER]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health-check", PICTURE])
def test_health_and_pictures_by_their_ids_need_no_token(path: str) -> None:
    assert ask(client(TOKEN), {}, path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/docs",
        "/openapi.json",
        "/",
        "/healthz/",
        "/healthz/../metrics",
        "/files/",
        "/files/../v1/predictions",
        "/files/%2e%2e/metrics",
        f"/files/{'a' * 26}.png/x",
        f"/files/{'A' * 26}.png",
        f"/files/{'a' * 26}.png%0a",
        "/v1/files",
        f"/v1/files/{'a' * 26}",
    ],
)
def test_nothing_else_is_open(path: str) -> None:
    assert ask(client(TOKEN), {}, path) == 401


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8022", "127.0.0.1", "127.0.0.1:1", "127.9.8.7", "[::1]:8022"])
def test_without_a_token_local_names_are_answered(host: str) -> None:
    assert ask(client(), {"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.evil.example:8022",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost:8022/x",
        "localhost:80:22",
        "localhost:",
        "[::1",
        "[::2]",
        "0.0.0.0",
        "192.168.0.2",
        "169.254.169.254",
        "2130706433",
        "127.1",
    ],
)
def test_without_a_token_other_names_are_refused_against_dns_rebinding(host: str) -> None:
    assert ask(client(), {"host": host}) == 403


FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"origin": "https://evil.example"},
    "another port": {"origin": "http://127.0.0.1:3000"},
    "another local name": {"origin": "http://localhost:8022"},
    "a sandboxed frame": {"origin": "null"},
    "no origin at all": {"origin": ""},
    "a broken origin": {"origin": "http://["},
    "a form, or a picture's tag": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "a server beside us": {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_pages_of_other_sites_cannot_use_a_server_without_a_token(name: str) -> None:
    for method in ("GET", "POST"):
        assert ask(client(), FOREIGN[name], method=method) == 403


@pytest.mark.parametrize("name", FOREIGN)
def test_pages_of_other_sites_cannot_use_the_token_that_a_browser_remembers(name: str) -> None:
    authorization = basic(f":{TOKEN.decode()}")
    assert ask(client(TOKEN), {"authorization": authorization, **FOREIGN[name]}, method="POST") == 403


@pytest.mark.parametrize("name", FOREIGN)
def test_pages_of_other_sites_may_send_the_token_themselves(name: str) -> None:
    assert ask(client(TOKEN), {"authorization": f"Bearer {TOKEN.decode()}", **FOREIGN[name]}) == 200


def test_our_own_page_and_links_to_it_are_answered() -> None:
    assert ask(client(), {"origin": "http://127.0.0.1:8022", "sec-fetch-site": "same-origin"}, method="POST") == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask(client(), link) == 200
    assert ask(client(), link, method="POST") == 403
    public = client(TOKEN, public_url="https://Pictures.example.org/kandinsky")
    headers = {"authorization": basic(f":{TOKEN.decode()}"), "origin": "https://pictures.example.org"}
    assert ask(public, headers, method="POST") == 200


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a,b", "<b>", "a\tb", "a?b", "x" * 300, ""])
def test_with_a_token_a_host_that_is_none_is_refused(host: str) -> None:
    headers = {"host": host, "authorization": f"Bearer {TOKEN.decode()}"}
    assert ask(client(TOKEN), headers) == 400
    assert ask(client(TOKEN), headers, PICTURE) == 400


@pytest.mark.parametrize(("tokens", "code"), [((TOKEN,), 4401), ((), 4403)])
def test_a_websocket_is_closed_alike(tokens: tuple[bytes, ...], code: int) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        client(*tokens).websocket_connect("/x", headers={"host": "evil.example"}),
    ):
        pass
    assert closed.value.code == code


def test_tokens_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(TOKEN + b"\r\n\n  " + OTHER + b"\n")
    assert read_tokens(path) == (TOKEN, OTHER)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"short\n",
        TOKEN + b"\nshort",
        b"of-two words-123\n",
        b"nul-\x00-0123456789",
        "ключ-не-из-аски-0123".encode(),
        b"\xff" * 20,
    ],
)
def test_what_cannot_be_secret_is_refused_and_not_repeated(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(text)
    with pytest.raises(InputError) as error:
        read_tokens(path)
    assert str(error.value).count("\n") == 0
    assert not text.strip() or text.split()[0].decode("latin-1") not in str(error.value)


def test_no_page_of_another_site_is_given_leave(shared_app: object) -> None:
    app = shared_app.client  # type: ignore[attr-defined]
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for found in (app.options("/v1/predictions", headers=headers), app.get("/healthz"), app.get("/nowhere")):
        assert not [name for name in found.headers if name.startswith("access-control")]
        assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/images/generations", "/predictions", "/files/x"])
@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "PROPFIND"])
def test_methods_that_a_path_does_not_take_are_refused_in_its_own_form(
    shared_app: object, path: str, method: str
) -> None:
    found = shared_app.client.request(method, path)  # type: ignore[attr-defined]
    assert found.status_code == 405
    assert "allow" in found.headers
    expected = problems.answer(path)(405, "This address does not take this method.")
    assert (found.content, found.headers["content-type"]) == (expected.body, expected.headers["content-type"])
