"""The log: one JSON object a line, of ids and numbers."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from kandinsky22_serve import logs

from .conftest import App
from .running import small

LOGGERS = ("", "kandinsky22", "kandinsky22_serve", "uvicorn.error", "py.warnings")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is written to stderr from the beginning on; afterwards all is as it was."""
    before = [(each, each.handlers[:], each.level) for each in map(logging.getLogger, LOGGERS)]
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    command_line = logging.StreamHandler(stream)
    logging.getLogger("kandinsky22").addHandler(command_line)
    logs.begin()
    yield stream
    logging.captureWarnings(False)
    for each, handlers, level in before:
        each.handlers[:] = handlers
        each.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_whatever_is_logged_is_one_object_a_line(told: io.StringIO) -> None:
    logging.getLogger("kandinsky22.pipeline").info("a %s\nof two lines", "sentence")
    logging.getLogger("elsewhere").info("not told")
    logging.getLogger("elsewhere").warning("told", extra={"fields": {"job": "x", "path": object()}})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("be warned", stacklevel=1)
    try:
        int("broken")
    except ValueError:
        logging.getLogger("kandinsky22_serve").exception("it failed")
    first, second, third, fourth = lines(told)
    assert (first["event"], first["level"], first["logger"]) == (
        "a sentence\nof two lines",
        "info",
        "kandinsky22.pipeline",
    )
    assert (second["event"], second["job"]) == ("told", "x")
    assert "be warned" in third["event"]
    assert "ValueError: invalid literal" in fourth["traceback"]
    for each in (first, second, third, fourth):
        assert each["time"].endswith("+00:00")


def test_the_life_of_a_job_is_told_without_what_was_asked(app: App, told: io.StringIO) -> None:
    app.service.hearers.append(logs.JobLog())

    def ask() -> str:
        given = {**small("a secret prompt"), "negative_prompt": "another secret"}
        answer = app.client.post("/predictions", json={"input": given}, headers={"prefer": "respond-async"})
        return str(answer.json()["id"])

    first, second, third = ask(), ask(), ask()
    app.start(first)
    app.finish(first)
    app.service.failed(second, "There is no memory.")
    found = app.service.job(third)
    assert found is not None
    app.service.died([found])
    app.service.cancel(third)
    events = {job: [each for each in lines(told) if each.get("job") == job] for job in (first, second, third)}
    assert [each["event"] for each in events[first]] == ["accepted", "started", "succeeded"]
    assert [each["event"] for each in events[second]] == ["accepted", "failed"]
    assert [each["event"] for each in events[third]] == ["accepted", "put back", "canceled"]
    assert events[first][0]["contract"] == "cog"
    assert events[first][0]["task"] == "text2img"
    assert events[first][2]["seconds"] >= 0
    assert events[second][1]["level"] == "warning"
    assert events[second][1]["error"] == "There is no memory."
    assert "secret" not in told.getvalue()


def test_a_failure_of_ours_is_in_the_log_and_not_in_the_answer(
    app: App, told: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("inner-workings")

    monkeypatch.setattr(app.service.store.jobs, "get", broken)
    answer = app.client.get("/v1/predictions/abc?key=a-secret")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "The server failed; its log has more."
    assert answer.headers["x-content-type-options"] == "nosniff"
    found = [each for each in lines(told) if each["level"] == "error"]
    assert "inner-workings" in found[0]["traceback"]
    assert "a-secret" not in told.getvalue()


def test_a_full_disk_is_told_to_try_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(app.service.store.jobs, "accept", full)
    answer = app.client.post("/predictions", json={"input": small("a")}, headers={"prefer": "respond-async"})
    assert (answer.status_code, answer.headers["retry-after"]) == (507, "30")
    assert "secret" not in answer.text
