"""Replicate's contract through its Python client, against a real server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time

import httpx
import PIL.Image
import pytest
import replicate
from replicate.exceptions import ReplicateError
from replicate.helpers import FileOutput
from replicate.webhook import Webhooks

from kandinsky22_serve.contracts.replicate.names import PUBLISHED_VERSIONS

from .conftest import EARLIER, TOKEN, Server
from .running import small

MODEL = "ai-forever/kandinsky-2.2"


@pytest.fixture(scope="module", params=["", "/v1"], ids=["base", "base/v1"])
def client(server, request):
    """The client, with the base address that it asks for, and with the one of the other clients."""
    return replicate.Client(TOKEN, base_url=server.base + request.param)


@pytest.fixture(scope="module")
def plain(server):
    return replicate.Client(TOKEN, base_url=server.base)


def opened(body):
    return PIL.Image.open(io.BytesIO(body))


class Paused:
    """The engine stands still inside of the block."""

    def __init__(self, server):
        self.engine = server.engine()

    def go_on(self):
        os.kill(self.engine, signal.SIGCONT)

    def __enter__(self):
        os.kill(self.engine, signal.SIGSTOP)
        return self

    def __exit__(self, *_):
        self.go_on()


def test_the_snippet_of_articles_gives_addresses_of_pictures(client):
    output = client.run(MODEL, input=small("a red circle", output_format="webp"))
    (url,) = output
    answer = httpx.get(url)
    assert answer.headers["content-type"] == "image/webp"
    assert (opened(answer.content).format, opened(answer.content).size) == ("WEBP", (64, 64))


@pytest.mark.parametrize("version", ["ours", *PUBLISHED_VERSIONS])
def test_a_model_runs_by_its_version(plain, version):
    """The client fetches the version after it made the prediction: without it, and its schema, the run fails."""
    id = plain.models.get(MODEL).latest_version.id if version == "ours" else version
    output = plain.run(f"{MODEL}:{id}", input=small("a"))
    assert isinstance(output, list)  # no iterator
    assert httpx.get(output[0]).status_code == 200


def test_data_uris_become_files(plain):
    (output,) = plain.run(MODEL, input=small("a", output="data-uri"))
    assert isinstance(output, FileOutput)
    assert opened(output.read()).size == (64, 64)


def test_a_wait_that_runs_out_is_answered_as_starting(server, plain):
    body = {"version": MODEL, "input": small("a")}
    with server.api() as api, Paused(server) as paused:
        began = time.monotonic()
        made = api.post("/v1/predictions", json=body, headers={"Prefer": "wait=1"}).json()
        assert time.monotonic() - began < 1.5  # the client gives up half a second after the time it asked for
        assert made["status"] == "starting"
        assert api.get(f"/v1/predictions/{made['id']}").json()["status"] == "processing"
        threading.Timer(1.3, paused.go_on).start()
        output = plain.run(MODEL, input=small("b"), wait=1)
        assert httpx.get(output[0]).status_code == 200


def test_a_wait_is_answered_at_the_end(server):
    with server.api() as api:
        made = api.post("/v1/predictions", json={"version": MODEL, "input": small("a")}, headers={"Prefer": "wait"})
        assert made.status_code == 201
        assert made.json()["status"] == "succeeded"


def test_progress_is_read_from_the_logs(plain):
    prediction = plain.predictions.create(version=MODEL, input=small("a"))
    prediction.wait()
    assert prediction.status == "succeeded"
    assert "\r" not in prediction.logs
    assert prediction.logs.startswith("Using seed: ")
    assert prediction.progress == prediction.Progress(1.0, 6, 6)


def test_a_prediction_is_canceled(server, plain):
    with Paused(server):
        running = plain.predictions.create(version=MODEL, input=small("a"))
        waiting = plain.models.predictions.create(MODEL, input=small("b"))
        for each in (running, waiting):
            each.cancel()
            assert each.status == "canceled"
    for each in (running, waiting):
        each.reload()
        assert (each.status, each.output) == ("canceled", None)


def test_a_prediction_is_canceled_at_the_end_of_its_lifetime(server):
    with server.api() as api, Paused(server):
        body = {"version": MODEL, "input": small("a")}
        headers = {"Cancel-After": "1s", "Prefer": "wait=20"}
        assert api.post("/v1/predictions", json=body, headers=headers).json()["status"] == "canceled"


def test_all_predictions_are_listed_once_on_pages(client):
    made = client.predictions.create(version=MODEL, input=small("a"))
    pages = list(replicate.pagination.paginate(client.predictions.list))
    ids = [each.id for page in pages for each in page]
    assert len(ids) == len(set(ids))
    assert made.id in ids[: len(ids) - EARLIER]
    assert ids[-EARLIER:] == [f"earlier{number}" for number in reversed(range(EARLIER))]
    assert len(pages) >= 3
    assert [len(page) for page in pages[:2]] == [100, 100]
    back = client.predictions.list(pages[1].next)
    assert [each.id for each in client.predictions.list(back.previous)] == [each.id for each in pages[1]]


def test_a_file_is_uploaded_and_named_as_an_input(client, tmp_path):
    path = tmp_path / "red circle.png"
    PIL.Image.new("RGB", (64, 64), "red").save(path)
    file = client.files.create(path, metadata={"of": "a test"})
    assert (file.name, file.content_type, file.metadata) == ("red circle.png", "image/png", {"of": "a test"})
    assert file in client.files.list()
    assert client.files.get(file.id) == file
    output = client.run(MODEL, input=small("a circle", image=path.open("rb"), strength=0.5))
    assert httpx.get(output[0]).status_code == 200
    assert client.files.delete(file.id)
    with pytest.raises(ReplicateError) as error:
        client.files.get(file.id)
    assert error.value.status == 404


def test_the_model_and_its_versions_are_told(client):
    model = client.models.get(MODEL)
    assert (model.owner, model.name, model.id) == ("ai-forever", "kandinsky-2.2", MODEL)
    (version,) = model.versions.list()
    assert version == model.latest_version == model.versions.get(version.id)
    schemas = version.openapi_schema["components"]["schemas"]
    assert schemas["Input"]["properties"]["num_inference_steps"]["default"] == 75


def test_events_are_streamed(plain):
    events = list(plain.stream(MODEL, input=small("a")))
    kinds = [each.event.value for each in events]
    assert kinds[-2:] == ["output", "done"]
    assert set(kinds[:-2]) == {"logs"}
    assert httpx.get(str(events[-2])).status_code == 200
    assert "100%" in "".join(each.data for each in events if each.event.value == "logs")


def test_an_asynchronous_run_is_the_same(server):
    async def run():
        client = replicate.Client(TOKEN, base_url=server.base)
        return await client.async_run(MODEL, input=small("a", seed=3))

    (url,) = asyncio.run(run())
    assert httpx.get(url).status_code == 200


def test_the_same_seed_gives_the_same_picture(plain):
    inputs = small("a green square", seed=7)
    first, second = (httpx.get(plain.run(MODEL, input=inputs)[0]).content for _ in range(2))
    assert opened(first).tobytes() == opened(second).tobytes()


def test_refusals_are_read_by_the_client(plain):
    with pytest.raises(ReplicateError) as error:
        plain.run(MODEL, input=small("a", num_outputs=99))
    assert error.value.status == 422
    assert "num_outputs" in error.value.detail
    with pytest.raises(ReplicateError) as error:
        plain.run("someone/else", input={})
    assert (error.value.status, error.value.title) == (404, "Not Found")


def test_a_wrong_token_is_refused(server):
    with pytest.raises(ReplicateError) as error:
        replicate.Client("r8_wrong", base_url=server.base).run(MODEL, input=small("a"))
    assert (error.value.status, error.value.title) == (401, "Unauthorized")
    older = httpx.get(f"{server.base}/v1/predictions", headers={"Authorization": f"Token {TOKEN}"})
    assert older.status_code == 200


def test_a_webhook_is_validated_by_the_client(plain, receiver):
    plain.run(MODEL, input=small("a café — ☕"), webhook=receiver.url, webhook_events_filter=["completed"])
    receiver.wait(1)
    (_, headers, body), secret = receiver.calls[0], plain.webhooks.default.secret()
    Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)
    with pytest.raises(ValueError, match="invalid"):
        Webhooks.validate(headers=headers, body=body.decode() + " ", secret=secret)


@pytest.mark.slow
def test_over_tls_addresses_become_files(shapes_bundle, tmp_path, node):
    """A server with a certificate of its own: https addresses are files to both clients."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(command, check=True, capture_output=True)
    flags = ("--backend", "onnxruntime", "--tls-cert", str(certificate), "--tls-key", str(key))
    server = Server(shapes_bundle, tmp_path / "data", *flags)
    server.base = f"https://localhost:{server.port}"
    trusted = ssl.create_default_context(cafile=certificate)
    try:
        server.start(verify=trusted)
        transport = httpx.HTTPTransport(verify=trusted)
        (output,) = replicate.Client(base_url=server.base, transport=transport).run(MODEL, input=small("a"))
        assert isinstance(output, FileOutput)
        assert opened(output.read()).size == (64, 64)
        code = """
        import Replicate from "replicate";
        const replicate = new Replicate({ baseUrl: process.env.BASE });
        const input = JSON.parse(process.env.SMALL);
        const [output] = await replicate.run("ai-forever/kandinsky-2.2", { input });
        const blob = await output.blob();
        console.log(JSON.stringify({ url: output.url(), type: blob.type }));
        """
        more = {"SMALL": json.dumps(small("a")), "NODE_EXTRA_CA_CERTS": str(certificate)}
        found = node(code, BASE=f"{server.base}/v1", **more)
        assert found["type"] == "image/png"
        assert found["url"].startswith("https://localhost:")
    finally:
        server.stop()


def test_inputs_are_not_in_the_log(server, plain):
    with pytest.raises(ReplicateError):
        plain.run(MODEL, input={"auth": TOKEN, "prompt": "private-words"})
    plain.run(MODEL, input=small("private-words"))
    assert TOKEN not in server.log()
    assert "private-words" not in server.log()
