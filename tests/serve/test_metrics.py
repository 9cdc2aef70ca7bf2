"""`/metrics`: what Prometheus reads, in its own parser."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kandinsky22_serve.store.records import Status

from .conftest import App
from .running import small


def scraped(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = app.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name.removeprefix("kandinsky22_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def ask(app: App, **more: Any) -> str:
    asked = {"input": {**small("a secret prompt"), **more}}
    answer = app.client.post("/predictions", json=asked, headers={"prefer": "respond-async"})
    return str(answer.json()["id"])


def test_the_life_of_jobs_is_counted(app: App) -> None:
    first, second, third, fourth = (ask(app, num_outputs=2) for _ in range(4))
    now = scraped(app)
    assert now["jobs_accepted_total", (("contract", "cog"),)] == 4
    assert (now["queue_jobs", ()], now["running_jobs", ()]) == (4, 0)
    assert 0 < now["queue_age_seconds", ()] < 60

    for job in (first, second):
        app.start(job)
    assert scraped(app)["running_jobs", ()] == 2
    app.finish(first)
    app.service.failed(second, "There is no memory.")
    app.service.cancel(third)
    app.service.computed(4, {"prior": 0.2, "decoder": 1.5}, 123456789)
    job = app.service.job(fourth)
    assert job is not None
    app.service.died([job])

    now = scraped(app)
    for status, count in ((Status.SUCCEEDED, 1), (Status.FAILED, 1), (Status.CANCELED, 1)):
        assert now["jobs_ended_total", (("contract", "cog"), ("status", status.value))] == count
    assert (now["pictures_total", ()], now["jobs_put_back_total", ()]) == (2, 1)
    assert (now["queue_jobs", ()], now["running_jobs", ()]) == (1, 0)
    assert now["wait_seconds_count", ()] == 2
    assert now["run_seconds_count", ()] == 2
    assert now["stage_seconds_sum", (("stage", "decoder"),)] == 1.5
    assert (now["batch_pictures_bucket", (("le", "2.0"),)], now["batch_pictures_bucket", (("le", "4.0"),)]) == (0, 1)
    assert now["engine_resident_bytes", ()] == 123456789


def test_the_engine_and_deliveries_are_told_as_they_are(app: App) -> None:
    app.service.supervisor.state, app.service.supervisor.restarts = "busy", 3
    asked = {"input": small("a"), "webhook": "http://127.0.0.1:9/hook"}
    made = app.client.post("/v1/models/ai-forever/kandinsky-2.2/predictions", json=asked)
    assert made.status_code == 201
    app.service.cancel(made.json()["id"])
    now = scraped(app)
    states = {labels[0][1]: value for (name, labels), value in now.items() if name == "engine_state"}
    assert states == {"starting": 0, "ready": 0, "busy": 1, "broken": 0, "closed": 0}
    assert now["engine_restarts", ()] == 3
    assert now["webhook_deliveries", (("state", "waiting"),)] == 1
    assert now["process_resident_memory_bytes", ()] > 1e6


def test_requests_are_counted_by_their_route_whatever_strangers_ask_for(app: App) -> None:
    for path in ("/v1/predictions/a", "/v1/predictions/b", *(f"/nowhere/{each}" for each in range(50))):
        app.client.get(path)
    for method in ("BREW", "GIBBERISH"):
        app.client.request(method, "/healthz")
    app.client.get("/healthz", headers={"host": "evil.example"})
    now = scraped(app)
    counted = {labels: value for (name, labels), value in now.items() if name == "http_requests_total"}
    told = [dict(labels) for labels in counted]
    assert {each["method"] for each in told} == {"GET", "other"}
    assert not [each for each in told if "nowhere" in each["route"]]
    of_predictions = [value for labels, value in counted.items() if dict(labels)["route"].endswith("/predictions/{id}")]
    assert of_predictions == [2]
    assert counted[("method", "GET"), ("route", "none"), ("status", "404")] == 50
    assert counted[("method", "GET"), ("route", "none"), ("status", "403")] == 1
    assert "http_request_seconds_count", (("route", "/healthz"),) in now


def test_nothing_of_a_job_is_told_but_numbers(app: App) -> None:
    job = ask(app)
    text = app.client.get("/metrics").text
    assert "secret" not in text
    assert job not in text


def test_each_application_has_numbers_of_its_own(make_app: Any) -> None:
    ask(make_app())
    assert ("jobs_accepted_total", (("contract", "cog"),)) not in scraped(make_app())
