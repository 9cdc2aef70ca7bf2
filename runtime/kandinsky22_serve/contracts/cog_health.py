"""Cog's words for how the server is."""

from __future__ import annotations

import datetime
import time

from kandinsky22.version import VERSION
from kandinsky22_serve.contracts.cog_schemas import COG_VERSION, Health
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Status


class Watch:
    """Looks at a service; made when the server starts."""

    def __init__(self, service: Service) -> None:
        self._service, self._began = service, time.time()

    def health(self) -> Health:
        """How the server is.

        BUSY is a full queue: whatever the engine does, until then a prediction is taken. UNHEALTHY is an engine that
        has died, while the next one loads. What is told here needs no token, so it has no path and no message.
        """
        state, loaded = self._service.supervisor.state, self._service.supervisor.loaded
        status, error = "STARTING", None
        if state == "broken":
            status = "SETUP_FAILED"
        elif state == "closed":
            status = "DEFUNCT"
        elif state == "starting" and loaded is not None:
            status, error = "UNHEALTHY", "The engine has died; another is starting."
        elif state in ("ready", "busy"):
            status = "BUSY" if self._is_full() else "READY"
        setup = {
            "started_at": iso(self._began),
            "completed_at": None if loaded is None else iso(loaded),
            "status": "failed" if state == "broken" else "starting" if loaded is None else "succeeded",
        }
        version = {"cog": COG_VERSION, "kandinsky22": VERSION}
        told = {"status": status, "setup": setup, "version": version, "user_healthcheck_error": error}
        return Health.model_validate(told)

    def _is_full(self) -> bool:
        return self._service.store.jobs.count(Status.STARTING) >= self._service.settings.max_queue


def iso(seconds: float) -> str:
    """A time as ISO 8601 has it, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
