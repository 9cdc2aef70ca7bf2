"""What `kandinsky22 bench` measures: components at sizes, and whole pictures, on each backend."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from kandinsky22.backends import Availability, Backend, Settings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Role
from kandinsky22.errors import InputError
from kandinsky22.measure import timing
from kandinsky22.measure.report import Bytes, Count, Measured, Measurements, Seconds, Steps
from kandinsky22.measure.timing import Size
from kandinsky22.pipeline import Pipeline
from kandinsky22.schema import NOT_EMPTY

Entry = dict[str, Any]
"""A backend in the report: what it is, and its measurements as `timing.as_json` gives them."""
PICTURE_ROLES = (Role.TEXT_ENCODER, Role.PRIOR, Role.DECODER, Role.MOVQ_DECODER)
"""The components that make a picture of a text, in the order in which they run."""
Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SizeRecord:
    """What was made at once."""

    width: Count
    height: Count
    batch: Count
    guided: bool


@dataclass(frozen=True, kw_only=True)
class ComponentRecord(SizeRecord):
    """A component's measurement in the report (see `timing.as_json`)."""

    stage: str
    seconds: Annotated[tuple[Seconds, ...], NOT_EMPTY]
    p50: Seconds
    p90: Seconds
    p99: Seconds
    pictures_a_second: Measured
    load_seconds: Measured
    peak_host_memory: Bytes
    device_memory: Bytes


@dataclass(frozen=True, kw_only=True)
class PictureRecord(SizeRecord):
    """A whole picture's measurement in the report."""

    steps: Steps
    prior_steps: Steps
    first: bool
    timings: dict[str, Measured]
    peak_host_memory: Bytes
    device_memory: Bytes


@dataclass(frozen=True, kw_only=True)
class BackendRecord(Availability):
    """A backend in the report, and its measurements."""

    stages: tuple[ComponentRecord, ...]
    pictures: tuple[PictureRecord, ...]


@dataclass(frozen=True)
class ReportRecord:
    """The report: what its measurements belong to, and those of each backend."""

    bundle: dict[str, Any]
    settings: dict[str, Any]
    backends: tuple[BackendRecord, ...]


@dataclass(frozen=True)
class Suite:
    """What is to be measured of a bundle on each backend, and how.

    `components` are names and sizes, `pictures` sizes and decoder steps, of which `pictures_each` are made one after
    the other. A component is measured `repeat` times at a size, or until `patience` seconds are over.
    """

    bundle: Bundle
    settings: Settings
    components: list[tuple[str, Size]]
    pictures: list[tuple[Size, int]]
    pictures_each: int
    prior_steps: int
    scheduler: str | None
    low_memory: bool
    repeat: int
    patience: float
    quiet: bool


def open_report(suite: Suite, path: Path | None) -> Measurements:
    """The measurements in a file, or none yet. Raises InputError where they are not those of the suite."""
    manifest = suite.bundle.manifest
    bundle = {
        "name": manifest.name,
        "precision": manifest.precision,
        "source": manifest.source,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "manifest_sha256": suite.bundle.manifest_sha256,
    }
    # What changes a measurement; the other options say which ones are made.
    names = ("prior_steps", "scheduler", "repeat", "patience", "low_memory")
    settings = dataclasses.asdict(suite.settings) | {name: getattr(suite, name) for name in names}
    return Measurements(
        path,
        {"bundle": bundle, "settings": settings},
        {"backends": []},
        ReportRecord,
        {"bundle": "of another bundle", "settings": "with other settings"},
    )


def entry_of(report: Measurements, availability: Availability) -> Entry:
    """Where a backend's measurements go. Raises InputError where there are some of another version of it."""
    about = dataclasses.asdict(availability)
    entry: Entry
    for entry in report.data["backends"]:
        if entry["name"] == about["name"]:
            if any(entry.get(key) != value for key, value in about.items()):
                raise InputError(f"{report.path} is of another {about['name']} or machine; name another file.")
            return entry
    entry = {**about, "stages": [], "pictures": []}
    report.data["backends"].append(entry)
    return entry


