"""`kandinsky22 serve`: how it starts, what keeps it from starting, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kandinsky22.cli.main import main
from kandinsky22_serve.connections import Listener

from .conftest import wait_until
from .running import Running, small

SERVE = (sys.executable, "-m", "kandinsky22", "serve")


def refused(*flags: str | Path) -> str:
    """The one sentence with which a server does not start."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["serve", *map(str, flags), "--no-ui"])
    told = err.getvalue()
    assert (code, out.getvalue()) == (1, "")
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    return told


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "the data"


def test_a_public_address_without_a_token_is_refused(shapes_bundle: Path, data: Path) -> None:
    assert "token-file" in refused(shapes_bundle, "--data", data, "--host", "0.0.0.0")
    assert not data.exists()


def test_a_port_that_is_taken_is_one_sentence(shapes_bundle: Path, data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be listened at" in refused(shapes_bundle, "--data", data, "--port", port)
    assert not data.exists()


def test_a_certificate_that_is_none_is_one_sentence(shapes_bundle: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("none")
    flags = ("--tls-cert", tmp_path / "c.pem", "--tls-key", tmp_path / "c.pem")
    assert "PEM" in refused(shapes_bundle, "--data", data, *flags)


@pytest.mark.parametrize(
    "host", ["nowhere.invalid", "a" * 300, "999.1.1.1", "::zz"],
)  # fmt: skip
def test_an_address_that_is_none_is_one_sentence(
    shapes_bundle: Path, data: Path, tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kandinsky22.errors import InputError
    from kandinsky22_serve.command import _listening
    from kandinsky22_serve.settings import Settings

    with pytest.raises(InputError, match="cannot be listened at"), _listening(Settings(shapes_bundle, host=host)):
        pass


def test_an_engine_that_cannot_start_ends_the_server_with_its_sentence(shapes_bundle: Path, data: Path) -> None:
    broken = data.parent / "bundle"
    shutil.copytree(shapes_bundle, broken)
    (broken / "onnx" / "prior_step.onnx").write_bytes(b"no graph")
    done = subprocess.run(
        [*SERVE, str(broken), "--data", str(data), "--port", "0", "--no-ui", "--backend", "onnxruntime"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "prior_step.onnx" in errors[0]
    assert "Traceback" not in done.stderr


def start(bundle: Path, data: Path, *flags: str) -> Running:
    server = Running(bundle, data, "--backend", "onnxruntime", *flags).start()
    server.wait_for("/readyz")
    return server


@pytest.fixture
def server(shapes_bundle: Path, data: Path) -> Iterator[Running]:
    found = start(shapes_bundle, data)
    yield found
    found.stop()


def test_it_says_where_it_listens_keeps_its_folder_to_itself_and_shares_it_with_nobody(
    server: Running, shapes_bundle: Path, data: Path
) -> None:
    first = server._log.read_text().splitlines()[0]
    assert first == f"kandinsky22 serves {shapes_bundle} as ai-forever/kandinsky-2.2 at {server.base}"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "files").stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "queue.sqlite3").stat().st_mode) == 0o600
    assert "another running server" in refused(shapes_bundle, "--data", data, "--port", "0")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_ran_waits_for_the_next(
    server: Running, shapes_bundle: Path, data: Path, ending: signal.Signals
) -> None:
    asked = {"input": small("a", num_inference_steps=500)}
    prefer = {"prefer": "respond-async"}
    job = httpx.post(f"{server.base}/predictions", json=asked, headers=prefer, timeout=20).json()["id"]
    wait_until(lambda: httpx.get(f"{server.base}/readyz", timeout=20).json()["status"] == "busy")
    engine = server.engine()
    assert engine is not None
    code = server.kill(ending)
    assert code in ((-signal.SIGTERM,) if ending is signal.SIGTERM else (130, -signal.SIGINT))
    assert not Path(f"/proc/{engine}").exists()
    from kandinsky22_serve.store.records import Status
    from kandinsky22_serve.store.store import Store

    store = Store(data)
    found = store.jobs.get(job)
    store.close()
    assert found is not None
    assert (found.status, found.deaths) == (Status.STARTING, 0)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(server: Running) -> None:
    assert server.process is not None
    engine = server.engine()
    assert engine is not None
    os.kill(engine, signal.SIGSTOP)  # it does not end when it is told to
    with httpx.stream("GET", f"{server.base}/healthz", timeout=20):
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) in (130, -signal.SIGINT)
    wait_until(lambda: _is_dead(engine), 10)


def _is_dead(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_token_file_that_others_can_read_is_told(shapes_bundle: Path, data: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o644)
    server = start(shapes_bundle, data, "--token-file", str(token))
    server.stop()
    assert "chmod 600" in server._log.read_text()
    assert "0123456789abcdef" not in server._log.read_text()


def test_the_help_reads_well() -> None:
    done = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for text in ("--max-work", "BUNDLE", "KANDINSKY22_PORT", "(127.0.0.1)", "(8022)"):
        assert text in done.stdout


def test_answers_are_not_held_back_for_more() -> None:
    """asyncio turns Nagle's algorithm off for sockets that say that they are TCP's."""
    with Listener(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            assert connection.proto == socket.IPPROTO_TCP
            connection.close()
