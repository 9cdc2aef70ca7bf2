"""Subjects in processes of their own: start them, tell them what to do, and take turns."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from kandinsky22.measure.timing import Size

Results = list[dict[str, Any]]


class WorkerError(RuntimeError):
    """A process has ended before its work: killed for memory, say, or by its own mistake."""


def why(name: str, code: int, log: Path) -> str:
    """Why a process has ended, in one sentence, where `log` has what it said last."""
    if code == -signal.SIGKILL:
        return f"{name} was killed, which the system does where memory runs out"
    end = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"{name} ended with {code}: {' '.join(end)} (all of it in {log.name})"


def _program(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A program of this package as `subprocess` takes it. It is found in this repository, whatever the folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"args": [sys.executable, "-P", "-m", module, *arguments], "env": {**os.environ, "PYTHONPATH": path}}


def alone(name: str, module: str, arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """What a program of its own prints as JSON in its last line, or {"error"}; what else it says goes to `log`."""
    with log.open("ab") as errors:
        done = subprocess.run(**_program(module, arguments), stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        return {"error": why(name, done.returncode, log)}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Worker:
    """A process that holds one subject (see subjects.py). All that it is asked raises WorkerError once it has ended."""

    def __init__(self, name: str, spec: Mapping[str, Any], log: Path) -> None:
        self.name, self.spec, self._log = name, dict(spec), log
        self._output = log.open("ab")
        self._process = subprocess.Popen(
            **_program("benchmarks.subjects", [json.dumps(self.spec)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        self.about = self._answer()

    def prepare(self, size: Size) -> None:
        """Make inputs of a size."""
        self._ask({"height": size.height, "width": size.width, "batch": size.batch, "guided": size.guided})

    def run(self) -> dict[str, Any]:
        """Run once: seconds, and the memory that the process has taken at most since `prepare`."""
        return self._ask({"run": 1})

    def close(self) -> None:
        """End the process, and free its memory."""
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the missing answer tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._output.close()
            raise WorkerError(why(self.name, code, self._log))
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(
    workers: Sequence[Worker], size: Size, repeat: int, patience: float, on_run: Callable[[float], object]
) -> Results:
    """Time all subjects at a size, one run each in turn, so that what slows the machine down slows all of them.

    The first run of each does not count. It ends after `repeat` turns, or when `patience` seconds are over. A subject
    that fails drops out, and its result has an "error" and no seconds.
    """
    told: dict[str, Results] = {worker.name: [] for worker in workers}
    errors: dict[str, str] = {}

    def turn(worker: Worker, *, first: bool) -> float:
        """Run it once; its seconds, 0 once it has failed."""
        if worker.name in errors:
            return 0.0
        try:
            if first:
                worker.prepare(size)
            told[worker.name].append(worker.run())
        except WorkerError as error:
            errors[worker.name] = str(error)
            return 0.0
        seconds = float(told[worker.name][-1]["seconds"])
        on_run(seconds)
        return seconds

    for worker in workers:
        turn(worker, first=True)
    spent = 0.0
    for _ in range(repeat):
        spent += sum(turn(worker, first=False) for worker in workers)
        if spent > patience:
            break
    return [
        failure(worker.name, worker.spec, size, errors[worker.name])
        if worker.name in errors
        else _result(worker, size, told[worker.name][1:])
        for worker in workers
    ]


def failure(name: str, spec: Mapping[str, Any], size: Size, error: str) -> dict[str, Any]:
    """The result of a subject that failed, with its sentence."""
    return {**_about(name, spec, size), "error": error}


def _result(worker: Worker, size: Size, runs: Results) -> dict[str, Any]:
    return {
        **_about(worker.name, worker.spec, size),
        **worker.about,
        "seconds": [run["seconds"] for run in runs],
        "peak_host_memory": runs[-1]["peak_host_memory"],
        "device_memory": max(run["device_memory"] for run in runs),
    }


def _about(name: str, spec: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """What was to be measured."""
    return {
        "subject": name,
        "settings": dict(spec),
        "stage": spec["stage"],
        "height": size.height,
        "width": size.width,
        "batch": size.batch,
        "guided": size.guided,
    }
