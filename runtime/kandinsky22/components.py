"""Loaded components by name and weights: one runs at a time, and each call has timings of its own.

A pipeline may be shared by threads. Calls take turns, component by component: every backend uses the whole machine, so
two at once would gain nothing and need the memory of both. A step callback keeps the turn that its loop has: it may run
other components, and not the one that it is called from.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from kandinsky22 import memory
from kandinsky22.backends import EXPORTED, Availability, Backend, LoadedComponent, Settings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import BackendError
from kandinsky22.memory import Demand

log = logging.getLogger(__name__)


SHORTEST_WAIT = 1e-3
"""Seconds: shorter waits for a turn are none, but the time that it takes to look."""


class Key(NamedTuple):
    """What is loaded: a component over a set of weights."""

    name: str
    weights: str = EXPORTED


class Components:
    """The components of a bundle on one backend: loaded when first used, freed after use with `low_memory`."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        settings: Settings,
        *,
        low_memory: bool,
        memory_limit: float | None = None,
    ) -> None:
        """`memory_limit` is in bytes, for `require_memory`; None checks nothing."""
        self.bundle = bundle
        self.low_memory = low_memory
        self.memory_limit = memory_limit
        self._backend = backend
        self._settings = settings
        self._loaded: dict[Key, LoadedComponent] = {}
        self._running: set[Key] = set()
        self._turn = threading.RLock()
        """Held by the thread that runs a component, and again where its callback runs another."""

    def run(self) -> Run:
        """What one call uses the components through."""
        return Run(self)

    @property
    def precision(self) -> str:
        """What graphs are computed in: "fp32" or "bf16", or "bundle" where a GPU takes what was exported."""
        return self._settings.precision if self._settings.precision != "auto" else self.availability.precision

    @functools.cached_property
    def availability(self) -> Availability:
        """The backend as it was found at the first use."""
        return self._backend.availability(self.bundle)

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the components that are in memory."""
        return frozenset(key.name for key in self._loaded)

    def require_memory(self, demand: Demand) -> None:
        """Raise MemoryLimitError where a job takes more memory than the limit, by the estimate of `memory`.

        Components that earlier jobs have left in memory are freed where this one would not fit beside them.
        """
        name = "" if self.availability.gpu else self.availability.name
        cost = memory.COSTS.get((name, self.precision))
        if self.memory_limit is None or cost is None:
            return
        manifest = self.bundle.manifest
        kept = () if self.low_memory else demand.components
        with self._turn:
            beside = memory.estimate(manifest, demand, cost, {*kept, *self.loaded})
            if beside > self.memory_limit:
                self._free_all_but(kept)
                beside = memory.check(manifest, demand, cost, self.memory_limit, low_memory=self.low_memory)
        log.info("memory: about %.1f GiB of %.1f", beside / memory.GIB, self.memory_limit / memory.GIB)

    def close(self) -> None:
        """Free every component, once no other thread runs one. Raises BackendError in a step callback."""
        with self._turn:
            if self._running:
                raise BackendError(
                    f"{next(iter(self._running)).name} is in a loop: its step callback cannot close the pipeline; "
                    "raise kandinsky22.Cancelled to end the loop."
                )
            self._free_all_but(())

    def _free_all_but(self, names: Collection[str]) -> None:
        for key in [key for key in self._loaded if key.name not in names and key not in self._running]:
            self._free(key)

    def _free(self, key: Key) -> None:
        self._loaded.pop(key).close()
        log.debug("freed %s", key.name)

    def _load(self, key: Key) -> None:
        started = time.perf_counter()
        self._loaded[key] = self._backend.load(self.bundle, key.name, self._settings, key.weights)
        log.info("loaded %s in %.2f s", key.name, time.perf_counter() - started)


class Run:
    """One call's use of the components, and its `timings`: seconds by component.

    "load" are the seconds of loading, and of what a component compiles when it first runs; "wait" those in which other
    threads had their turn.
    """

    def __init__(self, components: Components) -> None:
        self.bundle = components.bundle
        self.timings: dict[str, float] = {}
        self._components = components

    @contextmanager
    def use(self, name: str, weights: str = EXPORTED) -> Iterator[LoadedComponent]:
        """The component `name`, ready to run, for as long as the block lasts.

        Raises BundleError where the bundle has no such component or its file was altered, BackendError where the
        backend cannot load it, or where a step callback asks for the component whose loop called it.
        """
        key, owner = Key(name, weights), self._components
        waited = time.perf_counter()
        with owner._turn:
            self._add("wait", time.perf_counter() - waited, least=SHORTEST_WAIT)
            if key in owner._running:
                raise BackendError(f"{name} is in a loop: its step callback cannot run it; open a second Pipeline.")
            if key not in owner._loaded:
                with self._timed("load"):
                    owner._load(key)
            component = owner._loaded[key]
            owner._running.add(key)
            compiled = _compile_seconds(component)
            try:
                with self._timed(name):
                    yield component
            finally:
                owner._running.discard(key)
                late = _compile_seconds(component) - compiled
                self._add(name, -late)
                self._add("load", late)
                if owner.low_memory:
                    owner._free(key)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - start)

    def _add(self, name: str, seconds: float, least: float = 0) -> None:
        """Add to a timing; what is shorter than `least` seconds is left out."""
        if seconds and abs(seconds) >= least:
            self.timings[name] = self.timings.get(name, 0.0) + seconds


def _compile_seconds(component: LoadedComponent) -> float:
    return float(getattr(component, "compile_seconds", 0.0))