def measure_components(suite: Suite, backend: Backend, report: Measurements, results: list[dict[str, Any]]) -> None:
    """Time what `results` lacks. Components are loaded anew each time: none finds what was kept for the one before."""
    done = {(result["stage"], timing.size_of(result)) for result in results}
    pending = [each for each in suite.components if each not in done]
    steps = 10 if backend.availability(suite.bundle).gpu else 1
    total = len(pending) * (suite.repeat + 1)
    with tqdm(total=total, unit="run", disable=True if suite.quiet else None) as bar:
        for index, (name, size) in enumerate(pending):
            seconds = sum(guessed(results, *each, suite.repeat, suite.patience) for each in pending[index:])
            bar.set_description(f"{name} {size}" + (f", {timing.left(seconds)}" if seconds < math.inf else ""))
            with contextlib.closing(timing.Stage(suite.bundle, name, backend, suite.settings, steps)) as stage:
                measured = timing.time_stage(
                    stage, size, repeat=suite.repeat, patience=suite.patience, on_run=lambda _: bar.update()
                )
            bar.total = (bar.total or 0) - (suite.repeat - len(measured.seconds))
            results.append(timing.as_json(measured))
            report.save()


def measure_pictures(suite: Suite, report: Measurements, entry: Entry) -> None:
    """Time whole pictures: some in one pipeline, of which the first loads. Those of a run that was stopped go anew."""

    def made(size: Size, steps: int) -> list[dict[str, Any]]:
        return [each for each in entry["pictures"] if (timing.size_of(each), each["steps"]) == (size, steps)]

    pending = [each for each in suite.pictures if len(made(*each)) < suite.pictures_each]
    seconds = [
        suite.pictures_each * estimated(suite.bundle, entry["stages"], *each, suite.prior_steps) for each in pending
    ]
    form = "pictures, {desc} |{bar}| {elapsed}"
    with tqdm(total=sum(seconds), bar_format=form, disable=True if suite.quiet else None) as bar:
        for (size, steps), its_seconds in zip(pending, seconds, strict=True):
            entry["pictures"] = [each for each in entry["pictures"] if each not in made(size, steps)]
            bar.set_description_str(f"{size}, {steps} steps: {timing.left(sum(seconds) - bar.n)}")
            _time_pipeline(suite, size, steps, report, entry)
            bar.update(its_seconds)


def _time_pipeline(suite: Suite, size: Size, steps: int, report: Measurements, entry: Entry) -> None:
    """Time the calls of one pipeline; the total of the first has the pipeline's opening in it."""
    started = time.perf_counter()
    with Pipeline.load(
        suite.bundle.path,
        entry["name"],
        precision=suite.settings.precision,
        threads=suite.settings.threads,
        low_memory=suite.low_memory,
        memory_limit=None,
        verify=suite.bundle.verify,
    ) as pipe:
        opened = time.perf_counter() - started
        for index in range(suite.pictures_each):
            picture = timing.time_picture(
                pipe,
                size,
                steps=steps,
                prior_steps=suite.prior_steps,
                scheduler=suite.scheduler,
                first=index == 0,
            )
            picture.timings["total"] += opened if picture.first else 0
            entry["pictures"].append(timing.as_json(picture))
            report.save()


def runs_of_a_picture(steps: int, prior_steps: int) -> dict[Role, int]:
    """How often a picture of a text runs each component."""
    return dict(zip(PICTURE_ROLES, (1, prior_steps, steps, 1), strict=True))


def guessed(results: Results, name: str, size: Size, repeat: int, patience: float) -> float:
    """Seconds of a measurement, by the component's last one and their pixels; infinite where there is none."""
    last = next((result for result in reversed(results) if result["stage"] == name), None)
    if last is None:
        return math.inf
    run = last["p50"] * size.pixels / timing.size_of(last).pixels
    return float(last["load_seconds"] + run * (1 + math.ceil(min(repeat, patience / run))))


def estimated(bundle: Bundle, results: Results, size: Size, steps: int, prior_steps: int) -> float:
    """Seconds of a picture by the medians of its components, without loading."""
    runs = {bundle.manifest.name_of(role): count for role, count in runs_of_a_picture(steps, prior_steps).items()}
    seconds = 0.0
    for result in results:
        name, at = result["stage"], timing.size_of(result)
        if name in runs and (at == size or (at.batch == size.batch and not timing.depends_on_size(bundle, name))):
            seconds += runs[name] * result["p50"]
    return seconds
