"""Verification: every component of a bundle on one backend against another, on the same random inputs.

A compiler can be wrong without failing: TensorRT has had several bugs that gave other numbers for graphs like these
(https://github.com/NVIDIA/TensorRT/issues/4854: half-precision convolutions after a concatenation, as in a UNet's
skips; 4756: group normalisation). Nothing but a comparison finds them, so what `kandinsky22 build` made is compared,
on the machine that will use it, with ONNX Runtime on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.backends import Backend, LoadedComponent, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.backends.tensorrt.profile import Profile, Range, default_profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component
from kandinsky22.errors import BackendError, InputError
from kandinsky22.measure import inputs

PLACES = ("min", "opt", "max")
"""The shapes that are compared: the corners of a profile and what it is tuned for."""


@dataclass(frozen=True)
class Bounds:
    """How far two backends may differ: `typical` bounds the relative error of any picture (the norm of the difference
    by the norm), `largest` that of any number (the largest difference by the largest number)."""

    typical: float
    largest: float


BOUNDS = {
    # The same float32 arithmetic in another order. Measured on the full UNet: 1e-6 to 3e-6; the rest is room for depth.
    "fp32": Bounds(1e-4, 1e-3),
    # 11 bits a number. Measured on a small UNet with guidance: 8e-4; it grows with depth, and guidance multiplies what
    # two branches differ by up to seven times. A kernel that is wrong is wrong by tenths.
    "fp16": Bounds(2e-2, 1e-1),
    # 8 bits a number. Measured at the published sizes: 1.6e-2 for a UNet's step without guidance, 7.4e-2 with it.
    "bf16": Bounds(1.5e-1, 3e-1),
}
"""By the coarser of the two precisions that are compared, from fine to coarse."""


@dataclass(frozen=True)
class Check:
    """One output of one component at one place of its profile. An output that is not finite has infinite errors."""

    component: str
    place: str
    shapes: dict[str, tuple[int, ...]]
    output: str
    precision: str
    typical: float
    largest: float

    @property
    def bounds(self) -> Bounds:
        """What is allowed in its precision."""
        return BOUNDS[self.precision]

    @property
    def good(self) -> bool:
        """Whether it is within the bounds."""
        return self.typical <= self.bounds.typical and self.largest <= self.bounds.largest


def verify(
    bundle: Bundle,
    backend: Backend,
    *,
    settings: Settings | None = None,
    reference: Backend = CPU,
    components: Sequence[str] | None = None,
    places: Sequence[str] = PLACES,
    profile: Profile | None = None,
    seed: int = 0,
    on_check: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Compare components (all by default) of `backend` with `reference`, one at a time.

    The shapes are those of the profile that a component's plan was built for; for backends without plans, those of
    `profile`, which is `default_profile` where it is None. The largest can take minutes and gigabytes on a CPU.
    `on_check` is told of every check as soon as it is made.

    Raises InputError for an unknown place, BundleError for components that the bundle lacks, BackendError where one
    of the backends cannot run them.
    """
    for place in places:
        if place not in PLACES:
            raise InputError(f"There is no place {place!r} in a profile; choose of {', '.join(PLACES)}.")
    settings = settings or Settings()
    profile = profile or default_profile(bundle)
    checks = []
    for name in bundle.manifest.components if components is None else components:
        component = bundle.component(name)
        precision = _precision(bundle, component, backend, settings)
        ranges, results = _results(bundle, name, backend, settings, profile, places, seed)
        _, expected = _results(bundle, name, reference, Settings(), profile, places, seed, ranges)
        for place in places:
            for output in results[place]:
                shapes = _shapes(ranges, place)
                errors = relative_errors(results[place][output], expected[place][output])
                checks.append(Check(name, place, shapes, output, precision, *errors))
                if on_check is not None:
                    on_check(checks[-1])
    return checks


def relative_errors(ours: Array, theirs: Array) -> tuple[float, float]:
    """Typical error of the worst row of the first axis, and largest error; see `Bounds`."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf"), float("inf")
    rows = [np.reshape(array, (len(array), -1)).astype(np.float64) for array in (ours, theirs)]
    difference = rows[0] - rows[1]
    tiny = np.finfo(np.float64).tiny
    norms = np.linalg.norm(difference, axis=1) / np.maximum(np.linalg.norm(rows[1], axis=1), tiny)
    return float(norms.max()), float(np.abs(difference).max() / max(np.abs(rows[1]).max(), tiny))


def _results(
    bundle: Bundle,
    name: str,
    backend: Backend,
    settings: Settings,
    profile: Profile,
    places: Sequence[str],
    seed: int,
    ranges: Mapping[str, Range] | None = None,
) -> tuple[Mapping[str, Range], dict[str, dict[str, Array]]]:
    """The ranges of a component's inputs, and its outputs by place; it is freed before the next one is loaded."""
    loaded = backend.load(bundle, name, settings)
    try:
        ranges = ranges or _ranges(bundle, bundle.component(name), loaded, profile)
        feeds = {place: inputs.feeds(bundle, name, _shapes(ranges, place), seed) for place in places}
        return ranges, {place: loaded.run(feeds[place]) for place in places}
    finally:
        loaded.close()


def _ranges(bundle: Bundle, component: Component, loaded: LoadedComponent, profile: Profile) -> Mapping[str, Range]:
    """Those of the plan, where there is one."""
    built: Mapping[str, Range] | None = getattr(loaded, "ranges", None)
    return built or {spec.name: profile.shapes(spec, component, bundle.manifest.downscale) for spec in component.inputs}


def _shapes(ranges: Mapping[str, Range], place: str) -> dict[str, tuple[int, ...]]:
    return {name: values[PLACES.index(place)] for name, values in ranges.items()}


def _precision(bundle: Bundle, component: Component, backend: Backend, settings: Settings) -> str:
    """The coarser of what the graph was exported in and what the backend computes in."""
    computed = settings.precision
    if computed == "auto":
        computed = backend.availability(bundle).precision
    used = {component.precision, component.precision if computed == "bundle" else computed}
    unknown = used - set(BOUNDS)
    if unknown:
        raise BackendError(f"There are no bounds for the precision {', '.join(sorted(unknown))}.")
    return max(used, key=list(BOUNDS).index)
