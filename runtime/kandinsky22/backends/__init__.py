"""Backends: what runs a graph. Each is one module, imported only when it is asked for.

A backend loads a component and gives two verbs, `run` and `loop`; the pipeline knows no more than that.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kandinsky22.arrays import Array
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component
from kandinsky22.errors import BackendError

log = logging.getLogger(__name__)

OnStep = Callable[[int, Mapping[str, Array]], "Mapping[str, Array] | None"]
"""Called once a step, in order, with its index and the state after it; may return arrays that replace parts of it.

Outputs of the step that are no state are beside it, by their own names, and cannot be replaced.

The arrays are the callee's: changing them in place has no defined effect. A GPU calls it while the next step runs, so
that looking costs it nothing; where the state is replaced, it computes that step again, so the result is as if it had
waited. What it raises ends the loop and reaches the caller.
"""

EXPORTED = ""
"""The weights of a component that its bundle was exported with. Other sets are named by whoever adds them."""

GPU_ALONE = "the bundle is in fp8, which runs on a GPU alone; export it with --precision int8 for a processor"
"""Why what runs on the processor cannot run a bundle in fp8."""

PerStep = Mapping[str, "Sequence[Array] | Array"]
"""Inputs that change with the step: each has one array, or one row of an array, a step."""


class LoadedComponent(Protocol):
    """A graph that is ready to run. Several threads may run one; they may have to wait for each other.

    One that compiles when it runs has the seconds that went into that so far as `compile_seconds`.
    """

    @property
    def component(self) -> Component:
        """What the manifest says of the graph."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: arrays by input name in, arrays by output name out."""

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
        relay: Relay | None = None,
    ) -> dict[str, Array]:
        """Run a step graph once for each row of `per_step`, feeding its state back; the last state.

        With a `relay`, other step graphs take some of the steps; each is fed those of all inputs that it has.
        """

    def close(self) -> None:
        """Free what it holds, once what runs has ended. It cannot run afterwards: that raises BackendError."""


@dataclass(frozen=True)
class Leg:
    """Who takes a step of a loop, and what of it is kept: `graph` is 0 for the component whose loop it is, or n for
    the n-th of `Relay.others`.

    `keeps` has parts of the state that are no graph's own, such as what a network gave, and for each the output of
    this step that is in it from now on. It is for later steps: an input of another graph than this step's.
    """

    graph: int = 0
    keeps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Relay:
    """A loop over several step graphs: the others beside the component whose loop it is, and who takes each step.

    They have one state: what one graph's step leaves, the next graph's begins from. All are of one backend.
    """

    others: tuple[LoadedComponent, ...]
    legs: tuple[Leg, ...]


@dataclass(frozen=True)
class Settings:
    """How to run: `precision` is one of `PRECISIONS`; `threads` None leaves the choice to the backend.

    With `low_memory` a component keeps no more than what runs; what it drops, it makes again.
    """

    precision: str = "auto"
    threads: int | None = None
    low_memory: bool = False


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here, in which precision "auto" would run, and why.

    `precision` is "fp32", "bf16" or "int8", or "bundle" where the graphs are run in the precision that they were
    exported in.
    """

    name: str
    usable: bool
    reason: str
    version: str = ""
    precision: str = ""
    gpu: bool = False


class Backend(Protocol):
    """What a module of this package offers as `BACKEND`."""

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """Whether it is installed and can run on this machine, and has what it needs of `bundle`. Never raises."""

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """Load a component of a bundle, from files that were verified, with a set of weights.

        Raises BundleError where the bundle has no such component or its file was altered, BackendError where the
        library refuses it, or the backend has no such weights.
        """


PREFERENCE = ("tensorrt", "openvino", "onnxruntime")
"""Order of "auto": the fastest first; but whatever runs on a GPU here goes before what does not."""


def get(name: str, bundle: Bundle | None = None) -> Backend:
    """The backend called `name`, or for "auto" the fastest that can run here and has what it needs of `bundle`.

    Raises BackendError where the name is unknown, or nothing that was asked for can run here.
    """
    if name == "auto":
        return _fastest(bundle)
    if name not in PREFERENCE:
        raise BackendError(f"There is no backend {name!r}; choose one of auto, {', '.join(PREFERENCE)}.")
    backend = _module(name)
    availability = backend.availability(bundle)
    if not availability.usable:
        raise BackendError(f"The backend {name} cannot run here: {availability.reason}.")
    return backend


def refuse_other_weights(backend: str, name: str, weights: str) -> None:
    """For a backend that runs a component with its exported weights alone: raise BackendError for any others."""
    if weights != EXPORTED:
        raise BackendError(
            f"The backend {backend} runs {name} with the weights that were exported, not with {weights!r}; export a "
            "bundle from the checkpoint that has them."
        )


def closed(name: str) -> BackendError:
    """What running a component raises that was closed."""
    return BackendError(f"The component {name} was closed and cannot run; load it again.")


def survey(bundle: Bundle | None = None) -> list[Availability]:
    """The availability of every backend, in the order in which "auto" tries them."""
    found = [_module(name).availability(bundle) for name in PREFERENCE]
    return sorted(found, key=lambda availability: not (availability.usable and availability.gpu))


def _fastest(bundle: Bundle | None) -> Backend:
    found = survey(bundle)
    for availability in found:
        if availability.usable:
            return _module(availability.name)
        log.info("backend %s cannot run here: %s", availability.name, availability.reason)
    reasons = "; ".join(f"{availability.name}: {availability.reason}" for availability in found)
    raise BackendError(f"No backend can run here ({reasons}); install one: pip install kandinsky22[cpu].")


def _module(name: str) -> Backend:
    backend: Backend = importlib.import_module(f"kandinsky22.backends.{name}").BACKEND
    return backend
