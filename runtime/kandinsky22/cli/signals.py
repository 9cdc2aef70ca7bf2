"""How Ctrl-C, SIGTERM and SIGHUP end the program: with one sentence, and with nothing half-written.

Before a command begins and after it has ended, a signal ends the process at once. While it runs, the first one raises
KeyboardInterrupt, and what is half-written is taken back. In the end the process dies of the signal, so that a shell's
loop ends as well: the shell says 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP). A signal that was ignored when the
program began, as under `nohup`, stays ignored.
"""

from __future__ import annotations

# What is imported here is imported before a signal is handled: of `signal` its C half alone, without the enumerations.
import _thread
import os
import sys
import time

TYPE_CHECKING = False  # as typing's, which takes 5 ms to import
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import CodeType, FrameType
    from typing import Any, TypeVar

    _Function = TypeVar("_Function", bound=Callable[..., Any])
else:
    import _signal as signal

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_FILES = "kandinsky22.files"
"""The module that writes files. What it has begun is finished: a file is then whole, or known and removed."""
_LATER_SECONDS = 0.02

_whole: set[CodeType] = set()


def end_at_once() -> None:
    """From now on a signal ends the process with one sentence: for the time before a command begins."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ended)


def end_silently() -> None:
    """From now on a signal ends the process without a word: for the time when everything is done and said."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def die(number: int) -> None:
    """End the process by a signal, as its default does; by the exit code that shells give that, where it cannot."""
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    os._exit(128 + number)  # the first process of a container does not die of its own signals


def whole(function: _Function) -> _Function:
    """Mark a function that signals do not interrupt: they wait until it, and what it calls, has returned."""
    marked: Any = function
    _whole.add(marked.__code__)
    return function


class Stop:
    """KeyboardInterrupt for every signal that ends the program, once, where it does no harm.

    Elsewhere it is raised a little later: not within an import, where C code turns it into an ImportError and a module
    stays half-made, not while a file gets its name, and not a second time while the first one is cleaned up after.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that has come; 0 for none."""
        self.over = False
        """Whether it is too late to raise anything: a signal is then kept as `number` alone."""
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def listen(self) -> None:
        """Begin; in another thread than the main one, which gets no signals, nothing happens."""
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before in (signal.SIG_IGN, None):
                continue
            try:
                signal.signal(number, self._heard)
            except ValueError:
                return
            self._before[number] = before
        sys.unraisablehook = self._unraisable

    def close(self) -> None:
        """Put back what handled signals before."""
        self.over = True
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._before:
            sys.unraisablehook = self._hook

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.over or cleans_up():
            self.number = self.number or number
        elif _must_not_break(frame):
            _thread.start_new_thread(_later, (number,))
        else:
            self.number = number
            raise KeyboardInterrupt

    def _unraisable(self, event: sys.UnraisableHookArgs) -> None:
        """Where KeyboardInterrupt was raised in a destructor, Python prints it and goes on: it is raised later."""
        if self.number and event.exc_type is KeyboardInterrupt:
            _thread.start_new_thread(_later, (self.number,))
        else:
            self._hook(event)


def _ended(number: int, _: object) -> None:
    try:
        os.write(2, b"Stopped.\n")
    finally:  # also where nobody reads it
        die(number)


def cleans_up() -> bool:
    """Whether a KeyboardInterrupt is being handled, or what came of one."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _must_not_break(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _whole or frame.f_globals.get("__name__") == _FILES:
            return True
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _later(number: Any) -> None:
    time.sleep(_LATER_SECONDS)
    _thread.interrupt_main(number)
