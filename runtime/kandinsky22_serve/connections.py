"""Connections in bounds: how many there are, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000
"""Connections at once; more are closed at once. Those that have a place go on."""
HEAD_SECONDS = 15.0
"""In which the head of a request must have come, from the connection's first moment or from the head's first byte."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with bounds that it lacks."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; it is sent away where there is no room."""
        if len(self.connections) >= MOST:
            self.transport = cast(asyncio.Transport, transport)
            self.transport.abort()
            return
        super().connection_made(cast(asyncio.Transport, transport))
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the first ones of a head start its clock."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait_for_head()
        elif self.conn.their_state is not h11.IDLE:
            self._head_is_there()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._head_is_there()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._end)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
