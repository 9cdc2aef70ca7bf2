"""How Ctrl-C, SIGTERM and SIGHUP end the program: with one sentence, and with nothing half-written.

Before an export begins, a signal ends the process at once. While it runs, the first one raises KeyboardInterrupt, and
what is half-written is removed; those that come meanwhile change nothing. In the end the process dies of the signal, as
the commands of `kandinsky22` do: a shell says 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP).
A signal that was ignored when the program began, as under `nohup`, stays ignored.
"""

# Little is imported here: it comes before any signal is handled.
import os
import signal

from kandinsky22.cli.signals import SIGNALS, cleans_up, die

TYPE_CHECKING = False  # as typing's, which takes 5 ms to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

__all__ = ["SIGNALS", "STOPPED", "Stop", "die", "end_at_once", "end_silently"]

STOPPED = "Stopped; nothing was written."


def end_at_once() -> None:
    """From now on a signal ends the process with one sentence: for the time before anything is written."""
    _handle_by(_ended)


def end_silently() -> None:
    """From now on a signal ends the process without a word: for the time when everything is done and said."""
    _handle_by(signal.SIG_DFL)


class Stop:
    """KeyboardInterrupt for every signal, except while one is handled: what it left is being removed then."""

    def __init__(self) -> None:
        self.number: int = 0
        """The signal that has come; 0 for none."""
        self._before: dict[int, Any] = {}

    def prepare(self) -> None:
        """Begin: until `listen`, a signal ends the process at once."""
        self._before |= _handle_by(_ended)

    def listen(self) -> None:
        """Raise KeyboardInterrupt from now on."""
        self._before = _handle_by(self._heard) | self._before

    def close(self) -> None:
        """Put back what handled signals before."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def _heard(self, number: int, _: "FrameType | None") -> None:
        self.number = self.number or number
        if not cleans_up():
            raise KeyboardInterrupt


def _handle_by(handler: "Any") -> "dict[int, Any]":
    """Set the handler of all signals that are not ignored; those before. In other threads than the main one, none."""
    before = {}
    for number in SIGNALS:
        now = signal.getsignal(number)
        if now in (signal.SIG_IGN, None):
            continue
        try:
            signal.signal(number, handler)
        except ValueError:  # not the main thread, which gets them
            break
        before[number] = now
    return before


def _ended(number: int, _: object) -> None:
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:  # also where nobody reads it
        die(number)
