"""Backends: what runs a graph. Each is one module, imported only when it is asked for.

A backend loads a component and gives two verbs, `run` and `loop`; the pipeline knows no more than that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kandinsky22.arrays import Array
from kandinsky22.bundle import Component
from kandinsky22.errors import BackendError

OnStep = Callable[[int, Mapping[str, Array]], "Mapping[str, Array] | None"]
"""Called after each step with its index and the state; may return arrays that replace parts of the state."""

PerStep = Mapping[str, "Sequence[Array] | Array"]
"""Inputs that change with the step: each has one array, or one row of an array, a step."""


class LoadedComponent(Protocol):
    """A graph that is ready to run."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: arrays by input name in, arrays by output name out."""

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
    ) -> dict[str, Array]:
        """Run a step graph once for each row of `per_step`, feeding its state back; the last state."""

    def close(self) -> None:
        """Free what it holds. It cannot run afterwards."""


@dataclass(frozen=True)
class Settings:
    """How to run: `precision` is "auto", "fp32" or "bf16"; `threads` None leaves the choice to the backend."""

    precision: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here, in which precision "auto" would run, and why."""

    name: str
    usable: bool
    reason: str
    version: str = ""
    precision: str = ""


class Backend(Protocol):
    """What a module of this package offers."""

    def availability(self) -> Availability:
        """Whether it is installed and can run on this machine. Never raises."""

    def load(self, graph: Path, component: Component, settings: Settings) -> LoadedComponent:
        """Load a verified ONNX file. Raises BackendError where the library refuses it."""


PREFERENCE = ("openvino", "onnxruntime")
"""Order of "auto": the fastest first."""


def get(name: str) -> Backend:
    """The backend called `name`, or the first of PREFERENCE that can run here for "auto".

    Raises BackendError where the name is unknown, or nothing that was asked for can run here.
    """
    if name == "auto":
        return _first_usable()
    if name not in PREFERENCE:
        raise BackendError(f"There is no backend {name!r}; choose one of auto, {', '.join(PREFERENCE)}.")
    backend = _module(name)
    availability = backend.availability()
    if not availability.usable:
        raise BackendError(f"The backend {name} cannot run here: {availability.reason}.")
    return backend


def survey() -> list[Availability]:
    """The availability of every backend, in the order in which "auto" tries them."""
    return [_module(name).availability() for name in PREFERENCE]


def _first_usable() -> Backend:
    reasons = []
    for name in PREFERENCE:
        backend = _module(name)
        availability = backend.availability()
        if availability.usable:
            return backend
        reasons.append(f"{name}: {availability.reason}")
    raise BackendError(f"No backend can run here ({'; '.join(reasons)}); install one: pip install kandinsky22[cpu].")


def _module(name: str) -> Backend:
    backend: Backend = importlib.import_module(f"kandinsky22.backends.{name}").BACKEND
    return backend
