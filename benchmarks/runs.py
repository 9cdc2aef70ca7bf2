"""The runs of the report of quality against steps, and the file that keeps what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandinsky22.measure.kinds import Kind, count, either, exactly, number, one_of, record, several, text
from kandinsky22.measure.report import Measurements
from kandinsky22.request.resolve import guided_parts

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
TIMED_STEPS, TIMED_CALLS = 20, 5


def nothing(value: object, place: str) -> str | None:
    """The kind of an empty object: seconds that are not measured yet."""
    return None if value == {} else place


SECONDS = record(
    rest=number,
    steps=record(**{sampler: record(guided=number, unguided=number) for sampler in SAMPLERS}),
    processor=text,
    date=text,
)
KIND: Kind = record(
    settings=record(bundle=text, backend=text, prompts=count),
    seconds=either(nothing, SECONDS),
    runs=several(
        record(
            sampler=one_of(SAMPLERS),
            steps=count,
            interval=exactly(number, number),
            distance=number,
            scores=record(everything=number),
        )
    ),
)


class RunMeasurements(Measurements):
    """The report's numbers in steps.json, and the reference's pictures beside it, for runs after a stop."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Read the file where there is one. Raises InputError where it was made with other settings."""
        empty: dict[str, Any] = {"seconds": {}, "runs": []}
        same = {"settings": "with other settings"}
        super().__init__(folder / "steps.json", {"settings": settings}, empty, KIND, same)
        self._pictures = folder / "steps-reference.tmp"

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
        """The reference's pictures, where they are those of its row."""
        if not self.has(REFERENCE) or not self._pictures.exists():
            return None
        with self._pictures.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))

    def keep_reference(self, pictures: Pictures) -> None:
        """Keep them, before the row that says that they are there."""
        with self._pictures.open("wb") as file:
            np.save(file, pictures)


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
