"""The page at `/`, loaded beside the running server: Gradio takes seconds to import, and the API is not to wait for it.

This module imports no Gradio.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import logging
import os
import shutil
import threading
from collections.abc import Callable, MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from kandinsky22_serve.pictures import MOST_BYTES
from kandinsky22_serve.service import Service

log = logging.getLogger(__name__)

_PATHS = ("/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/file=", "/gradio_api/heartbeat/")
_QUEUE = tuple(
    f"/gradio_api/{name}"
    for name in ("queue/join", "queue/data", "upload", "upload_progress", "startup-events", "cancel", "reset", "info",
                 "theme.css", "app_id")
)  # fmt: skip
"""What of Gradio is served. Its API pages, its proxy, its monitoring and the like are not."""
_LOADING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width"><title>kandinsky22</title>
<body style="font-family: system-ui, sans-serif; margin: 3em auto; max-width: 30em; padding: 0 1em">
<h1>kandinsky22</h1><p>{}</p></body></html>"""


class Page:
    """The page of a server: until it is loaded, a note that it is being loaded."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._app: ASGIApp | None = None
        self._note = "The page is being loaded; it appears by itself."
        self._running = contextlib.AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to load the page."""
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        """End the page."""
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        await self._running.aclose()

    async def _load(self) -> None:
        try:
            app: Any = await _beside(lambda: _gradio(self._service))
            await self._running.enter_async_context(app.router.lifespan_context(app))
            app.get_blocks().run_startup_events()
            await app.get_blocks().run_extra_startup_events()
            self._app = app
        except Exception:  # the API goes on without a page
            log.exception("the page could not be loaded")
            self._note = "The page could not be loaded; the server's log says why. The API works."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        response: Response = HTMLResponse(_LOADING.format(self._note), 503, headers={"Retry-After": "2"})
        await response(scope, receive, send)


def _beside(work: Callable[[], ASGIApp]) -> asyncio.Future[ASGIApp]:
    """What `work` gives, from a thread that nobody waits for when the server ends: imports cannot be stopped."""
    result: concurrent.futures.Future[ASGIApp] = concurrent.futures.Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # handed over to who waits
            result.set_exception(error)

    threading.Thread(target=run, name="page", daemon=True).start()
    return asyncio.wrap_future(result)


class _PageMount(Mount):
    """The page at `/`, which leaves other paths to the API's own answers."""

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        """Whether a request is for the page."""
        path = scope.get("path", "")
        if path == "/" or path in _PATHS or path in _QUEUE or path.startswith(_BELOW):
            return super().matches(scope)
        return Match.NONE, {}


def mount(app: FastAPI, service: Service) -> Page | None:
    """Serve the page of an application at `/`; None where it is not wanted, or the extra `ui` is missing."""
    if not service.settings.ui or importlib.util.find_spec("gradio") is None:
        return None
    page = Page(service)
    app.router.routes.append(_PageMount("/", page))
    return page


def _gradio(service: Service) -> ASGIApp:
    """Gradio's application. Imports it, which takes seconds."""
    folder = service.store.folder / "page"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed server left
    folder.mkdir(mode=0o700)
    # Read when Gradio is imported: nothing is told to its makers, uploads stay within --data.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder), HF_HUB_DISABLE_TELEMETRY="1")
    import gradio

    from kandinsky22_serve.page import layout

    parent = FastAPI()  # Gradio hangs its own start-up on a parent's; ours has begun already
    gradio.mount_gradio_app(
        parent,
        layout.build(service),
        "",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=layout.theme(),
        css=layout.CSS,
    )
    return next(route.app for route in parent.routes if isinstance(route, Mount))
