"""What the latency report tells of its measurements: medians, shares of the machine's limit, whole pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import role_of
from kandinsky22.bundle.manifest import Role
from kandinsky22.measure.suite import PICTURE_ROLES, runs_of_a_picture

Result = Mapping[str, Any]
"""A component of a subject at a size, as `of_components` gives it."""
PRIOR_STEPS = 25
OUR_STEPS, THEIR_STEPS = 20, 50
GIB = 1 << 30
UNSIZED = (Role.TEXT_ENCODER, Role.PRIOR)
"""Whose work does not depend on a picture's size."""
GROWING = (Role.DECODER, Role.MOVQ_DECODER)


def of_components(data: Mapping[str, Any]) -> list[Result]:
    """Results that did not fail, by component and size.

    Each with its component's `role` and `ceiling`, the limit that its precision has on its device, in TFLOP/s; NaN
    where that was not measured.
    """
    found = [
        {**result, "role": role_of(data["machine"], result["stage"]), "ceiling": _ceiling(result, data)}
        for result in data["stages"]
        if "error" not in result
    ]
    order = {role: place for place, role in enumerate(PICTURE_ROLES)}
    last = len(order)
    return sorted(found, key=lambda result: (order.get(result["role"], last), result["batch"], pixels(result)))


def _ceiling(result: Result, data: Mapping[str, Any]) -> float:
    kinds = [ceiling_name(what, result["precision"], device_of(result)) for what in ("matmul", "convolution")]
    return limit(data, kinds)


def ceiling_name(what: str, precision: str, device: str) -> str:
    """What a limit of the machine is called: of "matmul", "convolution" or "copy", on "cpu" or "cuda"."""
    return f"{what} {precision}".strip() + (" on the GPU" if device == "cuda" else "")


def limit(data: Mapping[str, Any], names: Sequence[str]) -> float:
    """The best of some limits, before all else and after; NaN where none was measured."""
    found = [limits.get(name) for limits in data["ceilings"].values() for name in names]
    return max((float(value) for value in found if value is not None), default=math.nan)


def device_of(result: Result) -> str:
    """Where it ran, "cpu" or "cuda": the first in reports that do not say it."""
    return str(result.get("device") or "cpu")


def median(result: Result) -> float:
    """Median of the seconds of a run."""
    return float(statistics.median(result["seconds"]))


def speed(result: Result) -> float:
    """TFLOP/s of the median."""
    return float(result["flop"] / median(result) / 1e12)


def pixels(result: Mapping[str, Any]) -> int:
    """Pixels of one picture."""
    return int(result["width"] * result["height"])


def all_pixels(result: Result) -> int:
    """Pixels of all pictures of the batch."""
    return int(pixels(result) * result["batch"])


def size_of(result: Mapping[str, Any]) -> str:
    """The size in words, such as "512x512 x 2" for two pictures."""
    batch = result.get("batch", 1)
    return f"{result['width']}x{result['height']}" + (f" x {batch}" if batch > 1 else "")


def is_ours(result: Result) -> bool:
    """Whether it is of this runtime."""
    return bool(result["subject"].startswith("ours"))


def has_gpu(results: Iterable[Result]) -> bool:
    """Whether any of them took memory of a GPU."""
    return any(result["device_memory"] for result in results)


def best_peer(results: Sequence[Result], like: Result) -> float | None:
    """The lowest median of any peer at the component and size of a result, in whichever case; None without one."""
    kind = ("stage", "height", "width", "batch", "guided")
    alike = [result for result in results if all(result[key] == like[key] for key in kind)]
    return min((median(result) for result in alike if not is_ours(result)), default=None)


def grown(results: Sequence[Result], role: Role) -> list[Result]:
    """Our first backend's results of a component, one a size, by pixels: the backend that our first result is of."""
    first = next((result["subject"] for result in results if is_ours(result)), None)
    found: dict[str, Result] = {}
    for result in results:
        if (result["role"], result["subject"]) == (role, first):
            found.setdefault(size_of(result), result)
    return sorted(found.values(), key=lambda result: (result["batch"], pixels(result)))


@dataclass(frozen=True)
class ComposedPicture:
    """A whole picture by the medians of its components: seconds by role."""

    size: str
    subject: str
    steps: int
    seconds: dict[Role, float]


def composed(results: Sequence[Result]) -> list[ComposedPicture]:
    """Every subject's pictures of every size that all of its components were measured for; ours also with few steps."""
    sizes = {size_of(result): pixels(result) for result in results if result["batch"] == 1}
    found = []
    for size in sorted(sizes, key=lambda size: sizes[size]):
        for subject in dict.fromkeys(result["subject"] for result in results):
            for steps in (OUR_STEPS, THEIR_STEPS) if subject.startswith("ours") else (THEIR_STEPS,):
                seconds = _seconds(results, subject, size, steps)
                if seconds is not None:
                    found.append(ComposedPicture(size, subject, steps, seconds))
    return found


def _seconds(results: Sequence[Result], subject: str, size: str, steps: int) -> dict[Role, float] | None:
    """Seconds of each component of a picture, by a subject's medians; None where one is missing."""
    seconds = {}
    for role, runs in runs_of_a_picture(steps, PRIOR_STEPS).items():
        found = [
            result
            for result in results
            if (result["role"], result["subject"]) == (role, subject) and (size_of(result) == size or role in UNSIZED)
        ]
        if not found:
            return None
        seconds[role] = runs * median(found[0])
    return seconds


def painted(data: Mapping[str, Any]) -> list[Any]:
    """Whole pictures that were made, without those that would not have fitted, and those that failed."""
    return [entry for entry in data["pictures"] if is_painted(entry)]


def is_painted(entry: Mapping[str, Any]) -> bool:
    """Whether it was made."""
    return "refused" not in entry and "error" not in entry


def seconds_by_role(data: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[Role, tuple[str, float]]:
    """Of the last picture of an entry: each component's name, and the seconds of one run of it."""
    settings, timings = entry["settings"], entry["pictures"][-1]["timings"]
    runs = runs_of_a_picture(settings["steps"], settings["prior_steps"])
    roles = {name: role_of(data["machine"], name) for name in timings}
    return {role: (name, timings[name] / runs[role]) for name, role in roles.items() if role in runs}


def commits(results: Iterable[Mapping[str, Any]]) -> str:
    """The commits that results were made at, in the order of their first."""
    return ", ".join(dict.fromkeys(result["commit"] for result in results))
