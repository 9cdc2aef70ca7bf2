"""Components exported side by side, each in a process of its own: tracing is Python and uses one core."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from tqdm import tqdm

from kandinsky22.errors import ExportError
from kandinsky22_export.progress import OnProgress, OnStage
from kandinsky22_export.quiet import is_quiet, quiet

SECONDS_TO_END = 10
"""How long a process has to end before it is killed."""
Task = Callable[[OnStage], Any]


def run(tasks: Mapping[str, Task], jobs: int, note: OnProgress) -> Iterator[tuple[str, Any]]:
    """Run picklable `tasks` by name, at most `jobs` at once, and yield each name and result as it comes.

    A task is called with a function to tell what it is doing, which arrives as `note(name, stage)`. What a task raises
    is raised here; ExportError where its process was ended from outside. Whatever happens, no process is left.
    """
    waiting = list(tasks.items())
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    running: dict[Connection, str] = {}
    try:
        for _ in range(min(jobs, len(tasks))):
            here, there = context.Pipe()
            processes[here] = context.Process(target=_work, args=(there, is_quiet()))
            with _deaf_to_ctrl_c():
                processes[here].start()
            there.close()  # so that the end of the process is the end of the pipe
            running[here] = _hand_over(here, waiting)
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                name, (kind, value) = running[connection], _receive(connection)
                if kind == "note":
                    note(name, value)
                    continue
                if kind == "raised":
                    raise value
                if kind == "ended":
                    processes[connection].join()
                    raise ExportError(
                        f"The export of {name} was ended from outside (exit code {processes[connection].exitcode}):"
                        " often for want of memory; use fewer jobs."
                    )
                del running[connection]
                if waiting:
                    running[connection] = _hand_over(connection, waiting)
                yield name, value
    finally:
        started = [process for process in processes.values() if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join(SECONDS_TO_END)
            process.kill()  # what a debugger holds, or ignores signals as its parent does
            process.join()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started here get no SIGINT: it would be a traceback while they import. It waits for us."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would end this when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_over(connection: Connection, waiting: list[tuple[str, Task]]) -> str:
    """Send the next of the waiting tasks; its name."""
    name, task = waiting.pop(0)
    connection.send(task)
    return name


def _receive(connection: Connection) -> tuple[str, Any]:
    try:
        kind, value = connection.recv()
    except EOFError:
        return "ended", None
    return kind, value


def _work(connection: Connection, silent: bool) -> None:
    """What a process does until it is ended: one task after the other, so that torch is imported once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and what of that is left is complained of
    # Where the parent was killed, the pipe has no other end, and nobody wants an answer.
    with quiet() if silent else contextlib.nullcontext(), contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            task: Task = connection.recv()
            try:
                answer = "done", task(lambda text: connection.send(("note", text)))
            except Exception as error:
                answer = "raised", error
            connection.send(answer)
