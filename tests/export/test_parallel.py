"""Tasks in processes of their own: every answer arrives, and nothing is left behind."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import threading
import time

import pytest
from tqdm import tqdm

from kandinsky22.errors import ExportError
from kandinsky22_export import parallel
from kandinsky22_export.progress import OnStage


def square(number: int, note: OnStage) -> tuple[int, int]:
    note(f"squaring {number}")
    return number**2, os.getpid()


def fail(note: OnStage) -> None:
    raise ExportError("It does not fit.")


def die(note: OnStage) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(note: OnStage) -> None:
    note("asleep")
    time.sleep(600)


def hear(note: OnStage) -> bool:
    return logging.getLogger("torch").isEnabledFor(logging.WARNING)


def show_progress(note: OnStage) -> bool:
    """Whether a progress bar's lock is this process's own: one that is shared outlives it, and Python says so."""
    return isinstance(tqdm([]).get_lock(), type(threading.RLock()))


def test_results_and_notes_come_by_name() -> None:
    notes = []
    tasks = {str(number): functools.partial(square, number) for number in range(5)}
    results = dict(parallel.run(tasks, 2, lambda *note: notes.append(note)))
    assert {name: value for name, (value, _) in results.items()} == {"0": 0, "1": 1, "2": 4, "3": 9, "4": 16}
    assert set(notes) == {(str(number), f"squaring {number}") for number in range(5)}
    processes = {process for _, process in results.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("task", "message"),
    [(fail, "^It does not fit.$"), (die, r"export of x was ended from outside \(exit code -9\): .* fewer jobs")],
)
def test_a_failure_ends_the_others(task: parallel.Task, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ExportError, match=message):
        list(parallel.run({"sleeper": sleep, "x": task}, 2, lambda *note: None))
    assert time.monotonic() - started < 100
    assert not multiprocessing.active_children()


def test_an_interruption_ends_them() -> None:
    def interrupt(name: str, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(parallel.run({"a": sleep, "b": sleep}, 2, interrupt))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("silent", [False, True])
def test_they_are_as_quiet_as_their_parent(silent: bool) -> None:
    logging.disable(logging.ERROR if silent else logging.NOTSET)
    try:
        results = dict(parallel.run({"heard": hear, "private": show_progress}, 1, lambda *note: None))
    finally:
        logging.disable(logging.NOTSET)
    assert results == {"heard": not silent, "private": True}
