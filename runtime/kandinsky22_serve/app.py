"""The application: every contract over one service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import cast

from fastapi import FastAPI, Request

from kandinsky22.version import VERSION
from kandinsky22_serve import metrics as prometheus
from kandinsky22_serve import problems
from kandinsky22_serve.auth import Auth
from kandinsky22_serve.contracts import cog, files, health, openai, replicate
from kandinsky22_serve.limits import Limits
from kandinsky22_serve.metrics import Counted, Metrics
from kandinsky22_serve.page import mounting
from kandinsky22_serve.service import Service
from kandinsky22_serve.webhooks import Webhooks


def create_app(service: Service, tokens: Sequence[bytes] = ()) -> FastAPI:
    """The application over a service, which it starts and closes with itself."""

    bodies = {"replicate": replicate.body(service), "cog": cog.body(service)}
    webhooks = Webhooks(service.store, bodies, service.settings.allow_webhook_host)
    service.hearers.append(webhooks)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        await webhooks.start()
        if page is not None:
            await page.start()
        try:
            yield
        finally:
            if page is not None:
                await page.close()
            await webhooks.close()
            await service.close()

    app = FastAPI(
        title="kandinsky22",
        version=VERSION,
        lifespan=lifespan,
        redoc_url=None,
        responses=problems.PLAIN_RESPONSES,
    )
    app.state.service = service
    metrics = Metrics(service)
    service.hearers.append(metrics)
    problems.add_handlers(app)
    for contract in (health, files, replicate, openai, cog):
        app.include_router(contract.router(service))
    app.include_router(prometheus.router(metrics))
    page = mounting.mount(app, service)
    app.add_middleware(Limits)
    app.add_middleware(Auth, tokens=tokens, public_url=service.settings.public_url)
    app.add_middleware(Counted, metrics=metrics)
    return app


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast(Service, request.app.state.service)
