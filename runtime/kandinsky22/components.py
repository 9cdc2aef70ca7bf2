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
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from kandinsky22 import memory
from kandinsky22.arrays import Floats
from kandinsky22.backends import EXPORTED, Availability, Backend, LoadedComponent, Settings
from kandinsky22.bundle.bundle import Bundle, FilesInUse
from kandinsky22.errors import BackendError, BundleError
from kandinsky22.memory import Demand

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """What is loaded: a component over a set of weights."""

    name: str
    weights: str = EXPORTED


class Loaded(NamedTuple):
    """A loaded component, and the files that it may have mapped into memory."""

    component: LoadedComponent
    files: FilesInUse


class Components:
    """The components of a bundle on one backend: loaded when first used, freed after use with low memory."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        settings: Settings,
        *,
        memory_limit: float | None = None,
    ) -> None:
        """`memory_limit` is in bytes, for `Run.require_memory`; None checks nothing."""
        self.bundle = bundle
        self.low_memory = settings.low_memory
        self.memory_limit = memory_limit
        self._backend = backend
        self._settings = settings
        self._loaded: dict[Key, Loaded] = {}
        self._running: set[Key] = set()
        self.loads = 0
        """How often a component was loaded."""
        self.turn = threading.RLock()
        """Held by the thread that runs a component, and again where its callback runs another."""

    def run(self) -> Run:
        """What one call uses the components through."""
        return Run(self)

    @property
    def precision(self) -> str:
        """What graphs are computed in: "fp32", "bf16" or "int8", or "bundle" where a GPU takes what was exported."""
        return self._settings.precision if self._settings.precision != "auto" else self.availability.precision

    @functools.cached_property
    def availability(self) -> Availability:
        """The backend as it was found at the first use."""
        return self._backend.availability(self.bundle)

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the components that are in memory."""
        return frozenset(key.name for key in self._loaded)

    def component(self, key: Key) -> LoadedComponent:
        """A component, loaded where it is not, or its files were written to since; for the thread whose turn it is."""
        if key in self._loaded and (altered := self._loaded[key].files.altered()) is not None:
            log.info("%s is loaded again: %s was written to", key.name, altered)
            self._free(key)
        if key not in self._loaded:
            self.loads += 1
            component = self._backend.load(self.bundle, key.name, self._settings, key.weights)
            try:
                self._loaded[key] = Loaded(component, self.bundle.held(key.name))
            except BaseException:
                component.close()
                raise
        return self._loaded[key].component

    def require_intact(self, key: Key) -> None:
        """Raise BundleError where a component's files were written to while it ran: it may have computed with that."""
        if (altered := self._loaded[key].files.altered()) is not None:
            raise BundleError(
                f"{altered} was written to while {key.name} ran, and what that gave is not used; wait until nobody "
                "writes to the bundle, and try again."
            )

    @contextmanager
    def running(self, key: Key) -> Iterator[None]:
        """A component is running for as long as the block lasts; with low memory it is freed at the end.

        Raises BackendError where it is running already: in the loop whose callback this is.
        """
        if key in self._running:
            raise BackendError(f"{key.name} is in a loop: its step callback cannot run it; open a second Pipeline.")
        self._running.add(key)
        try:
            yield
        finally:
            self._running.discard(key)
            if self.low_memory and key in self._loaded:
                self._free(key)

    def free_all_but(self, names: Collection[str]) -> None:
        """Free every component but these, and those that are running; for the thread whose turn it is."""
        for key in [key for key in self._loaded if key.name not in names and key not in self._running]:
            self._free(key)

    def close(self) -> None:
        """Free every component, once no other thread runs one. Raises BackendError in a step callback."""
        with self.turn:
            if self._running:
                raise BackendError(
                    f"{next(iter(self._running)).name} is in a loop: its step callback cannot close the pipeline; "
                    "raise kandinsky22.Cancelled to end the loop."
                )
            self.free_all_but(())

    def _free(self, key: Key) -> None:
        component, files = self._loaded.pop(key)
        files.close()
        component.close()
        log.debug("freed %s", key.name)


