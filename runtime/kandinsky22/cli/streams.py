"""Standard output and error of the program, where one of them is closed, full, or nobody reads it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import NoReturn, TextIO

STDOUT = "standard output"
"""The `filename` of an OSError about it."""
CLOSED = "Standard output is closed; send it to a file, or to /dev/null."


def prepare() -> bool:
    """Make both streams usable; whether standard output is one that was open.

    The first file that is opened would get the number of one that is closed, and with it what libraries print. What
    standard error does not take is lost: nobody's work is stopped by messages that nobody reads.
    """
    is_open = sys.stdout is not None
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = _again(sys.stdout, 1, _Output)
    sys.stderr = _again(sys.stderr, 2, _Messages)
    return is_open


def give_up(stream: TextIO) -> None:
    """Let a stream that takes no more end in nothing: Python would complain once more when it closes it."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: there is no file below it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


def _again(stream: TextIO | None, number: int, kind: type[io.TextIOWrapper]) -> TextIO:
    """A standard stream, made again as another class; one that was closed ends in nothing."""
    if stream is None:
        return kind(open(number, "wb", closefd=False))
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    lines, through = stream.line_buffering, stream.write_through
    return kind(stream.buffer, stream.encoding, stream.errors, line_buffering=lines, write_through=through)


class _Output(io.TextIOWrapper):
    """A stream whose errors say what they are about."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            _raise(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            _raise(error)


def _raise(error: OSError) -> NoReturn:
    error.filename = STDOUT
    raise error


class _Messages(io.TextIOWrapper):
    """A stream that loses what cannot be written."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            give_up(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            give_up(self)
