"""The runs of the report of quality against steps, and the file that keeps what they gave."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from kandinsky22 import schema
from kandinsky22.errors import InputError, first_line
from kandinsky22.files import read_regular
from kandinsky22.measure.report import Count, Measured, Measurements, Steps
from kandinsky22.request.resolve import guided_parts
from kandinsky22.schema import Rule, between, one_of

Interval = tuple[float, float]
Run = tuple[str, int, Interval]
"""A sampler, its steps, and the share of them that is guided, from and to."""
Row = Mapping[str, Any]
"""What a run gave: its distance to the reference and its scores."""
Pictures = NDArray[np.float32]
"""(n, H, W, 3) in 0..1"""

SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpm++": "DPM-Solver++ (2M)",
    "dpm++ karras": "DPM-Solver++ (2M), Karras' levels",
}
STEPS = (4, 6, 8, 10, 15, 20, 25, 50)
ALWAYS, NEVER = (0.0, 1.0), (0.0, 0.0)
INTERVALS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0), NEVER)
INTERVAL_STEPS = 20
REFERENCE: Run = ("ddim", 500, ALWAYS)
DEFAULT: Run = ("ddpm", 50, ALWAYS)
RUNS: tuple[Run, ...] = (
    REFERENCE,
    *((sampler, steps, ALWAYS) for steps in STEPS for sampler in SAMPLERS),
    *(("dpm++", INTERVAL_STEPS, interval) for interval in INTERVALS),
)
GUIDANCE = 4.0
MOST_PICTURE_BYTES = 1 << 30
"""Size of the reference's pictures that is read."""
TIMED_STEPS, TIMED_CALLS = 20, 5

Share = Annotated[float, between(0, 1)]
ALL_SAMPLERS = Rule("all samplers", lambda steps: set(steps) == set(SAMPLERS))
EVERYTHING = Rule('scores with "everything"', lambda scores: "everything" in scores)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a step of a sampler."""

    guided: Measured
    unguided: Measured


@dataclass(frozen=True)
class SecondsRecord:
    """Seconds in the report, once they are measured."""

    rest: Measured
    steps: Annotated[dict[str, StepSeconds], ALL_SAMPLERS]
    processor: str
    date: str


def _nothing_or_seconds(value: dict[str, Any]) -> bool:
    try:
        return not value or bool(schema.read(SecondsRecord, value))
    except schema.SchemaError:
        return False


@dataclass(frozen=True)
class RunRecord:
    """What a run gave, in the report."""

    sampler: Annotated[str, one_of(*SAMPLERS)]
    steps: Steps
    interval: tuple[Share, Share]
    distance: Measured
    scores: Annotated[dict[str, Measured], EVERYTHING]


@dataclass(frozen=True)
class RunSettings:
    """What all runs have in common."""

    bundle: str
    backend: str
    prompts: Count


@dataclass(frozen=True)
class StepsRecord:
    """The report's numbers."""

    settings: RunSettings
    seconds: Annotated[dict[str, Any], Rule("seconds of all samplers, or none", _nothing_or_seconds)]
    runs: tuple[RunRecord, ...]


class KeptPictures:
    """Pictures in a file beside a report, for runs after a stop."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Pictures | None:
        """The pictures; None where there is no file. Raises InputError where it is damaged."""
        try:
            data = read_regular(self._path, MOST_PICTURE_BYTES)
            return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise InputError(
                f"{self._path} cannot be read ({first_line(error)}); remove it: it is made anew."
            ) from error

    def write(self, pictures: Pictures) -> None:
        """Keep them."""
        with self._path.open("wb") as file:
            np.save(file, pictures)


class RunMeasurements(Measurements):
    """The report's numbers in steps.json, and the reference's pictures beside it, for runs after a stop."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Read the file where there is one. Raises InputError where it was made with other settings."""
        empty: dict[str, Any] = {"seconds": {}, "runs": []}
        same = {"settings": "with other settings"}
        super().__init__(folder / "steps.json", {"settings": settings}, empty, StepsRecord, same)
        self._pictures = KeptPictures(folder / "steps-reference.tmp")

    def has(self, run: Run) -> bool:
        """Whether a run is done."""
        return find(self.data["runs"], run) is not None

    def add(self, run: Run, found: Row) -> None:
        """Keep what a run gave, in place of an earlier one."""
        runs = [row for row in self.data["runs"] if key_of(row) != run] + [{**row_of(run), **found}]
        order = {run: place for place, run in enumerate(RUNS)}
        self.data["runs"] = sorted(runs, key=lambda row: order.get(key_of(row), len(order)))
        self.save()

    def reference(self) -> Pictures | None:
        """The reference's pictures, where they are those of its row. Raises InputError where the file is damaged."""
        return self._pictures.read() if self.has(REFERENCE) else None

    def keep_reference(self, pictures: Pictures) -> None:
        """Keep them, before the row that says that they are there."""
        self._pictures.write(pictures)


def row_of(run: Run) -> dict[str, Any]:
    """A run as JSON has it."""
    return {"sampler": run[0], "steps": run[1], "interval": list(run[2])}


def key_of(row: Row) -> Run:
    """The run that a row is of."""
    low, high = row["interval"]
    return row["sampler"], row["steps"], (low, high)


def find(rows: Sequence[Row], run: Run) -> Row | None:
    """The row of a run."""
    return next((row for row in rows if key_of(row) == run), None)


def evaluations(run: Run) -> tuple[int, int]:
    """Steps of a run with and without guidance; the former evaluate the UNet twice a picture."""
    parts = guided_parts(run[1], GUIDANCE, run[2])
    guided = sum(part.stop - part.start for part, is_guided in parts if is_guided)
    return guided, run[1] - guided
