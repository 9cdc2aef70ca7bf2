"""The components of a bundle on one backend: loaded when first used, freed after use where memory is short."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from kandinsky22.backends import Availability, Backend, LoadedComponent, Settings
from kandinsky22.bundle.bundle import Bundle


class Components:
    """Loaded components by name.

    With `low_memory` a component is freed as soon as its stage ends, so that the largest one alone must fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        settings: Settings,
        *,
        low_memory: bool,
        memory_limit: float | None = None,
    ) -> None:
        """`memory_limit` in bytes is for whoever plans a run, see `kandinsky22.memory`."""
        self.bundle = bundle
        self.low_memory = low_memory
        self.memory_limit = memory_limit
        self._backend = backend
        self._settings = settings
        self._loaded: dict[str, LoadedComponent] = {}
        self.timings: dict[str, float] = {}

    @contextmanager
    def use(self, name: str) -> Iterator[LoadedComponent]:
        """The component `name`, ready to run; adds the seconds of the block to `timings[name]`, of loading to "load".

        What a component compiles when it first runs is loading, too.
        Raises BundleError where the bundle has no such component or its file was altered, BackendError where the
        backend cannot load it.
        """
        if name not in self._loaded:
            with self._timed("load"):
                self._loaded[name] = self._backend.load(self.bundle, name, self._settings)
        component = self._loaded[name]
        compiled = _compile_seconds(component)
        try:
            with self._timed(name):
                yield component
        finally:
            late = _compile_seconds(component) - compiled
            if late:
                self.timings[name] -= late
                self.timings["load"] = self.timings.get("load", 0.0) + late
            if self.low_memory:
                self._loaded.pop(name).close()

    @property
    def precision(self) -> str:
        """What graphs are computed in: "fp32" or "bf16", or "bundle" where a GPU takes what was exported."""
        return self._settings.precision if self._settings.precision != "auto" else self._availability.precision

    @property
    def backend_name(self) -> str:
        """The backend's name, or "" where it runs on a GPU."""
        return "" if self._availability.gpu else self._availability.name

    @functools.cached_property
    def _availability(self) -> Availability:
        return self._backend.availability(self.bundle)

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the components that are in memory."""
        return frozenset(self._loaded)

    def free_all_but(self, names: Collection[str]) -> None:
        """Free every component but these; it is loaded again when it is used again."""
        for name in self.loaded.difference(names):
            self._loaded.pop(name).close()

    def close(self) -> None:
        """Free every component."""
        self.free_all_but(())

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start


def _compile_seconds(component: LoadedComponent) -> float:
    return float(getattr(component, "compile_seconds", 0.0))
