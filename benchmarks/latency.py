"""The measurements of the latency report: each is made if it is missing, in processes of its own, and kept."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from benchmarks import arithmetic, workers
from benchmarks.comparisons import Comparison, subject_spec
from benchmarks.machine import TOTAL, MachineMeasurements, MachineRecord, complete
from benchmarks.progress import Pending, Progress, rate
from benchmarks.results import ceiling_name
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.measure import timing
from kandinsky22.measure.report import Bytes, Count, Measured, Seconds, Steps
from kandinsky22.measure.suite import SizeRecord, runs_of_a_picture
from kandinsky22.measure.timing import Size
from kandinsky22.schema import NOT_EMPTY, between

PRECISIONS = {"cpu": ("bf16", "fp32"), "cuda": ("fp16", "bf16", "fp32")}
"""Whose limits are measured on a device."""


@dataclass(frozen=True, kw_only=True)
class ComponentResult(SizeRecord):
    """A component of a subject at a size, in the report; older ones do not say the device."""

    commit: str
    case: str
    subject: str
    settings: dict[str, Any]
    stage: str
    flop: Measured
    error: str = ""
    version: str | None = None
    precision: str | None = None
    device: str | None = None
    load_seconds: Measured | None = None
    seconds: Annotated[tuple[Seconds, ...], NOT_EMPTY] | None = None
    peak_host_memory: Bytes | None = None
    device_memory: Bytes | None = None


@dataclass(frozen=True)
class PictureSettings:
    """How whole pictures were made, in the report; `given` are further parameters of the request."""

    bundle: str
    backend: str
    height: Count
    width: Count
    steps: Steps
    prior_steps: Steps
    scheduler: str | None
    low_memory: bool
    pictures: Count
    precision: str = "auto"
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PaintedPicture(SizeRecord):
    """One whole picture, in the report; older ones do not say whether it was the first."""

    begun: Measured
    ended: Measured
    steps: Steps
    prior_steps: Steps
    timings: Annotated[dict[str, Measured], TOTAL]
    peak_host_memory: Bytes
    device_memory: Bytes
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """Whole pictures of some settings, in the report."""

    commit: str
    settings: PictureSettings
    error: str = ""
    refused: str = ""
    imported: Measured | None = None
    opened: Measured | None = None
    memory: tuple[tuple[Measured, Measured], ...] | None = None
    pictures: Annotated[tuple[PaintedPicture, ...], NOT_EMPTY] | None = None


Limit = Annotated[float, between(1e-9, 1e9)]
"""TFLOP/s or GB/s, by which may be divided."""
COMPONENT = complete("version", "precision", "load_seconds", "seconds", "peak_host_memory", "device_memory")
PICTURE = complete("imported", "opened", "memory", "pictures")


@dataclass(frozen=True)
class LatencyRecord:
    """The report: limits of the machine by when they were measured, components ("stages") and whole pictures."""

    machine: MachineRecord
    ceilings: dict[str, dict[str, Limit | None]]
    stages: tuple[Annotated[ComponentResult, COMPONENT], ...]
    pictures: tuple[Annotated[PictureResult, PICTURE], ...]


class ComponentMeasurements(MachineMeasurements):
    """Measurements of components ("stages") and whole pictures, of a report that may have more."""

    def has(self, comparison: Comparison) -> bool:
        """Whether a comparison is measured: every subject of it has a result, if only that it failed."""
        found = {result["subject"] for result in self.data["stages"] if result["case"] == comparison.key}
        return found >= set(comparison.subjects)

    def has_picture(self, settings: dict[str, Any]) -> bool:
        """Whether whole pictures with these settings were made, or tried."""
        return any(done["settings"] == settings for done in self.data["pictures"])

    def add(self, comparison: Comparison, results: Iterable[dict[str, Any]], flop: int) -> None:
        """Keep a comparison's results, in the place of those of it that are there."""
        self.data["stages"] = [result for result in self.data["stages"] if result["case"] != comparison.key]
        self.keep("stages", *({"case": comparison.key, "flop": flop, **result} for result in results))


