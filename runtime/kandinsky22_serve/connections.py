"""Connections in bounds: how many there are, and how long one may take to say what it wants, or to hear us."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kandinsky22_serve import problems

MOST = 1000
"""Connections at once; more are closed at once. Those that have a place go on."""
BACKLOG = 128
"""Connections that the system may hold before we have seen them."""
HEAD_SECONDS = 15.0
"""In which the head of a request must have come, from the connection's first moment or from the head's first byte."""
REST_SECONDS = 5.0
"""In which the rest of a body must have come that nobody reads any more, for its request is answered."""
WRITE_SECONDS = 60.0
"""That a client may take nothing of what it is sent."""


class Listener(socket.socket):
    """A listening socket that closes at once whom there is no room for, before TLS and before anything is read."""

    def __init__(self, family: int) -> None:
        # By its protocol asyncio knows that Nagle's algorithm is to be off; with it an answer takes 40 ms more.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises BlockingIOError where there is none, or no room for it."""
        connection, address = super().accept()
        if len(self._accepted) >= MOST:
            self._accepted = [each for each in self._accepted if each.fileno() >= 0]
        if len(self._accepted) >= MOST:
            connection.close()
            raise BlockingIOError
        self._accepted.append(connection)
        return connection, address


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with bounds on time, which it lacks."""

    _head: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the first ones of a head start its clock."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what cannot be read, after an answer has begun
            self._end()
            return
        if self.conn.their_state is not h11.IDLE:
            self._head = _stop(self._head)
        elif self.conn.trailing_data[0] and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)
        if self.conn.their_state is not h11.SEND_BODY:
            self._rest = _stop(self._rest)

    def on_response_complete(self) -> None:
        """A request is answered, maybe before its body has come."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._rest = self.loop.call_later(REST_SECONDS, self._end)

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._write = self.loop.call_later(WRITE_SECONDS, self._end)

    def resume_writing(self) -> None:
        """It has taken it."""
        super().resume_writing()
        self._write = _stop(self._write)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._head, self._rest, self._write = map(_stop, (self._head, self._rest, self._write))
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP is answered as other errors are."""
        answer = problems.plain(400, "This is no HTTP request.")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun: the connection is closed, no more
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _end(self) -> None:
        self.transport.abort()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer, and give back what is then in its place: none."""
    if timer is not None:
        timer.cancel()
    return None
