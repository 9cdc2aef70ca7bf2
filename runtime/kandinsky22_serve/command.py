"""`kandinsky22 serve`: the server from settings to the last request."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from pydantic.warnings import UnsupportedFieldAttributeWarning

from kandinsky22.errors import BackendError, InputError
from kandinsky22_serve import logs
from kandinsky22_serve import settings as declared
from kandinsky22_serve.app import create_app
from kandinsky22_serve.auth import read_tokens
from kandinsky22_serve.connections import BACKLOG, MOST, BoundedProtocol, Listener
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
    # FastAPI silences it where it arises, which does not hold while another thread (the page's) does the like.
    warnings.filterwarnings("ignore", category=UnsupportedFieldAttributeWarning)
    _check(settings, tokens)
    with _listening(settings) as listener:
        service = Service(settings)
        service.hearers.append(logs.JobLog())
        server = _Server(_config(settings, service, tokens), service, listener)
        service.give_up = server.give_up
        logs.begin(logging.DEBUG if options.verbose > 1 else logging.INFO)
        if settings.token_file is not None:
            _warn_of_readers(settings.token_file)
        _take_room_for_connections()
        server.run([listener])
    if server.has_given_up:
        raise BackendError(service.supervisor.why)
    return 0


def _warn_of_readers(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("others than its owner can use the token file; chmod 600 it", extra={"fields": {"file": str(path)}})


def _check(settings: Settings, tokens: tuple[bytes, ...]) -> None:
    """Raise InputError for settings that do not go together."""
    if not tokens and not settings.is_loopback:
        raise InputError(f"Others could use {settings.host}; give a --token-file, or listen at 127.0.0.1.")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("One of --tls-cert and --tls-key was given; give both, or neither.")
    if settings.tls_cert and settings.tls_key:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")  # else it would be asked for
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{settings.tls_cert} and its key cannot be used ({reason}); give both as PEM.") from error


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[Listener]:
    """The socket, listening before anything is loaded. Raises InputError where that cannot be."""
    with Listener(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listener:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no address"
            sentence = f"{settings.host}:{settings.port} cannot be listened at ({reason}); choose another"
            raise InputError(f"{sentence} --port or --host.") from error
        yield listener


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens, and can be told to give up."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        super().__init__(config)
        self._service, self._listener = service, listener
        self.has_given_up = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.started:
            settings = self._service.settings
            scheme, host = ("https" if settings.tls_cert else "http"), settings.host
            address = f"[{host}]" if ":" in host else host
            url = f"{scheme}://{address}:{self._listener.getsockname()[1]}"
            print(f"kandinsky22 serves {settings.bundle} as {settings.model} at {url}", flush=True)

    def give_up(self) -> None:
        """End: the engine cannot start."""
        self.should_exit = self.has_given_up = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal in order, at a second Ctrl-C at once: the queue is on the disk, and loses nothing."""
        if self.should_exit and sig == signal.SIGINT:
            engine = self._service.supervisor.pid
            if engine is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)


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
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=1 << 16,
    )
