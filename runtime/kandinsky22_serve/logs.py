"""The server's log: one JSON object a line on stderr, of ids and numbers: no prompts, no tokens, no URLs."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime

from kandinsky22_serve.events import Hearer
from kandinsky22_serve.store.records import Job, Status

log = logging.getLogger("kandinsky22_serve.jobs")


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, event, and the fields of `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(told, default=str)


def begin(level: int = logging.INFO) -> None:
    """Log in this way, from now on, to stderr: our own records from `level` on, warnings of others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("kandinsky22", "kandinsky22_serve"):
        ours = logging.getLogger(name)
        ours.handlers.clear()  # the command line's, which would tell it once more
        ours.setLevel(level)
    # Its start and end are told by us, and strangers' broken requests are no warnings.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.captureWarnings(True)


class JobLog(Hearer):
    """A line for what happens to each job."""

    def accepted(self, job: Job) -> None:
        """Told."""
        _tell("accepted", job, pictures=job.pictures, task=job.request.get("task"))

    def started(self, job: Job) -> None:
        """Told, with how long it waited."""
        _tell("started", job, waited=round(time.time() - job.created, 3))

    def ended(self, job: Job) -> None:
        """Told, with how it ended."""
        level = logging.WARNING if job.status is Status.FAILED else logging.INFO
        _tell(job.status.value, job, level=level, seconds=_rounded(job.predict_seconds), error=job.error)

    def died(self, jobs: Sequence[Job]) -> None:
        """Told of each."""
        for job in jobs:
            _tell("put back", job, level=logging.WARNING, deaths=job.deaths, alone=job.alone)


def _tell(event: str, job: Job, *, level: int = logging.INFO, **fields: object) -> None:
    given = {name: value for name, value in fields.items() if value is not None}
    log.log(level, event, extra={"fields": {"job": job.id, "contract": job.contract, **given}})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