class Run:
    """One call's use of the components, and its `timings`: seconds by component.

    "load" are the seconds of loading, and of what a component compiles when it first runs; "wait" those in which other
    threads had their turn.
    """

    def __init__(self, components: Components) -> None:
        self.bundle = components.bundle
        self.timings: dict[str, float] = {}
        self._components = components

    def require_memory(self, demand: Demand) -> None:
        """Raise MemoryLimitError where a job takes more memory than the limit, by the estimate of `memory`.

        Components that earlier jobs have left in memory are freed where this one would not fit beside them.
        """
        owner = self._components
        name = "" if owner.availability.gpu else owner.availability.name
        cost, limit = memory.COSTS.get((name, owner.precision)), owner.memory_limit
        if limit is None or cost is None:
            return
        manifest = self.bundle.manifest
        kept = () if owner.low_memory else demand.components
        estimate = memory.estimate(manifest, demand, cost, {*kept, *owner.loaded})
        if estimate > limit:
            with self._turn():
                owner.free_all_but(kept)
            estimate = memory.check(manifest, demand, cost, limit, low_memory=owner.low_memory)
        log.info("memory: about %.1f GiB of %.1f", estimate / memory.GIB, limit / memory.GIB)

    @contextmanager
    def use(self, name: str, weights: str = EXPORTED) -> Iterator[LoadedComponent]:
        """The component `name`, ready to run, for as long as the block lasts.

        Raises BundleError where the bundle has no such component or its file was altered, before the block or while it
        lasted; BackendError where the backend cannot load it, or where a step callback asks for the component whose
        loop called it.
        """
        with self.use_together(Key(name, weights)) as (component,):
            yield component

    @contextmanager
    def use_together(self, *keys: Key) -> Iterator[tuple[LoadedComponent, ...]]:
        """Components of one loop, as `use` gives one. The seconds of all are the first one's."""
        with self._turn(), ExitStack() as running:
            for key in keys:
                running.enter_context(self._components.running(key))
            components = self._loaded(keys)
            compiled = sum(map(_compile_seconds, components))
            try:
                with self._timed(keys[0].name):
                    yield components
                self._require_intact(keys)
            except BackendError:
                self._require_intact(keys)  # the better reason for numbers that are not finite
                raise
            finally:
                late = sum(map(_compile_seconds, components)) - compiled
                self._add(keys[0].name, -late)
                self._add("load", late)

    def _loaded(self, keys: Sequence[Key]) -> tuple[LoadedComponent, ...]:
        """The components; seconds count where one is loaded, and not where all are there already."""
        loads, started = self._components.loads, time.perf_counter()
        try:
            return tuple(self._components.component(key) for key in keys)
        finally:
            if self._components.loads > loads:
                self._add("load", time.perf_counter() - started)

    def _require_intact(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._components.require_intact(key)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The turn of this thread; the seconds until it comes are a "wait"."""
        turn, started = self._components.turn, time.perf_counter()
        at_once = turn.acquire(blocking=False)
        try:
            with turn:
                if not at_once:
                    self._add("wait", time.perf_counter() - started)
                yield
        finally:
            if at_once:
                turn.release()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - start)

    def _add(self, name: str, seconds: float) -> None:
        if seconds:
            self.timings[name] = self.timings.get(name, 0.0) + seconds


def _compile_seconds(component: LoadedComponent) -> float:
    return float(getattr(component, "compile_seconds", 0.0))


def finite(component: str, values: Floats) -> Floats:
    """What a component gave. Raises BackendError where NaN or infinity is among it: that would become a picture."""
    if not np.isfinite(values).all():
        raise BackendError(
            f"{component} gave numbers that are not finite (NaN or infinity), which make no picture; compare the "
            "backend with `kandinsky22 verify`, try precision fp32, or export the bundle again."
        )
    return values
