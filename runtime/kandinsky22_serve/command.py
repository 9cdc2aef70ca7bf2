"""`kandinsky22 serve`: the server from settings to the last request."""

from __future__ import annotations

import argparse
import logging
import sys

import uvicorn

from kandinsky22.errors import BackendError, InputError
from kandinsky22_serve import settings as declared
from kandinsky22_serve.app import create_app
from kandinsky22_serve.auth import read_tokens
from kandinsky22_serve.service import Service
from kandinsky22_serve.settings import Settings

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Each flag can also stand in the environment (KANDINSKY22_PORT) and in the file of --config."
    declared.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; the exit code."""
    settings = declared.load(options)
    tokens = read_tokens(settings.token_file) if settings.token_file else ()
    if not tokens and not settings.is_loopback:
        raise InputError(f"Others could use {settings.host}; give a --token-file, or listen at 127.0.0.1.")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("Give both --tls-cert and --tls-key, or neither.")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    service = Service(settings)
    server = uvicorn.Server(_config(settings, service, tokens))
    server.run()
    if service.supervisor.state == "broken":
        raise BackendError(service.supervisor.why)
    return 0


def _config(settings: Settings, service: Service, tokens: tuple[bytes, ...]) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service, tokens),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
    )
