"""`/metrics` for Prometheus: what waits, what runs, how long it takes, how it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandinsky22_serve.events import Hearer
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import Job, Status

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)
_DELIVERIES = ("waiting", "delivered", "given up")
_STATES = ("starting", "ready", "busy", "broken", "closed")


class Metrics(Hearer):
    """Counts what it hears; what a scrape asks for is looked up in the store."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # the server's own memory, processor time and open files

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kandinsky22_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"kandinsky22_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"kandinsky22_{name}", text, labels, buckets=buckets, registry=registry)

        self._accepted = counter("jobs_accepted", "Jobs that were accepted.", "contract")
        self._ended = counter("jobs_ended", "Jobs that have ended.", "contract", "status")
        self._pictures = counter("pictures", "Pictures of jobs that succeeded.")
        self._died = counter("jobs_put_back", "Jobs that were put back since the engine died.")
        self._waited = histogram("wait_seconds", "From acceptance to the start of a job.", _SECONDS)
        self._ran = histogram("run_seconds", "From the start of a job to its end.", _SECONDS)
        self._stages = histogram("stage_seconds", "Of a batch, by component, and of loading.", _SECONDS, "stage")
        self._batch = histogram("batch_pictures", "Pictures that were denoised together.", (1, 2, 4, 8, 16, 32, 64))
        self._queued = gauge("queue_jobs", "Jobs that wait.")
        self._age = gauge("queue_age_seconds", "How long the oldest job has waited.")
        self._running = gauge("running_jobs", "Jobs that run.")
        self._resident = gauge("engine_resident_bytes", "Memory of the engine's process.")
        self._restarts = gauge("engine_restarts", "Engines that died and were replaced.")
        self._state = gauge("engine_state", "1 for the state that the engine is in.", "state")
        self._deliveries = gauge("webhook_deliveries", "Calls of webhooks in the store.", "state")
        self.requests = counter("http_requests", "Requests that were answered.", "method", "route", "status")
        self.latency = histogram(
            "http_request_seconds", "From a request's head to the end of its answer.", _QUICK, "route"
        )

    def accepted(self, job: Job) -> None:
        """Counted."""
        self._accepted.labels(job.contract).inc()

    def started(self, job: Job) -> None:
        """How long it waited is noted."""
        self._waited.observe(max(0.0, time.time() - job.created))

    def ended(self, job: Job) -> None:
        """Counted, with what it took."""
        self._ended.labels(job.contract, job.status.value).inc()
        if job.status is Status.SUCCEEDED:
            self._pictures.inc(job.pictures)
        if job.predict_seconds is not None:
            self._ran.observe(job.predict_seconds)

    def died(self, jobs: Sequence[Job]) -> None:
        """Counted."""
        self._died.inc(len(jobs))

    def computed(self, pictures: int, timings: dict[str, float], resident: int) -> None:
        """Counted, by stage."""
        self._batch.observe(pictures)
        for stage, seconds in timings.items():
            self._stages.labels(stage).observe(seconds)
        self._resident.set(resident)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        store = self._service.store
        oldest = store.jobs.oldest_waiting()
        self._queued.set(store.jobs.count(Status.STARTING))
        self._running.set(store.jobs.count(Status.PROCESSING))
        self._age.set(0.0 if oldest is None else max(0.0, time.time() - oldest.created))
        self._restarts.set(self._service.supervisor.restarts)
        for state in _STATES:
            self._state.labels(state).set(self._service.supervisor.state == state)
        for state in _DELIVERIES:
            self._deliveries.labels(state).set(store.deliveries.count(state))
        return generate_latest(self.registry)


def router(metrics: Metrics) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", response_class=Response)
    def scrape() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes


class Counted:
    """Counts requests by the route that answered them: a route has an end, paths have none."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "") or "none"
            self._metrics.requests.labels(_method(scope["method"]), route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - began)


def _method(name: str) -> str:
    return name if name in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "other"
