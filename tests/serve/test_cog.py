"""Cog's HTTP API: what cog 0.23 answers, with a queue behind it."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kandinsky22_serve.store.records import Status

from .conftest import Receiver
from .quick import Serving, serving

SMALL = {"prompt": "a fox", "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def server(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(shapes_bundle, tmp_path_factory.mktemp("cog") / "data", max_queue=2) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base, timeout=30) as found:
        yield found


@pytest.fixture
def held(server: Serving) -> Iterator[Serving]:
    """The server with an engine that starts nothing until the test ends."""
    server.engine.hold.set()
    yield server
    server.engine.hold.clear()
    for job in server.service.store.jobs.newest(10):
        server.service.cancel(job.id)


def test_the_index_tells_programs_where_things_are(client: httpx.Client) -> None:
    found = client.get("/").json()
    assert found["cog_version"] == "0.23.0"
    assert found["openapi_url"] == "/openapi.json"
    assert found["predictions_cancel_url"] == "/predictions/{prediction_id}/cancel"
    assert "shutdown_url" not in found
    assert client.post("/shutdown").status_code == 404


def test_the_page_is_left_to_those_who_accept_html(shapes_bundle: Path, tmp_path: Path) -> None:
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    from kandinsky22_serve.app import create_app
    from kandinsky22_serve.service import Service
    from kandinsky22_serve.settings import Settings

    service = Service(Settings(bundle=shapes_bundle, data=tmp_path / "data", ui=False))
    app = create_app(service)
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    local = TestClient(app, base_url="http://localhost")  # without its lifespan: no engine is needed
    assert local.get("/", headers=browser).json()["cog_version"]
    app.mount("/", PlainTextResponse("the page"))
    assert local.get("/", headers=browser).text == "the page"
    assert local.get("/", headers={"Accept": "application/json"}).json()["cog_version"]
    service.store.close()


def test_a_prediction_is_answered_when_it_has_ended(client: httpx.Client) -> None:
    answer = client.post("/predictions", json={"input": {**SMALL, "num_outputs": 2}})
    found = answer.json()
    assert answer.status_code == 200
    assert found["status"] == "succeeded"
    assert found["error"] is None
    assert found["metrics"]["predict_time"] >= 0
    assert found["input"] == {**SMALL, "num_outputs": 2}
    assert len(found["output"]) == 2
    kind, _, data = found["output"][0].partition(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(data)[:4] == b"RIFF"


def test_pictures_are_urls_where_the_input_says_so(client: httpx.Client) -> None:
    found = client.post("/predictions", json={"input": {**SMALL, "output": "url", "output_format": "png"}}).json()
    picture = client.get(found["output"][0])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")


def test_input_may_be_left_out(client: httpx.Client) -> None:
    assert client.post("/predictions", json={}).json()["status"] == "succeeded"
    assert client.post("/predictions", json={"input": None}).json()["status"] == "succeeded"


def test_a_failure_is_data_and_not_an_error_of_http(server: Serving, client: httpx.Client) -> None:
    server.engine.fails = "There is not enough memory."
    try:
        answer = client.post("/predictions", json={"input": SMALL})
    finally:
        server.engine.fails = None
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == "There is not enough memory."
    assert answer.json()["output"] is None


def test_an_asynchronous_prediction_is_answered_at_once_and_can_be_canceled(
    held: Serving, client: httpx.Client
) -> None:
    answer = client.post("/predictions", headers={"Prefer": "respond-async"}, json={"id": "mine", "input": SMALL})
    assert answer.status_code == 202
    assert answer.json()["id"] == "mine"
    assert answer.json()["status"] == "starting"
    assert client.post("/predictions/mine/cancel").status_code == 200
    assert client.put("/predictions/mine", json={}).json()["status"] == "canceled"
    assert client.post("/predictions/other/cancel").status_code == 404


def test_a_prediction_asked_for_again_is_the_same(held: Serving, client: httpx.Client) -> None:
    ask = {"headers": {"Prefer": "respond-async"}, "json": {"input": SMALL}}
    first = client.put("/predictions/again", **ask)  # type: ignore[arg-type]
    second = client.put("/predictions/again", json={"input": SMALL})
    assert first.status_code == second.status_code == 202
    assert first.json()["created_at"] == second.json()["created_at"]
    held.engine.hold.clear()
    held.engine.wake()
    held.wait_until(Status.SUCCEEDED)
    third = client.put("/predictions/again", json={"input": SMALL})
    assert third.status_code == 200
    assert third.json()["status"] == "succeeded"
    assert len([job for job in held.service.store.jobs.newest(100) if job.id == "again"]) == 1


def test_two_that_ask_at_once_under_one_id_have_one_prediction(server: Serving, client: httpx.Client) -> None:
    found: list[dict[str, Any]] = []
    asks = [
        threading.Thread(target=lambda: found.append(client.put("/predictions/both", json={"input": SMALL}).json()))
        for _ in range(4)
    ]
    for each in asks:
        each.start()
    for each in asks:
        each.join()
    assert len({each["created_at"] for each in found}) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predictions/one", {"id": "other"}),
        ("/predictions/no%20id", {}),
        ("/predictions/" + "a" * 65, {}),
        ("/predictions/ok", {"output_file_prefix": "https://SECRET"}),
        ("/predictions/ok", {"webhook": "ftp://SECRET"}),
        ("/predictions/ok", {"webhook": "https://SECRET", "webhook_events_filter": ["SECRET"]}),
        ("/predictions/ok", {"input": {"SECRET": "SECRET"}}),
        ("/predictions/ok", {"input": {"num_outputs": 5}}),
    ],
)
def test_what_cannot_be_is_refused_without_repeating_it(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = client.put(path, json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "SECRET" not in answer.text


def test_an_id_is_not_taken_twice_by_post(client: httpx.Client) -> None:
    assert client.post("/predictions", json={"id": "taken", "input": SMALL}).status_code == 200
    assert client.post("/predictions", json={"id": "taken", "input": SMALL}).status_code == 409


def test_streams_are_refused(client: httpx.Client) -> None:
    answer = client.post("/predictions", headers={"Accept": "text/event-stream"}, json={"input": SMALL})
    assert answer.status_code == 406


def test_a_full_queue_is_a_conflict_and_busy(held: Serving, client: httpx.Client) -> None:
    for _ in range(2):
        assert client.get("/health-check").json()["status"] == "READY"
        ask = client.post("/predictions", headers={"Prefer": "respond-async"}, json={"input": SMALL})
        assert ask.status_code == 202
    assert client.get("/health-check").json()["status"] == "BUSY"
    assert client.post("/predictions", json={"input": SMALL}).status_code == 409


@pytest.mark.parametrize("path", ["POST /predictions", "PUT /predictions/left"])
def test_a_client_that_leaves_has_a_new_prediction_canceled_and_one_under_its_id_not(held: Serving, path: str) -> None:
    body = b'{"input": {"prompt": "a fox", "width": 64, "height": 64}}'
    before = held.newest()
    with socket.create_connection(("127.0.0.1", int(held.base.rpartition(":")[2]))) as connection:
        head = (
            f"{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        connection.sendall(head.encode() + b"\r\n" + body)
        while held.newest() in (None, before):
            time.sleep(0.01)
        assert held.wait_until(Status.STARTING)
    if path.startswith("POST"):
        job = held.wait_until(Status.CANCELED)
        held.wait_until_told(job)
    else:
        time.sleep(0.3)
        assert held.wait_until(Status.STARTING).id == "left"


def test_health_has_cogs_words_for_every_state(server: Serving, client: httpx.Client) -> None:
    words = {"ready": "READY", "busy": "READY", "starting": "UNHEALTHY", "broken": "SETUP_FAILED", "closed": "DEFUNCT"}
    try:
        for state, word in words.items():
            server.engine.state = state
            answer = client.get("/health-check")
            assert answer.status_code == 200
            assert answer.json()["status"] == word
    finally:
        server.engine.state = "ready"
    setup = client.get("/health-check").json()["setup"]
    assert setup["status"] == "succeeded"
    assert setup["started_at"] <= setup["completed_at"]


def test_nothing_is_waited_for_where_the_engine_cannot_start(server: Serving, client: httpx.Client) -> None:
    server.engine.state = "broken"
    try:
        assert client.post("/predictions", json={"input": SMALL}).status_code == 503
    finally:
        server.engine.state = "ready"


def test_the_schema_has_the_components_that_cogs_tools_look_for(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Input"]["properties"]["num_inference_steps"]["default"] == 75
    assert schemas["Input"]["additionalProperties"] is False
    assert schemas["Output"]["type"] == "array"
    assert schemas["Output"]["items"] == {"type": "string", "format": "uri"}
    # The fields of PredictionResponse in cog 0.14.9's schema.py, the last in Python; `version` is Replicate's.
    told = {"input", "output", "id", "created_at", "started_at", "completed_at", "logs", "error", "status", "metrics"}
    assert set(schemas["PredictionResponse"]["properties"]) == told


def test_a_webhook_is_sent_the_prediction_at_the_events_asked_for(
    shapes_bundle: Path, tmp_path: Path, receiver: Receiver
) -> None:
    with serving(shapes_bundle, tmp_path / "data", allow_webhook_host=("127.0.0.1",)) as server:
        body = {"input": SMALL, "webhook": f"{receiver.url}/hook", "webhook_events_filter": ["start", "completed"]}
        answer = httpx.post(f"{server.base}/predictions", headers={"Prefer": "respond-async"}, json=body)
        receiver.wait(2)
        refused = {"input": SMALL, "webhook": "http://127.0.0.2/hook"}
        assert httpx.post(f"{server.base}/predictions", json=refused).status_code == 422
    started, ended = sorted(receiver.events(), key=lambda each: each["status"])
    assert started["status"] == "processing"
    assert started["output"] is None
    assert ended["status"] == "succeeded"
    assert ended["output"][0].startswith("data:image/webp;base64,")
    assert {each["id"] for each in (started, ended)} == {answer.json()["id"]}
    assert all("webhook-signature" in headers for _, headers, _ in receiver.calls)
