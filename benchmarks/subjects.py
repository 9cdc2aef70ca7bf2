"""What is measured: one component of one implementation, loaded in a process of its own that runs it when told to.

    python -m benchmarks.subjects '{"kind": "ours", …}'

reads one JSON object a line, `{"height": …, "width": …, "batch": …, "guided": …}` to make inputs of a size or
`{"run": 1}`, and answers each with one line. A process each lets subjects take turns without sharing memory, threads
or a heap; it imports what its subject needs, and nothing of the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from kandinsky22.backends.cuda import gpu
from kandinsky22.measure import timing
from kandinsky22.measure.timing import Size


class Subject(Protocol):
    """One component that can be timed."""

    def prepare(self, size: Size) -> None:
        """Make inputs of a size."""

    def run(self) -> float:
        """Run once, on the whole batch and all branches; the seconds that it took."""


def ours(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """A component of a bundle on one of our backends, its version, and the precision and device it computes in."""
    from kandinsky22 import backends
    from kandinsky22.bundle.bundle import Bundle

    bundle = Bundle(spec["bundle"])
    backend = backends.get(spec["backend"], bundle)
    availability = backend.availability(bundle)
    asked = spec.get("precision", "auto")
    stage = timing.Stage(bundle, spec["stage"], backend, backends.Settings(asked), 10 if availability.gpu else 1)
    found = availability.precision if asked == "auto" else asked
    precision = bundle.manifest.precision if found == "bundle" else found
    device = "cuda" if availability.gpu else "cpu"
    return stage, {"version": f"{availability.name} {availability.version}", "precision": precision, "device": device}


def diffusers(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """A component as diffusers runs it, its version, precision and device."""
    from benchmarks import peers

    subject = peers.Peer(spec)
    return subject, {"version": peers.version(), "precision": spec["precision"], "device": subject.device}


def ceiling(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """The machine's own limit, and what it is measured with."""
    from benchmarks import ceilings

    return ceilings.Ceiling(spec), {"version": ceilings.version()}


KINDS = {"ours": ours, "diffusers": diffusers, "ceiling": ceiling}


class DeviceShare:
    """Bytes of the GPU's memory that this process holds. The GPU tells what all hold together.

    Since subjects take turns, what changes while this one works is its own.
    """

    def __init__(self, told: Callable[[], int]) -> None:
        self.bytes, self._told = 0, told

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count what comes and goes in the block."""
        others = self._told() - self.bytes
        yield
        self.bytes = self._told() - others


def main() -> None:
    """Load what the argument describes, and answer requests until the end of the input."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # libraries print where they like

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    spec = json.loads(sys.argv[1])
    share = DeviceShare(gpu.device_memory)
    with share.working():
        started = time.perf_counter()
        subject, about = KINDS[spec["kind"]](spec)
        load_seconds = time.perf_counter() - started
    answer(**about, load_seconds=load_seconds)
    with timing.highest_memory() as memory:
        for line in sys.stdin:
            request = json.loads(line)
            if "run" in request:
                with share.working():
                    seconds = subject.run()
                answer(seconds=seconds, peak_host_memory=memory().host, device_memory=share.bytes)
            else:
                Path("/proc/self/clear_refs").write_text("5")
                with share.working():
                    subject.prepare(timing.Size(**request))
                answer(ready=True)


if __name__ == "__main__":
    main()
