"""What the store holds, as values: jobs, files, deliveries."""

from __future__ import annotations

import base64
import enum
import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Status(enum.StrEnum):
    """Of a job, in Replicate's words. A job ends once, as one of the last three."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing comes after it."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


def new_id() -> str:
    """An id that nobody can guess: 128 random bits as 26 letters and digits."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


@dataclass(frozen=True)
class Webhook:
    """Where a job's events go: some of start, output, logs, completed."""

    url: str
    events: tuple[str, ...] = ("output", "completed")


@dataclass(frozen=True)
class Options:
    """What a job is to do beside its request.

    `form` and `quality` are of the picture files; `data_uris` gives outputs as data: URIs. `previews` asks the engine
    for pictures of unfinished states, `webhook` for calls; `base` is the address that the client reached us at, for
    URLs. `extra` is whatever the contract wants back.
    """

    form: str = "png"
    quality: int = 95
    data_uris: bool = False
    previews: bool = False
    webhook: Webhook | None = None
    base: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the store keeps it."""
        hook = None if self.webhook is None else {"url": self.webhook.url, "events": list(self.webhook.events)}
        return json.dumps({**self.__dict__, "webhook": hook, "extra": dict(self.extra)})

    @classmethod
    def from_json(cls, text: str) -> Options:
        """What `to_json` wrote."""
        found = json.loads(text)
        hook = found.pop("webhook")
        return cls(webhook=None if hook is None else Webhook(hook["url"], tuple(hook["events"])), **found)


@dataclass(frozen=True)
class File:
    """A file of the store: `kind` is "output", "input" or "upload". `name` is the one that a client gave, or ours.

    `metadata` is JSON that a client gave with an upload.
    """

    id: str
    kind: str
    name: str
    media_type: str
    bytes: int
    sha256: str
    created: float
    expires: float | None = None
    job: str | None = None
    place: int = 0
    metadata: str = "{}"

    @classmethod
    def of(cls, row: sqlite3.Row) -> File:
        """From its row."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Job:
    """A job as the store holds it. Times are Unix seconds.

    `request` is the JSON of a `kandinsky22.request.Request`, with pictures as paths in the store's folder; `input` is
    what the client sent, as it is shown back. Jobs with equal `key` can be denoised together; `demand` is what each
    asks of memory: names of `components`, height and width of `latents`, `branches` of a step. `deaths` counts engines
    that died while it ran alone; `alone` says that it runs alone, since an engine died while it ran with others.
    """

    seq: int
    id: str
    contract: str
    status: Status
    request: Mapping[str, Any]
    input: Mapping[str, Any]
    options: Options
    key: str
    pictures: int
    demand: Mapping[str, Any]
    created: float
    started: float | None
    completed: float | None
    deadline: float | None
    deaths: int
    alone: bool
    canceling: bool
    error: str | None
    logs: str
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, row: sqlite3.Row) -> Job:
        """From its row."""
        plain = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **plain,
                "status": Status(row["status"]),
                "request": json.loads(row["request"]),
                "input": json.loads(row["input"]),
                "options": Options.from_json(row["options"]),
                "demand": json.loads(row["demand"]),
                "alone": bool(row["alone"]),
                "canceling": bool(row["canceling"]),
                "seeds": tuple(json.loads(row["seeds"])),
            }
        )

    @property
    def predict_seconds(self) -> float | None:
        """Seconds that it ran, where it has ended and ever ran."""
        if self.completed is None or self.started is None:
            return None
        return self.completed - self.started


@dataclass(frozen=True)
class Delivery:
    """A webhook's call: what a job's state is goes to `url`. `terminal` ones, of its end, are tried again.

    `host` is the part of the URL that calls are counted by.
    """

    id: str
    job: str
    event: str
    url: str
    host: str
    terminal: bool
    created: float
    due: float
    attempts: int
    state: str

    @classmethod
    def of(cls, row: sqlite3.Row) -> Delivery:
        """From its row."""
        plain = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**plain, "terminal": bool(row["terminal"])})
