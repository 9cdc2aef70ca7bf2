"""What server and engine say to each other: one JSON object a line, through the engine's standard input and output."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, Protocol

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


class Lines(Protocol):
    """A stream that is read line by line, as files are."""

    def readline(self, limit: int, /) -> bytes:
        """The next line, of `limit` bytes at most; what is left of it where the stream ends."""


class Descriptor:
    """Lines of a descriptor, read without a lock.

    Python's own buffered streams hold one while they wait, and where another thread ends the program meanwhile, Python
    wants it too, to close the stream: "Fatal Python error: could not acquire lock".
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._read = descriptor, bytearray()

    def readline(self, limit: int, /) -> bytes:
        """See `Lines`."""
        seen = 0
        while (end := self._read.find(b"\n", seen) + 1) == 0 and len(self._read) < limit:
            seen = len(self._read)
            data = os.read(self._descriptor, 1 << 16)
            if not data:
                break
            self._read += data
        end = min(end or len(self._read), limit)
        line = bytes(self._read[:end])
        del self._read[:end]
        return line


def messages(stream: Lines) -> Iterator[Mapping[str, Any]]:
    """Messages until the other side closes or dies; a line that it did not finish is none."""
    while True:
        line = stream.readline(MOST_BYTES)
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)
