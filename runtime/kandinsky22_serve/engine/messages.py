"""What server and engine say to each other: one JSON object a line, through the engine's standard input and output."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

MOST_BYTES = 64 << 20
"""Of a line. The largest are previews and a batch's requests, which name pictures by their paths."""


class Sender:
    """Writes messages; threads take turns."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._turn = stream, threading.Lock()

    def send(self, kind: str, **values: Any) -> None:
        """One message. Raises OSError (or ValueError of a closed stream) where the other side has gone."""
        line = json.dumps({"kind": kind, **values}, separators=(",", ":")).encode() + b"\n"
        with self._turn:
            self._stream.write(line)
            self._stream.flush()


def messages(stream: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """Messages until the other side closes or dies; a line that it did not finish is none."""
    while True:
        line = stream.readline(MOST_BYTES)
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)
