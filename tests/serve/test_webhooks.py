"""Webhooks: which events, how often, signed, one after the other, again and again, and where they may not go."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import threading
import time

import pytest
from standardwebhooks import Webhook

from kandinsky22_serve import webhooks
from kandinsky22_serve.contracts import replicate
from kandinsky22_serve.store.records import Status
from kandinsky22_serve.webhooks import Webhooks

from .conftest import Receiver, wait_until
from .running import small

MODEL = "ai-forever/kandinsky-2.2"
ALL = ["start", "output", "logs", "completed"]


def create(app, url, events=None, **inputs):
    body = {"version": MODEL, "input": small("a", **inputs), "webhook": url}
    if events is not None:
        body["webhook_events_filter"] = events
    answer = app.client.post("/v1/predictions", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def run(app, id, steps=4):
    app.start(id)
    for step in range(steps):
        app.step(id, step + 1, steps)
    app.finish(id)


class Delivering:
    """Makes the calls of an application's store, in a loop of its own, as the server's lifespan does."""

    def __init__(self, app, allowed=("127.0.0.1",)):
        self.loop = asyncio.new_event_loop()
        self.hooks = next((each for each in app.service.hearers if isinstance(each, Webhooks)), None)
        assert self.hooks is not None
        self.hooks._allowed = allowed
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.hooks.start(), self.loop).result(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.hooks.close(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def waiting(app):
    return app.service.store.deliveries.count("waiting")


def settled(app):
    wait_until(lambda: waiting(app) == 0)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (None, ["output", "completed"]),
        (["start"], ["start"]),
        (["output"], ["output"]),
        (["logs"], ["logs", "logs"]),
        (["completed"], ["completed"]),
        ([], []),
        (ALL, ["start", "logs", "logs", "output", "completed"]),
        (["completed", "completed"], ["completed"]),
    ],
)
def test_the_events_that_were_asked_for_are_noted(app, receiver, events, expected):
    id = create(app, receiver.url, events)
    noted = []
    app.service.store.deliveries.add = lambda job, event, url, **_: noted.append((job, event, url))
    run(app, id)
    assert noted == [(id, event, receiver.url) for event in expected]


def test_an_unknown_event_is_refused(app, receiver):
    body = {"version": MODEL, "input": small("a"), "webhook": receiver.url, "webhook_events_filter": ["end"]}
    assert app.client.post("/v1/predictions", json=body).status_code == 422


def test_the_body_is_the_prediction_as_it_was_at_the_event(app, receiver):
    id = create(app, receiver.url, ALL)
    with Delivering(app):
        app.start(id)
        receiver.wait(1)
        app.step(id)
        receiver.wait(2)
        app.finish(id)
        receiver.wait(4)
        settled(app)
    start, logs, output, completed = receiver.events()
    assert (start["status"], start["output"]) == ("processing", None)
    assert (logs["status"], logs["output"], logs["logs"].count("\n")) == ("processing", None, 2)
    assert (output["status"], output["completed_at"], len(output["output"])) == ("processing", None, 1)
    assert completed == app.client.get(f"/v1/predictions/{id}").json()
    assert completed["status"] == "succeeded"
    assert {each["id"] for each in receiver.events()} == {id}


@pytest.mark.parametrize("how", ["canceled", "failed"])
def test_other_ends_are_told_without_output(app, receiver, how):
    id = create(app, receiver.url)
    with Delivering(app):
        if how == "failed":
            app.service.failed(id, "It broke.")
        else:
            app.client.post(f"/v1/predictions/{id}/cancel")
        settled(app)
    (told,) = receiver.events()
    assert (told["status"], told["output"]) == (how, None)
    assert told["error"] == ("It broke." if how == "failed" else None)


def test_calls_are_signed_as_standard_webhooks_verify_them(app, receiver):
    id = create(app, receiver.url, ["start", "completed"])
    with Delivering(app):
        run(app, id)
        settled(app)
    key = app.client.get("/v1/webhooks/default/secret").json()["key"]
    assert len(receiver.calls) == 2
    for _, headers, body in receiver.calls:
        assert Webhook(key).verify(body, headers)["id"] == id
        assert headers["content-type"] == "application/json"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert b'": ' not in body  # compact
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(key).verify(body + b" ", headers)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.calls}) == 2


def test_the_secret_is_kept_over_a_restart(make_app):
    first = make_app().client.get("/v1/webhooks/default/secret").json()
    assert first["key"].startswith("whsec_")
    assert make_app().client.get("/v1/webhooks/default/secret").json() == first


def test_logs_are_told_at_most_every_half_second_and_to_the_last_line(app, receiver, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(webhooks.time, "monotonic", lambda: now[0])
    id = create(app, receiver.url, ["logs"])
    noted = []
    app.service.store.deliveries.add = lambda job, event, url, **_: noted.append(now[0])
    app.start(id)
    for step in range(200):
        now[0] += 0.01
        app.step(id, step + 1, 200)
    assert len(noted) == 4
    assert all(later - before >= 0.5 for before, later in itertools.pairwise(noted))
    app.finish(id)
    assert len(noted) == 5


def test_logs_that_wait_are_overtaken_by_newer_ones(app, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "LOGS_SECONDS", 0.0)
    id = create(app, receiver.url, ["logs", "completed"])
    run(app, id, steps=50)
    assert waiting(app) == 2
    with Delivering(app):
        settled(app)
    assert [each["status"] for each in receiver.events()] == ["processing", "succeeded"]
    assert receiver.events()[0]["logs"] == receiver.events()[1]["logs"]


def test_the_start_of_a_job_that_is_run_again_is_told_once(app, receiver):
    id = create(app, receiver.url, ["start"])
    app.start(id)
    app.service.store.jobs.put_back([id], died=True)
    app.start(id)
    assert waiting(app) == 1


def test_the_end_is_noted_together_with_its_call(app, receiver, monkeypatch):
    id = create(app, receiver.url)

    def fail(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(app.service.store.deliveries, "add", fail)
        with pytest.raises(sqlite3.OperationalError):
            app.service.cancel(id)
        assert app.service.job(id).status is Status.STARTING
    app.service.cancel(id)
    assert (app.service.job(id).status, waiting(app)) == (Status.CANCELED, 1)


def test_a_full_disk_does_not_hold_up_a_job_that_runs(app, receiver, monkeypatch):
    id = create(app, receiver.url, ["start", "logs"])

    def fail(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(app.service.store.deliveries, "add", fail)
        app.start(id)
        app.step(id)
    assert app.service.job(id).status is Status.PROCESSING


@pytest.mark.parametrize("answers", [[500, 404, 429], [302, 307], [503]])
def test_the_end_is_told_again_until_it_is_taken(app, receiver, monkeypatch, answers):
    monkeypatch.setattr(webhooks, "LONGEST_PAUSE", 0.05)
    receiver.answers = list(answers)
    id = create(app, f"{receiver.url}/hook", ["completed"])
    with Delivering(app):
        app.service.cancel(id)
        settled(app)
    assert [path for path, _, _ in receiver.calls] == ["/hook"] * (len(answers) + 1)  # no redirect is followed
    assert len({headers["webhook-id"] for _, headers, _ in receiver.calls}) == 1
    assert app.service.store.deliveries.count("delivered") == 1


def test_other_events_are_told_once(app, receiver):
    receiver.answers = [500] * 10
    id = create(app, receiver.url, ["start", "output", "logs"])
    with Delivering(app):
        run(app, id)
        settled(app)
    assert len(receiver.calls) == app.service.store.deliveries.count("given up") >= 3


def test_the_pauses_grow_to_a_minute_for_a_day(app, receiver):
    receiver.answers = [500]
    id = create(app, receiver.url, ["completed"])
    hooks = Delivering(app).hooks
    app.service.cancel(id)
    (delivery,) = app.service.store.deliveries.due()
    pauses = [hooks._pause(delivery.__class__(**{**vars(delivery), "attempts": attempts})) for attempts in range(2000)]
    for attempts, pause in enumerate(pauses):
        longest = min(60, 2**attempts)
        assert 0.75 * longest <= pause <= longest
    assert hooks._failed(delivery) == "waiting"
    day_old = delivery.__class__(**{**vars(delivery), "created": time.time() - 86400 - 1})
    assert hooks._failed(day_old) == "given up"


def test_a_call_that_was_not_taken_waits_for_its_time(app, receiver):
    receiver.answers = [500]
    id = create(app, receiver.url, ["completed"])
    with Delivering(app):
        app.service.cancel(id)
        receiver.wait(1)
        wait_until(lambda: app.service.store.deliveries.next_due() is not None)
    due = app.service.store.deliveries.next_due()
    assert due - time.time() == pytest.approx(0.8, abs=0.5)


def test_calls_are_kept_over_a_restart(make_app):
    with Receiver() as receiver:
        url = receiver.url
        app = make_app(allow_webhook_host=("127.0.0.1",))
        id = create(app, url)
        run(app, id)  # nobody delivers: the server died
        again = make_app(allow_webhook_host=("127.0.0.1",))
        with Delivering(again):
            settled(again)
        assert [each["status"] for each in receiver.events()] == ["processing", "succeeded"]
        receiver.shutdown()


def test_a_slow_host_does_not_hold_up_others(app, receiver, monkeypatch):
    with Receiver() as slow:
        slow.hanging.clear()
        held = [create(app, slow.url, ["completed"]) for _ in range(24)]
        for each in held:
            app.service.cancel(each)
        quick = [create(app, receiver.url, ["completed"]) for _ in range(20)]
        with Delivering(app):
            wait_until(lambda: len(slow.calls) == webhooks.MOST_OF_HOST)
            for each in quick:
                app.service.cancel(each)
            receiver.wait(len(quick), webhooks.SECONDS - 2)
            assert len(slow.calls) == webhooks.MOST_OF_HOST
            slow.hanging.set()
            settled(app)
        assert {each["id"] for each in slow.events()} == set(held)
        slow.shutdown()


def test_a_host_that_does_not_answer_is_given_up_in_time(app, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "SECONDS", 0.2)
    monkeypatch.setattr(webhooks, "LONGEST_PAUSE", 0.05)
    receiver.hanging.clear()
    id = create(app, receiver.url, ["completed"])
    with Delivering(app):
        app.service.cancel(id)
        receiver.wait(2)
        receiver.hanging.set()
        settled(app)


def test_the_events_of_a_job_come_in_their_order(app, receiver):
    ids = [create(app, receiver.url, ALL) for _ in range(8)]
    for each in ids:
        run(app, each)
    with Delivering(app):
        settled(app)
    for each in ids:
        statuses = [told["output"] is not None for told in receiver.events() if told["id"] == each]
        assert statuses == [False, False, True, True]
    assert sum(told["status"] == "succeeded" for told in receiver.events()) == len(ids)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://10.0.0.1/",
        "http://0x7f000001/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://user:password@example.org/",
        "http://example.org\r\nx: y/",
        "not an address",
        "",
    ],
)
def test_targets_that_are_not_public_are_refused_at_once(shared_app, url):
    body = {"version": MODEL, "input": small("a"), "webhook": url}
    answer = shared_app.client.post("/v1/predictions", json=body)
    assert answer.status_code == 422, answer.text
    assert "webhook" in answer.json()["detail"]
    assert shared_app.service.store.jobs.newest(1) == []


def test_a_target_that_is_not_allowed_any_more_is_not_called(app, receiver):
    id = create(app, receiver.url, ["start", "completed"])
    run(app, id)
    with Delivering(app, allowed=()):
        wait_until(lambda: app.service.store.deliveries.count("given up") == 1)
        wait_until(lambda: app.service.store.deliveries.next_due() is not None)
    assert receiver.calls == []
    assert waiting(app) == 1


def test_what_cannot_be_made_is_tried_again_and_not_at_once(app, receiver, monkeypatch):
    id = create(app, receiver.url, ["completed"])
    hooks = Delivering(app).hooks
    tries = []

    def fail(job, event):
        tries.append(event)
        raise FileNotFoundError

    monkeypatch.setitem(hooks._bodies, "replicate", fail)
    with Delivering(app):
        app.service.cancel(id)
        wait_until(lambda: app.service.store.deliveries.next_due() is not None)
        time.sleep(0.1)
        assert tries == ["completed"]
        monkeypatch.setitem(hooks._bodies, "replicate", replicate.body(app.service))
        settled(app)
    assert len(receiver.calls) == 1


def test_pictures_within_the_body_are_read_when_it_is_sent(app, receiver):
    id = create(app, receiver.url, ["completed"], output="data-uri")
    run(app, id)
    row = app.service.store.database.row("SELECT * FROM deliveries")
    assert all(len(str(value)) < 200 for value in tuple(row))
    with Delivering(app):
        settled(app)
    assert receiver.events()[0]["output"][0].startswith("data:image/png;base64,")


def test_settled_calls_are_forgotten_after_a_day(app, receiver):
    id = create(app, receiver.url)
    run(app, id)
    with Delivering(app):
        settled(app)
    deliveries = app.service.store.deliveries
    deliveries.forget(time.time() - 60)
    assert deliveries.count("delivered") == 2
    deliveries.forget(time.time() + 1)
    assert deliveries.count("delivered") == 0


def test_a_server_tells_every_event_of_a_real_run(server, receiver):
    with server.api() as api:
        body = {"version": MODEL, "input": small("a"), "webhook": receiver.url, "webhook_events_filter": ALL}
        made = api.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
        key = api.get("/v1/webhooks/default/secret").json()["key"]
        wait_until(lambda: any(each["status"] == "succeeded" for each in receiver.events()))
        assert json.loads(receiver.calls[-1][2]) == api.get(f"/v1/predictions/{made['id']}").json()
    assert receiver.events()[0]["status"] == "processing"
    for _, headers, sent in receiver.calls:
        Webhook(key).verify(sent, headers)
    assert receiver.events()[-2]["output"] == receiver.events()[-1]["output"]


def test_the_deliveries_end_when_they_are_told_to_whatever_happens_at_that_moment(app):
    hooks = Delivering(app).hooks

    async def begin_and_end():
        await hooks.start()
        for _ in range(20):
            await asyncio.sleep(0.01)  # it waits for something to do
        hooks._woken.set()
        await asyncio.sleep(0)  # it is about to wake
        await asyncio.wait_for(hooks.close(), 5)

    asyncio.run(begin_and_end())
