"""`kandinsky22 serve`: the server from settings to the last request."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import uvicorn

from kandinsky22.errors import BackendError, InputError
from kandinsky22_serve import logs
from kandinsky22_serve import settings as declared
from kandinsky22_serve.app import create_app
from kandinsky22_serve.auth import read_tokens
from kandinsky22_serve.connections import MOST, BoundedProtocol
from kandinsky22_serve.service import Service
from kandinsky22_serve.settings import Settings

log = logging.getLogger(__name__)

_FILES = 256
"""Files that the server opens beside its connections."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Each flag can also stand in the environment (KANDINSKY22_PORT) and in the file of --config."
    declared.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; the exit code."""
    settings = declared.load(options)
    tokens = read_tokens(settings.token_file) if settings.token_file else ()
    _check(settings, tokens)
    with _listening(settings) as listener:
        service = Service(settings)
        service.hearers.append(logs.JobLog())
        server = _Server(_config(settings, service, tokens), settings, listener)
        service.give_up = server.give_up
        logs.begin()
        _take_room_for_connections()
        server.run([listener])
    if service.supervisor.why and not service.supervisor.engine:
        raise BackendError(service.supervisor.why)
    return 0


def _check(settings: Settings, tokens: tuple[bytes, ...]) -> None:
    """Raise InputError for settings that do not go together."""
    if not tokens and not settings.is_loopback:
        raise InputError(f"Others could use {settings.host}; give a --token-file, or listen at 127.0.0.1.")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("One of --tls-cert and --tls-key was given; give both, or neither.")
    if settings.tls_cert and settings.tls_key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{settings.tls_cert} and its key cannot be used ({reason}); give both as PEM.") from error
    if settings.public_url is not None:
        url = urlsplit(settings.public_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise InputError("--public-url is no address; expected one such as https://pictures.example.org.")


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, bound before anything is loaded. Raises InputError where it cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            sentence = f"{settings.host}:{settings.port} cannot be listened at ({reason}); choose another --port."
            raise InputError(sentence) from error
        yield listener


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens, and can be told to give up."""

    def __init__(self, config: uvicorn.Config, settings: Settings, listener: socket.socket) -> None:
        super().__init__(config)
        self._settings, self._listener = settings, listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.started:
            settings = self._settings
            scheme, host = ("https" if settings.tls_cert else "http"), settings.host
            address = f"[{host}]" if ":" in host else host
            url = f"{scheme}://{address}:{self._listener.getsockname()[1]}"
            print(f"kandinsky22 serves {settings.bundle} as {settings.model} at {url}", flush=True)

    def give_up(self) -> None:
        """End: the engine cannot start."""
        self.should_exit = True


def _take_room_for_connections() -> None:
    """Let the process open as many files as it may have connections, where it is allowed fewer now."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + _FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _config(settings: Settings, service: Service, tokens: tuple[bytes, ...]) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service, tokens),
        http=BoundedProtocol,
        ws="none",
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=1 << 16,
    )
