"""A real server for real clients, an application without an engine, a receiver of webhooks, and Node."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock
from starlette.testclient import TestClient

from kandinsky22_serve.app import create_app
from kandinsky22_serve.service import Service
from kandinsky22_serve.settings import Settings
from kandinsky22_serve.store.jobs import NewJob
from kandinsky22_serve.store.records import Options, Status, new_id
from kandinsky22_serve.store.store import Store

from .running import Running

TOKEN = "tests-0123456789abcdef"
EARLIER = 230
"""Predictions that an earlier server left in the folder of `server`: more than two pages."""
NODE = Path(__file__).parent / "node"


class Server(Running):
    """A running server with a token."""

    def api(self, **options: Any) -> httpx.Client:
        """A client that sends the token; it does not follow redirects."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=self.base, headers=headers, timeout=60, **options)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="session")
def server(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the session: with a token, and with webhooks and pictures of this machine allowed."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(f"{TOKEN}\n")
    _leave_jobs(folder / "data")
    local = ("--allow-webhook-host", "127.0.0.1", "--allow-input-host", "127.0.0.1")
    flags = ("--token-file", str(folder / "token"), "--backend", "onnxruntime", *local)
    with Server(shapes_bundle, folder / "data", *flags) as server:
        server.wait_for("/readyz")
        yield server


def _leave_jobs(folder: Path) -> None:
    store = Store(folder)
    extra = {"model": "ai-forever/kandinsky-2.2", "version": "0" * 64, "stream": new_id()}
    with store.database.write():  # one transaction: quick
        for number in range(EARLIER):
            request, asked = {"task": "text2img", "prompt": "a"}, {"prompt": f"number {number}"}
            job = NewJob(
                f"earlier{number}", "replicate", request, asked, Options(extra=extra), f"{number}", 1, {}, (number,)
            )
            store.jobs.accept(job, EARLIER)
            store.jobs.end(job.id, Status.CANCELED)
    store.close()


class App:
    """The application without its engine: jobs wait until a test does what an engine would."""

    def __init__(self, service: Service, client: TestClient) -> None:
        self.service, self.client = service, client

    def start(self, job: str) -> None:
        self.service.started(self.service.store.jobs.start([job]))

    def step(self, job: str, step: int = 1, steps: int = 4) -> None:
        self.service.stepped([job], "decoder", step, steps)

    def finish(self, job: str, picture: bytes = b"a picture") -> None:
        """End a job with that picture."""
        found = self.service.job(job)
        assert found is not None
        outputs = [new_id() for _ in range(found.pictures)]
        media_type = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}[found.options.form]
        for each in outputs:
            self.service.store.files.place(each, media_type).write_bytes(picture)
        files = [{"bytes": len(picture), "sha256": "0" * 64} for _ in outputs]
        self.service.saved(job, outputs, files)


@contextlib.contextmanager
def _apps(bundle: Path, data: Path) -> Iterator[Callable[..., App]]:
    services: list[Service] = []

    def close() -> None:
        if services:
            services.pop().store.close()

    def make(**settings: Any) -> App:
        close()
        services.append(Service(Settings(bundle=bundle, data=data, ui=False, **settings)))
        app = create_app(services[0])
        return App(services[0], TestClient(app, "http://127.0.0.1:8022", raise_server_exceptions=False))

    try:
        yield make
    finally:
        close()


@pytest.fixture
def make_app(shapes_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Makes an application over one folder with the settings that are named; a new one is a restarted one."""
    with _apps(shapes_bundle, tmp_path / "data") as make:
        yield make


@pytest.fixture
def app(make_app: Callable[..., App]) -> App:
    return make_app(allow_webhook_host=("127.0.0.1",), allow_input_host=("127.0.0.1",))


@pytest.fixture(scope="module")
def shared_app(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """For what leaves nothing behind."""
    with _apps(shapes_bundle, tmp_path_factory.mktemp("shared") / "data") as make:
        yield make()


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks: `calls` are paths, headers and bodies; `answers` are statuses, of the next calls, then 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.hanging = threading.Event()
        self.hanging.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        """The bodies."""
        return [json.loads(body) for _, _, body in self.calls]

    def wait(self, count: int, seconds: float = 30) -> None:
        """Wait until so many calls have come."""
        wait_until(lambda: len(self.calls) >= count, seconds)


class _Receive(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.calls.append((self.path, headers, body))
        self.server.hanging.wait(30)
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver
        receiver.hanging.set()
        receiver.shutdown()


@pytest.fixture(scope="session")
def node_clients() -> Path:
    """The folder with the JavaScript clients. Without Node such tests skip; in CI they fail."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        _missing("Node and npm are not installed")
    lock, done = NODE / "package-lock.json", NODE / "node_modules" / ".package-lock.json"
    with FileLock(NODE / ".installing"):
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            installed = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=300, check=False)
            if installed.returncode:
                _missing(f"npm cannot install the clients: {installed.stderr[-300:]}")
    return NODE


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}, which CI needs")
    pytest.skip(what)


@pytest.fixture
def node(node_clients: Path) -> Callable[..., Any]:
    """Runs a module of JavaScript beside the clients, with an environment; what it prints is read as JSON."""

    def run(code: str, **environment: str) -> Any:
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", code],
            cwd=node_clients,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