class LatencyMeasurements(ComponentMeasurements):
    """What the latency report is made of."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        """Read the file where there is one. Raises InputError where it is of another machine or bundle."""
        super().__init__(path, machine, {"ceilings": {}, "stages": [], "pictures": []}, LatencyRecord)


def pending(
    found: ComponentMeasurements,
    bundle: Bundle,
    comparisons: Iterable[Comparison],
    pictures: Iterable[dict[str, Any]],
    patience: float,
) -> dict[Hashable, Pending]:
    """What is not measured yet, with its arithmetic; a picture by its settings as text."""
    left: dict[Hashable, Pending] = {}
    for comparison in comparisons:
        if not found.has(comparison):
            turn = len(comparison.subjects) * flop(bundle, comparison.component, comparison.size)
            left[comparison] = Pending(turn, comparison.repeat, patience)
    for settings in pictures:
        if not found.has_picture(settings):
            left[repr(settings)] = Pending(settings["pictures"] * _flop_of_a_picture(bundle, settings))
    return left


@functools.cache
def flop(bundle: Bundle, component: str, size: Size) -> int:
    """FLOP of a run."""
    return arithmetic.flop(bundle.graph(component), timing.shapes(bundle, component, size))


def _flop_of_a_picture(bundle: Bundle, settings: Mapping[str, Any]) -> int:
    size = Size(settings["height"], settings["width"])
    runs = runs_of_a_picture(settings["steps"], settings["prior_steps"])
    return sum(times * flop(bundle, bundle.manifest.name_of(role), size) for role, times in runs.items())


def measure_comparison(
    found: ComponentMeasurements,
    options: argparse.Namespace,
    bundle: Bundle,
    comparison: Comparison,
    progress: Progress,
) -> None:
    """Measure it, if it is missing, in processes of its own: none has the memory of a comparison before.

    A subject that cannot be started, or that fails, is kept as such; the others go on.
    """
    if found.has(comparison):
        return
    progress.begin(f"{comparison.component} {comparison.size}", rate(found.data["stages"]))
    failed, started = [], []
    with contextlib.ExitStack() as stack:
        for name in comparison.subjects:
            progress.tell(f"loading {name}")
            spec = subject_spec(options, bundle, comparison.component, name)
            try:
                worker = workers.Worker(name, spec, _log(options))
            except workers.WorkerError as error:
                failed.append(workers.failure(name, spec, comparison.size, str(error)))
                continue
            stack.callback(worker.close)
            started.append(worker)
        results = workers.take_turns(
            started, comparison.size, comparison.repeat, options.patience, lambda s: progress.tell(f"{s:.2f} s a run")
        )
    found.add(comparison, [*results, *failed], flop(bundle, comparison.component, comparison.size))
    progress.done(comparison)


def _log(options: argparse.Namespace) -> Path:
    """What processes print beside their answers."""
    path: Path = options.reports / f"{options.name}.log"
    return path


def measure_ceilings(
    found: LatencyMeasurements, options: argparse.Namespace, devices: Iterable[str], when: str, progress: Progress
) -> None:
    """The machine's limits, before all else and after: that they agree tells that it was the same machine.

    One that cannot be measured, such as a GPU's where there is none, is kept as None.
    """
    if when in found.data["ceilings"]:
        return
    progress.begin("the machine's limits", rate(found.data["stages"]))
    limits: dict[str, float | None] = {}
    for device in devices:
        kinds = [(what, precision) for what in ("matmul", "convolution") for precision in PRECISIONS[device]]
        for what, precision in [*kinds, ("copy", "")]:
            name = ceiling_name(what, precision, device)
            spec = {"kind": "ceiling", "what": what, "precision": precision, "device": device}
            limits[name] = _ceiling(name, spec, _log(options))
    found.data["ceilings"][when] = limits
    found.save()


def _ceiling(name: str, spec: dict[str, Any], log: Path) -> float | None:
    """The best of seven runs, in TFLOP/s or GB/s; None where it failed."""
    try:
        with contextlib.closing(workers.Worker(name, spec, log)) as worker:
            worker.run()
            return 1 / min(float(worker.run()["seconds"]) for _ in range(7))
    except workers.WorkerError:
        return None


def measure_picture(
    found: ComponentMeasurements, options: argparse.Namespace, settings: dict[str, Any], progress: Progress
) -> None:
    """Make whole pictures, if they are missing; that they failed is kept, too."""
    if found.has_picture(settings):
        return
    size = Size(settings["height"], settings["width"])
    progress.begin(f"picture {size}, {settings['steps']} steps", rate(found.data["stages"]))
    result = workers.alone("The picture", "benchmarks.picture", [json.dumps(settings)], _log(options))
    found.keep("pictures", {"settings": settings, **result})
    progress.done(repr(settings))
