"""`kandinsky22 doctor --server URL`: a server as a client finds it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22.cli.main import main

from .quick import Serving, serving
from .running import free_port

TOKEN = b"0123456789abcdef"


@pytest.fixture(scope="module")
def running(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "token").write_bytes(TOKEN + b"\n")
    with serving(shapes_bundle, folder / "data", (TOKEN,)) as found:
        yield found


@pytest.fixture
def token(running: Serving) -> str:
    return str(running.service.settings.data.parent / "token")


def test_a_sound_server_is_described(running: Serving, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", running.base, "--token-file", token, "--try"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"server       {running.base}: answers in" in told.out
    for text in ("without TLS", "engine       ready", "token        accepted", "ai-forever/kandinsky-2.2", "picture "):
        assert text in told.out
    assert TOKEN.decode() not in told.out


def test_it_is_told_in_json_too(running: Serving, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = running.newest()
    assert main(["doctor", "--server", running.base + "/", "--token-file", token, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["engine"], told["waiting"], told["running"], told["problems"]) == ("ready", 0, 0, [])
    after = running.newest()
    assert (before and before.id) == (after and after.id)  # no picture is made unasked


def test_without_the_token_it_says_what_to_give(running: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", running.base]) == 1
    told = capsys.readouterr()
    assert "token        refused" in told.out
    assert told.err == "error: The server does not let us in; give the file of its token with --token-file.\n"


def test_a_broken_engine_and_a_failed_picture_are_problems(
    running: Serving, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = running.engine
    try:
        engine.state = "starting"
        assert main(["doctor", "--server", running.base, "--token-file", token]) == 1
        assert "The engine is starting" in capsys.readouterr().err
        engine.state, engine.fails = "ready", "There is no memory."
        assert main(["doctor", "--server", running.base, "--token-file", token, "--try"]) == 1
        assert "A test picture was not made: There is no memory.\n" in capsys.readouterr().err
    finally:
        engine.state, engine.fails = "ready", None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_not_reached_is_one_sentence(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", f"{scheme}://127.0.0.1:{free_port()}"]) == 1
    told = capsys.readouterr().err
    assert "is not reached: Connection refused." in told
    assert told.count("\n") == 1


def test_a_server_without_tls_is_told_from_one_with_it(running: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", running.base.replace("http:", "https:")]) == 1
    assert "does not speak TLS" in capsys.readouterr().err


def test_another_program_is_told_from_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        assert main(["doctor", "--server", f"http://127.0.0.1:{other.server_address[1]}"]) == 1
        other.shutdown()
    assert "is no server of kandinsky22" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--server", "127.0.0.1:8022"],
        ["--server", "ftp://a.example"],
        ["--server", "http://["],
        ["--server", "http://a.example:99999"],
        ["--server", "http://me:secret@a.example"],
        ["bundle", "--server", "http://a.example"],
        ["--try"],
        ["--token-file", "x"],
        ["--server", "http://127.0.0.1:1", "--token-file", "/dev/null/x"],
    ],
)
def test_what_cannot_be_asked_is_one_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *flags]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "secret" not in told.err
