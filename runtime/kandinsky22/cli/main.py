"""The command line `kandinsky22`: finds the command, and turns what a user can cause into one sentence."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

from kandinsky22.cli import signals, streams
from kandinsky22.cli.parser import ArgumentParser
from kandinsky22.cli.printable import printable
from kandinsky22.errors import BackendError, KandinskyError
from kandinsky22.version import VERSION

READER_GONE = 141
"""What a shell says of a program that ended because nobody reads on: 128 and the number of SIGPIPE."""

COMMANDS = {
    "generate": "make pictures from prompts",
    "mix": "blend prompts and pictures",
    "variations": "make more pictures of what a picture shows",
    "build": "build TensorRT plans from a bundle's graphs",
    "verify": "compare what a backend computes with ONNX Runtime on the CPU",
    "compare": "compare the pictures of two bundles, or of two settings of one",
    "bench": "measure latency and memory of every stage and of whole pictures",
    "show": "tell how pictures were made",
    "doctor": "tell what this machine can run, and check a bundle",
    "serve": "answer HTTP requests, with a queue that loses nothing",
}
"""The commands, each the module of its name in `kandinsky22.cli` or of `ELSEWHERE`, and what they do."""
ELSEWHERE = {"serve": "kandinsky22_serve.command"}
"""Commands of packages that stand on this one."""

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""What is told without -v, with it, and with -vv."""


class Command(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; the exit code."""


class Parser(ArgumentParser):
    """argparse, with mistakes in one line, and errors where its help cannot be printed."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"error: {printable(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            file = file or sys.stderr
            file.write(message)
            file.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); the exit code.

    Mistakes of the user and failures of the machine become one sentence on stderr; anything else is a bug, and keeps
    its traceback. A signal that stops it is 128 and the signal's number.
    """
    stop = signals.Stop()
    try:
        stop.listen()
        return _outcome(sys.argv[1:] if argv is None else list(argv), stop)
    except KeyboardInterrupt as stopped:
        return _stopped(stop, stopped)
    finally:
        stop.close()


def _outcome(argv: list[str], stop: signals.Stop) -> int:
    """The exit code, after the sentence of what went wrong. Raises KeyboardInterrupt."""
    try:
        _escape_what_cannot_be_printed()
        with _one_line_warnings():
            code = _run(argv)
        sys.stdout.flush()  # here, where it may still fail in one sentence
    except Exception as error:
        if not stop.number:
            return _failed(error)
        raise KeyboardInterrupt from error  # C code may make another error of it
    if stop.number:
        raise KeyboardInterrupt
    return code


def _failed(error: Exception) -> int:
    """The exit code for an error, after its sentence. Raises it again where it is a bug."""
    if isinstance(error, KandinskyError):
        from kandinsky22.cli.flags import message_in_flags

        return fail(message_in_flags(str(error)))
    if isinstance(error, MemoryError):
        return fail("There is not enough memory; try --low-memory, a smaller --size or a smaller --batch-size.")
    if not isinstance(error, OSError):
        raise error
    if error.filename == streams.STDOUT:
        streams.give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):  # whoever read it has left, as `head` does, and wants to know no more
            return READER_GONE
    return fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))


def _stopped(stop: signals.Stop, stopped: KeyboardInterrupt) -> int:
    """The exit code for a signal, after its sentence: what was told about it as notes is the end of that."""
    try:
        sys.stdout.flush()
    except OSError:
        streams.give_up(sys.stdout)
    print("; ".join(["Stopped", *getattr(stopped, "__notes__", ())]) + ".", file=sys.stderr)
    return 128 + (stop.number or signal.SIGINT)


def _run(argv: list[str]) -> int:
    first = next((place for place, word in enumerate(argv) if word not in ("-v", "-vv", "--verbose")), len(argv))
    before, argv = argv[:first], argv[first:]
    if not argv or argv[0] not in COMMANDS:
        # Nothing but --help, --version and mistakes is left.
        _parser().parse_args(argv)
        return 0
    command = _command(argv[0])
    parser = Parser(prog=f"kandinsky22 {argv[0]}", description=COMMANDS[argv[0]].capitalize() + ".")
    command.add_arguments(parser)
    _add_verbose(parser)
    # Not with subparsers: below them, argparse takes no positional arguments after the first option.
    options = parser.parse_intermixed_args([*before, *argv[1:]])
    with _told(options.verbose):
        return command.run(options)


def _command(name: str) -> Command:
    """The command's module: only the chosen one is imported."""
    try:
        command: Command = importlib.import_module(ELSEWHERE.get(name, f"kandinsky22.cli.{name}"))
    except ModuleNotFoundError as error:
        if name not in ELSEWHERE or (error.name or "").startswith("kandinsky22"):
            raise
        sentence = f"{name} needs {error.name}, which is not installed: pip install 'kandinsky22[{name}]'."
        raise BackendError(sentence) from error
    return command


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    text = "tell what is done on stderr: backend, loads, compilations, memory; twice for more"
    parser.add_argument("-v", "--verbose", action="count", default=0, help=text)


@contextlib.contextmanager
def _told(verbose: int) -> Iterator[None]:
    """What the program logs, on stderr above a progress bar, as far as it was asked for."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)

    class Formatter(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
            return printable(super().formatMessage(record))

    handler = Handler()
    handler.setFormatter(Formatter("%(name)s: %(message)s"))
    log = logging.getLogger("kandinsky22")
    before = log.level
    log.addHandler(handler)
    log.setLevel(LEVELS[min(verbose, len(LEVELS) - 1)])
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="kandinsky22",
        usage="%(prog)s [-v] COMMAND ...",
        description="Kandinsky 2.2 without torch.",
        epilog=f"commands:\n{commands}\n\nkandinsky22 COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kandinsky22 {VERSION}")
    _add_verbose(parser)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return parser


def _escape_what_cannot_be_printed() -> None:
    """Print what stdout's encoding lacks, such as a file's name that is not UTF-8, as escapes of Python and JSON."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(sentence: str) -> int:
    """Say what went wrong, in one sentence; the exit code."""
    print("error:", printable(sentence.strip()), file=sys.stderr)
    return 1


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings as the user reads them, without the line of source that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        from tqdm import tqdm

        tqdm.write(
            f"warning: {printable(str(message).strip())}", file=sys.stderr
        )  # above a progress bar, where there is one

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
