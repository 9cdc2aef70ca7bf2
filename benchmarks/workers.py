"""Subjects in processes of their own: start them, tell them what to do, and take turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky22.bench import Size

Results = list[dict[str, Any]]


class Worker:
    """A process that holds one subject (see subjects.py)."""

    def __init__(self, name: str, spec: Mapping[str, Any], log: Path) -> None:
        self.name, self.spec, self._log = name, dict(spec), log
        self._output = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("subjects.py")), json.dumps(self.spec)],
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
            end = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{self.name} ended with {code}: {' '.join(end)} (all of it in {self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(
    workers: Sequence[Worker], size: Size, repeat: int, patience: float, on_run: Callable[[float], object]
) -> Results:
    """Time all subjects at a size, one run each in turn, so that what slows the machine down slows all of them.

    The first run of each does not count. It ends after `repeat` turns, or when `patience` seconds are over.
    """
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    last: dict[str, dict[str, Any]] = {}
    for worker in workers:
        worker.prepare(size)
        on_run(worker.run()["seconds"])
    spent = 0.0
    for _ in range(repeat):
        for worker in workers:
            last[worker.name] = worker.run()
            seconds[worker.name].append(last[worker.name]["seconds"])
            spent += seconds[worker.name][-1]
            on_run(seconds[worker.name][-1])
        if spent > patience:
            break
    return [
        {
            "subject": worker.name,
            "settings": worker.spec,
            "stage": worker.spec["stage"],
            "height": size.height,
            "width": size.width,
            "batch": size.batch,
            "guided": size.guided,
            **worker.about,
            "seconds": seconds[worker.name],
            "peak_host_memory": last[worker.name]["peak_host_memory"],
            "device_memory": last[worker.name]["device_memory"],
        }
        for worker in workers
    ]
