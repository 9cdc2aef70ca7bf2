"""Replicate's contract in what clients do not show: forms, refusals, lifetimes, expiry."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import re
import time
from pathlib import Path

import PIL.Image
import pytest

from kandinsky22.bundle.manifest import SHALLOWS
from kandinsky22.request.presets import PRESETS
from kandinsky22_serve.contracts.replicate.names import PUBLISHED_VERSIONS
from kandinsky22_serve.contracts.replicate.predictions import lifetime, seconds_to_wait
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.store.records import Status

from .running import small

MODEL = "ai-forever/kandinsky-2.2"
SECRET = "r8_secret_of_the_client"


def picture(colour="red", size=(64, 64), form="png"):
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


def create(app, inputs=None, **more):
    body = {"version": MODEL, "input": small("a") if inputs is None else inputs, **more}
    return app.client.post("/v1/predictions", json=body)


def created(app, inputs=None, **more):
    answer = create(app, inputs, **more)
    assert answer.status_code == 201, answer.text
    return answer.json()


def get(app, id):
    return app.client.get(f"/v1/predictions/{id}").json()


def assert_problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"title", "detail", "status"}
    assert answer.json()["status"] == status
    return answer.json()["detail"]


def test_a_prediction_has_every_field_from_its_start_to_its_end(app):
    made = created(app)
    assert made["status"] == "starting"
    assert (made["model"], made["output"], made["error"], made["logs"]) == (MODEL, None, None, "")
    assert (made["started_at"], made["completed_at"], made["metrics"]) == (None, None, {})
    assert made["input"] == small("a")
    assert re.fullmatch("[0-9a-f]{64}", made["version"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made["created_at"])
    assert set(made["urls"]) == {"get", "cancel", "stream", "web"}
    app.start(made["id"])
    app.step(made["id"])
    running = get(app, made["id"])
    assert running["status"] == "processing"
    assert running["output"] is None
    assert running["started_at"] >= made["created_at"]
    app.finish(made["id"])
    ended = get(app, made["id"])
    assert ended["status"] == "succeeded"
    assert ended["completed_at"] >= running["started_at"]
    assert 0 < ended["metrics"]["predict_time"] <= ended["metrics"]["total_time"]
    assert ended["data_removed"] is False
    (url,) = ended["output"]
    assert app.client.get(url).content == b"a picture"


def test_a_version_is_an_id_a_model_or_both(app):
    version = created(app)["version"]
    for reference in (version, f"{MODEL}:{version}", MODEL):
        assert create(app, version=reference).json()["version"] == version
    for reference in ("0" * 64, f"{MODEL}:{'0' * 64}", f"someone/else:{version}", "someone/else", "", ":", MODEL + ":"):
        assert MODEL in assert_problem(create(app, version=reference), 422)


def test_versions_of_the_published_model_that_programs_name_mean_ours(app, make_app):
    for version in PUBLISHED_VERSIONS:
        assert create(app, version=f"{MODEL}:{version}").status_code == 201
        assert app.client.get(f"/v1/models/{MODEL}/versions/{version}").status_code == 200
    other = make_app(model="someone/else")
    assert_problem(create(other, version=PUBLISHED_VERSIONS[0]), 422)


@pytest.mark.parametrize("route", ["", "/versions", "/versions/{version}"])
def test_a_model_of_another_name_is_not_found(app, route):
    version = created(app)["version"]
    assert app.client.get(f"/v1/models/{MODEL}{route.format(version=version)}").status_code == 200
    assert_problem(app.client.get(f"/v1/models/someone/else{route.format(version=version)}"), 404)
    assert_problem(app.client.get(f"/v1/models/{MODEL}/versions/{'0' * 64}"), 404)
    assert_problem(app.client.post("/v1/models/someone/else/predictions", json={"input": {}}), 404)


def test_the_same_is_answered_under_the_prefix_twice(app):
    id = created(app)["id"]
    for path in (f"/predictions/{id}", "/predictions", f"/models/{MODEL}", "/files", "/webhooks/default/secret"):
        once, twice = (app.client.get(prefix + path) for prefix in ("/v1", "/v1/v1"))
        assert once.status_code == twice.status_code == 200
        assert once.json() == twice.json()
    assert app.client.post("/v1/v1/predictions", json={"version": MODEL, "input": {}}).status_code == 201
    assert app.client.post(f"/v1/v1/models/{MODEL}/predictions", json={"input": {}}).status_code == 201
    assert app.client.post(f"/v1/v1/predictions/{id}/cancel").json()["status"] == "canceled"


def test_unknown_inputs_are_refused_and_never_repeated(app, caplog):
    # What one way of the JavaScript client to encode files sends: itself, with the token.
    client = {"auth": SECRET, "userAgent": "x", "baseUrl": SECRET, SECRET: {"deep": [SECRET]}}
    answer = create(app, client)
    assert "unknown input" in assert_problem(answer, 422)
    assert SECRET not in answer.text + str(answer.headers)
    assert SECRET not in caplog.text
    answer = create(app, **{SECRET: SECRET})
    assert SECRET not in assert_problem(answer, 422)


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": ["a", SECRET]},
        {"width": SECRET},
        {"num_outputs": 5},
        {"num_outputs": 0},
        {"output_format": SECRET},
        {"seed": -1},
        {"guidance_scale": "nan"},
        {"task": SECRET},
        {"image": SECRET},
        {"image": f"data:image/png;base64,{SECRET}"},
        {"mix_weights": [1.0]},
        {"strength": 0.5},
    ],
)
def test_inputs_that_cannot_be_are_refused_in_a_sentence(shared_app, inputs):
    answer = create(shared_app, inputs)
    assert assert_problem(answer, 422).endswith(".")
    assert SECRET not in answer.text
    assert shared_app.service.store.jobs.newest(1) == []


LONE = '{"version": "ai-forever/kandinsky-2.2", "input": {"prompt": "\\ud800"}}'
"""Half of a character, which JSON can write and nothing else."""


@pytest.mark.parametrize(
    "body", [LONE, "", "[]", "{", '{"input": {}}', '{"version": 3, "input": {}}', '{"version": "a"}']
)
def test_bodies_that_cannot_be_are_refused(shared_app, body):
    answer = shared_app.client.post("/v1/predictions", content=body, headers={"content-type": "application/json"})
    assert_problem(answer, 422)


def test_a_prediction_without_input_is_refused(shared_app):
    """The JavaScript client leaves it out where an upload failed; the default prompt is not what was asked for."""
    assert "input" in assert_problem(shared_app.client.post("/v1/predictions", json={"version": MODEL}), 422)
    assert "input" in assert_problem(shared_app.client.post(f"/v1/models/{MODEL}/predictions", json={}), 422)


def test_old_clients_keys_are_taken(app, receiver):
    made = created(app, stream=True, webhook_completed=receiver.url)
    hook = app.service.job(made["id"]).options.webhook
    assert (hook.url, hook.events) == (receiver.url, ("completed",))


@pytest.mark.parametrize("path", ["predictions/unknown", "predictions/unknown/cancel", "files/unknown"])
def test_what_is_not_there_is_not_found(shared_app, path):
    method = "POST" if path.endswith("cancel") else "GET"
    assert_problem(shared_app.client.request(method, f"/v1/{path}"), 404)


def test_jobs_of_other_contracts_are_no_predictions(app):
    id = created(app)["id"]
    with app.service.store.database.write() as connection:
        connection.execute("UPDATE jobs SET contract = 'cog'")
    assert_problem(app.client.get(f"/v1/predictions/{id}"), 404)
    assert_problem(app.client.post(f"/v1/predictions/{id}/cancel"), 404)
    assert app.client.get("/v1/predictions").json()["results"] == []
    assert app.service.job(id).status is Status.STARTING


def test_what_is_full_answers_429_and_queues_until_then(make_app):
    app = make_app(max_queue=3)
    assert [create(app).status_code for _ in range(5)] == [201, 201, 201, 429, 429]
    answer = create(app)
    assert_problem(answer, 429)
    assert answer.headers["retry-after"].isdecimal()


def test_a_canceled_prediction_stays_so(app):
    id = created(app)["id"]
    app.start(id)
    first = app.client.post(f"/v1/predictions/{id}/cancel")
    assert first.status_code == 200
    assert first.json()["status"] == "canceled"
    app.finish(id)
    again = app.client.post(f"/v1/predictions/{id}/cancel").json()
    assert (again["status"], again["output"], again["error"]) == ("canceled", None, None)
    done = created(app)["id"]
    app.start(done)
    app.finish(done)
    assert app.client.post(f"/v1/predictions/{done}/cancel").json()["status"] == "succeeded"


def test_a_failed_prediction_says_why(app):
    id = created(app)["id"]
    app.start(id)
    app.service.failed(id, "There is not enough memory.")
    found = get(app, id)
    assert (found["status"], found["error"], found["output"]) == ("failed", "There is not enough memory.", None)


def test_pictures_that_have_expired_are_null_and_said_to_be_removed(app):
    id = created(app, small("a", num_outputs=2))["id"]
    app.start(id)
    app.finish(id)
    urls = get(app, id)["output"]
    assert len(urls) == 2
    with app.service.store.database.write() as connection:
        connection.execute("UPDATE files SET expires = 0")
    assert app.service.store.files.remove_expired() == 2
    found = get(app, id)
    assert (found["status"], found["output"], found["data_removed"]) == ("succeeded", None, True)
    assert_problem(app.client.get(urls[0]), 404)


def test_pictures_are_handed_out_within_the_answer_when_asked_for(app):
    id = created(app, small("a", output="data-uri", output_format="png"))["id"]
    app.start(id)
    app.finish(id, b"bytes")
    assert get(app, id)["output"] == ["data:image/png;base64," + base64.b64encode(b"bytes").decode()]


def test_a_picture_within_the_request_is_shown_as_an_address(app):
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    made = created(app, small("a", image=uri, strength=0.5))
    assert app.client.get(made["input"]["image"]).content == picture()
    mixed = created(app, small("a") | {"mix_images": [uri, uri]} | {"prompt": "b"})
    assert all(each.startswith("http://127.0.0.1:8022/files/") for each in mixed["input"]["mix_images"])


def test_a_picture_of_ours_stays_that_jobs_when_another_is_given_it(app):
    first = created(app, small("a", output_format="png"))["id"]
    app.start(first)
    app.finish(first, picture("blue"))
    output = get(app, first)["output"]
    second = created(app, small("b", image=output[0], output_format="png"))["id"]
    assert get(app, first)["output"] == output
    app.start(second)
    app.finish(second, picture("green"))
    assert len(get(app, second)["output"]) == 1
    assert get(app, first)["output"] == output
    (taken,) = app.service.store.files.of_job(second, "input")
    assert app.service.store.files.path(taken).read_bytes() == picture("blue")


def test_an_upload_can_be_deleted_while_a_job_needs_it(app):
    file = app.client.post("/v1/files", files={"content": ("a.png", picture())}).json()
    id = created(app, small("a", image=file["urls"]["get"]))["id"]
    assert app.client.delete(f"/v1/files/{file['id']}").status_code == 204
    (path,) = [Path(value) for name, value in app.service.job(id).request.items() if name == "image"]
    assert path.read_bytes() == picture()
    assert_problem(create(app, small("a", image=file["urls"]["get"])), 422)


def test_the_prefix_of_an_uploads_address_may_stand_twice(app):
    file = app.client.post("/v1/v1/files", files={"content": ("a.png", picture())}).json()
    address = file["urls"]["get"].replace("/v1/", "/v1/v1/")
    assert create(app, small("a", image=address)).status_code == 201


def test_an_upload_is_told_whole(app):
    sent = {"content": ("../../etc/pass\nwd.png", picture())}
    answer = app.client.post("/v1/files", files=sent, data={"metadata": '{"n": 1}'})
    assert answer.status_code == 201
    file = answer.json()
    assert "/" not in file["name"]
    assert file["name"].isprintable()
    assert (file["content_type"], file["size"], file["metadata"]) == ("image/png", len(picture()), {"n": 1})
    assert file["expires_at"] > file["created_at"]
    assert app.client.get(f"/v1/files/{file['id']}").json() == file
    assert app.client.get("/v1/files").json() == {"results": [file], "next": None, "previous": None}


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ({"content": ("a.png", b"no picture")}, {}),
        ({"content": ("a.png", b"")}, {}),
        ({"other": ("a.png", picture())}, {}),
        ({"content": ("a.png", picture())}, {"metadata": "[]"}),
        ({"content": ("a.png", picture())}, {"metadata": "{"}),
        ({"content": ("a.png", picture()), "metadata": ("m", b"[" * 60000)}, {}),
    ],
)
def test_uploads_that_cannot_be_are_refused(shared_app, files, data):
    assert_problem(shared_app.client.post("/v1/files", files=files, data=data), 422)
    assert shared_app.client.get("/v1/files").json()["results"] == []


def test_a_content_that_is_no_form_is_refused(shared_app):
    assert_problem(shared_app.client.post("/v1/files", json={"content": "a"}), 422)
    broken = {"content-type": "multipart/form-data; boundary=a"}
    assert 400 <= shared_app.client.post("/v1/files", content=b"--b\r\nx", headers=broken).status_code < 500


def test_outputs_and_inputs_are_no_uploads(app):
    id = created(app)["id"]
    app.start(id)
    app.finish(id)
    (file,) = app.service.store.files.of_job(id, "output")
    assert_problem(app.client.get(f"/v1/files/{file.id}"), 404)
    assert_problem(app.client.delete(f"/v1/files/{file.id}"), 404)


@pytest.mark.parametrize(
    "cursor", ["x", "%", "b2xkZXI6LTE", "b2xkZXI6YQ", "b2xkZXI6OTk5OTk5OTk5OTk5OTk5OTk5OTk5OQ", "ü"]
)
def test_a_cursor_of_no_list_is_refused(shared_app, cursor):
    assert_problem(shared_app.client.get("/v1/predictions", params={"cursor": cursor}), 422)


def test_files_are_listed_a_page_at_a_time(app):
    store = app.service.store
    with store.database.write():  # one transaction: quick
        ids = [store.files.add(b"a", "image/png", "upload", f"{number}", 60).id for number in range(105)]
    first = app.client.get("/v1/files").json()
    second = app.client.get(first["next"]).json()
    assert [each["id"] for each in first["results"] + second["results"]] == ids[::-1]
    assert (first["previous"], second["next"]) == (None, None)
    assert app.client.get(second["previous"]).json()["results"] == first["results"]
    assert app.client.get("/v1/files", params={"cursor": "b2xkZXI6YQ"}).status_code == 422


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("wait", 59),
        ("wait=5", 5),
        ("wait=60", 59),
        ("wait=0", 0),
        ('wait="7"', 7),
        ("respond-async, wait=3", 3),
        ("Wait = 4", 4),
        ("respond-async", 0),
        ("wait=soon", 59),
        ("waiting=5", 0),
        ("wait=-1", 59),
        ("wait=99999999999999999999", 59),
    ],
)
def test_preferences_to_wait_are_read_and_bounded(header, seconds):
    assert seconds_to_wait(header) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("90", 90),
        ("90s", 90),
        ("1m", 60),
        ("1h30m", 5400),
        ("1h30m5s", 5405),
        ("1.5h", 5400),
        (" 5S ", 5),
    ],
)
def test_lifetimes_are_read(header, seconds):
    assert lifetime(header) == seconds


@pytest.mark.parametrize("header", ["", "soon", "0", "0s", "-5s", "5d", "1m1h", "1e3", "٣s", "5 m", "9" * 30])
def test_lifetimes_that_cannot_be_are_refused(header):
    with pytest.raises(Problem):
        lifetime(header)


def test_a_prediction_is_canceled_at_the_end_of_its_lifetime(app):
    body = {"version": MODEL, "input": small("a")}
    made = app.client.post("/v1/predictions", json=body, headers={"Cancel-After": "1m"}).json()
    job = app.service.job(made["id"])
    assert job.deadline == pytest.approx(job.created + 60)
    assert app.service.store.jobs.overdue() == []
    with app.service.store.database.write() as connection:
        connection.execute("UPDATE jobs SET deadline = ?", (time.time() - 1,))
    assert [each.id for each in app.service.store.jobs.overdue()] == [made["id"]]
    assert_problem(app.client.post("/v1/predictions", json=body, headers={"Cancel-After": "soon"}), 422)


def test_the_schema_of_a_version_is_the_published_one_and_more(shared_app):
    version = shared_app.client.get(f"/v1/models/{MODEL}").json()["latest_version"]
    assert tuple(map(int, version["cog_version"].split("."))) >= (0, 3, 9)
    schemas = version["openapi_schema"]["components"]["schemas"]
    assert schemas["Output"] == {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    inputs = schemas["Input"]["properties"]
    published = {
        "prompt": ("string", "A moss covered astronaut with a black background", None, None),
        "negative_prompt": ("string", None, None, None),
        "num_inference_steps": ("integer", 75, 1, 500),
        "num_inference_steps_prior": ("integer", 25, None, 500),
        "num_outputs": ("integer", 1, 1, 4),
        "width": ("integer", 512, None, None),
        "height": ("integer", 512, None, None),
        "seed": ("integer", None, None, None),
        "output_format": ("string", "webp", None, None),
    }
    for name, (kind, default, low, high) in published.items():
        found = inputs[name]
        assert (found["type"], found.get("default")) == (kind, default), name
        assert low is None or found["minimum"] == low
        assert high is None or found["maximum"] == high
    assert inputs["output_format"]["enum"] == ["webp", "jpeg", "png"]
    assert [each["x-order"] for each in inputs.values()] == list(range(len(inputs)))
    assert not any("anyOf" in each or "$ref" in str(each) for each in inputs.values())


def test_the_prior_may_have_a_scheduler_of_its_own(app):
    id = created(app, {"prompt": "a", "scheduler_prior": "dpm++", "num_inference_steps_prior": 6})["id"]
    request = app.service.store.jobs.get(id).request
    assert (request["prior_scheduler"], request["prior_num_inference_steps"]) == ("dpm++", 6)
    assert_problem(create(app, {"prompt": "a", "scheduler_prior": "ddpm"}), 422)


def test_where_guidance_is_and_what_is_skipped_can_be_asked_for(app):
    id = created(app, {"prompt": "a", "guidance_interval": [0.25, 0.5], "skip": "forecast"})["id"]
    request = app.service.store.jobs.get(id).request
    assert (request["guidance_interval"], request["skip"]) == ([0.25, 0.5], "forecast:2")
    for interval in ([0.5, 0.25], [0, 1.5], [-0.1, 1], [0.5], [0, 0.5, 1], 0.5, "0 1", ["a", "b"]):
        assert "guidance_interval" in assert_problem(create(app, {"prompt": "a", "guidance_interval": interval}), 422)
    manifest = app.service.manifest
    left = {name: each for name, each in manifest.components.items() if each.role not in SHALLOWS.values()}
    app.service.manifest = dataclasses.replace(manifest, components=left)
    # Not by the inputs' schema, which lets other bundles have it, but by this bundle, which was exported without.
    assert "--shallow" in assert_problem(create(app, {"prompt": "a", "skip": "shallow:3"}), 422)
    assert "skip" in assert_problem(create(app, {"prompt": "a", "skip": "shallow:3:4"}), 422)


def test_a_stream_needs_its_key_and_no_token(app):
    id = created(app)["id"]
    app.start(id)
    app.step(id)
    app.finish(id)
    address = get(app, id)["urls"]["stream"]
    text = app.client.get(address).text
    assert [line.partition(": ")[2] for line in text.splitlines() if line.startswith("event")] == [
        "logs",
        "output",
        "done",
    ]
    assert_problem(app.client.get(address[:-1] + "_"), 404)
    assert_problem(app.client.get(address.replace(id, "unknown")), 404)
    other = created(app)["id"]
    assert_problem(app.client.get(address.replace(id, other)), 404)


def test_a_stream_of_a_failure_says_why(app):
    id = created(app)["id"]
    app.service.failed(id, "It broke.\nTwice.")
    text = app.client.get(get(app, id)["urls"]["stream"]).text
    assert "event: error\nid: 1\ndata: It broke.\ndata: Twice.\n\n" in text
    assert text.endswith('event: done\nid: 2\ndata: {"reason": "error"}\n\n')


def test_addresses_are_those_that_the_client_reaches(make_app):
    app = make_app(public_url="https://pictures.example.org/")
    made = created(app)
    assert all(each.startswith("https://pictures.example.org/") for each in made["urls"].values())
    assert app.client.get(f"/v1/models/{MODEL}").json()["url"] == "https://pictures.example.org/"


def test_whoever_waits_for_a_job_can_leave_at_the_moment_that_it_changes(app):
    id = created(app)["id"]

    async def wait_and_leave():
        waiting = asyncio.create_task(app.service.wait(id, 30))
        while not app.service._waiters:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # it has read the job, and waits
        app.service._wake(id)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=2)
        return waiting.cancelled()

    assert asyncio.run(wait_and_leave())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_the_place_of_published_defaults_and_is_stored_as_its_values(app, preset):
    inputs = {"prompt": "a", "width": 64, "height": 64, "preset": preset}
    made = created(app, inputs)
    assert made["input"] == inputs
    stored = app.service.job(made["id"]).request
    assert "preset" not in stored
    for name, value in PRESETS[preset].items():
        assert stored[name] == (list(value) if isinstance(value, tuple) else value)
    beside = app.service.job(created(app, {**inputs, "num_inference_steps": 75})["id"]).request
    assert beside == {**stored, "num_inference_steps": 75, "seed": beside["seed"]}
    assert "preset" in assert_problem(create(app, {**inputs, "preset": "faster"}), 422)
