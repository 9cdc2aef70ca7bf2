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
import tokenizers

from kandinsky22 import schedulers
from kandinsky22.arrays import Array
from kandinsky22.backends import Backend, LoadedComponent, Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.bundle import STEP_SCHEDULERS, Bundle, Component, TensorSpec
from kandinsky22.errors import BackendError, InputError
from kandinsky22.plan_builder import Range
from kandinsky22.plan_records import Profile, default_profile, downscale
from kandinsky22.prior import guidance_weights

PLACES = ("min", "opt", "max")
"""The shapes that are compared: the corners of a profile and what it is tuned for."""

STEPS = {"prior": 25, "decoder": 50, "controlnet": 50, "inpaint": 50}
"""The steps of the run whose middle one is compared, by the scheduler's name in the manifest."""

PICTURES = ("image", "hint")
"""Inputs that are pictures: numbers from 0 to 1."""

GUIDANCE = 4.0


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
    # 8 bits a number. Measured on the full UNet without guidance: 1.6e-2.
    "bf16": Bounds(8e-2, 3e-1),
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


def table(checks: Sequence[Check]) -> str:
    """Checks as text, a line each."""
    rows = [("component", "at", "output", "precision", "error", "allowed", "largest", "allowed", "")]
    rows += [
        (
            check.component,
            check.place,
            check.output,
            check.precision,
            f"{check.typical:.1e}",
            f"{check.bounds.typical:.0e}",
            f"{check.largest:.1e}",
            f"{check.bounds.largest:.0e}",
            "ok" if check.good else "WRONG",
        )
        for check in checks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def feeds(bundle: Bundle, name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Inputs of a component like those of a real run, the same for the same seed."""
    draw = np.random.default_rng(seed)
    given = _step_feeds(bundle, name, shapes) if name in STEP_SCHEDULERS else {}
    return {
        spec.name: given.get(spec.name, _random(bundle, spec, shapes[spec.name], draw))
        for spec in bundle.component(name).inputs
    }


def _step_feeds(bundle: Bundle, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """What a scheduler and guidance give, in the middle of a run."""
    scheduler = STEP_SCHEDULERS[name]
    table = schedulers.table(bundle.manifest.schedulers[scheduler], STEPS[scheduler])
    middle = STEPS[scheduler] // 2
    ranks, rank_weight = table.limits.ranks(int(np.prod(shapes["latents"][1:])))
    return {
        "timestep": table.timesteps[middle : middle + 1].astype(np.float32),
        "row": table.rows[middle],
        "limits": table.limits.array,
        "ranks": ranks,
        "rank_weight": rank_weight,
        "guidance": guidance_weights(GUIDANCE if shapes["guidance"] == (2,) else 1.0),
        "known_scales": np.array([0.8, 0.6], np.float32),  # signal and noise, of which the squares make 1
    }


def _random(bundle: Bundle, spec: TensorSpec, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    """Gaussian numbers; pictures of noise; a mask of pixels, 0 or 1; tokens that end with the vocabulary's last, the
    end token in CLIP; a mask of as many words."""
    if spec.name in PICTURES:
        return draw.random(shape, np.float32)
    if spec.name == "mask":
        return draw.integers(0, 2, shape).astype(np.float32)
    if spec.dtype == "float32":
        return draw.standard_normal(shape).astype(np.float32)
    words = np.arange(shape[-1]) < draw.integers(1, shape[-1], (*shape[:-1], 1))
    if spec.dtype == "bool":
        return words
    last = tokenizers.Tokenizer.from_file(str(bundle.tokenizer())).get_vocab_size() - 1
    return np.where(words, draw.integers(0, last, shape), last)


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
        return ranges, {place: loaded.run(feeds(bundle, name, _shapes(ranges, place), seed)) for place in places}
    finally:
        loaded.close()


def _ranges(bundle: Bundle, component: Component, loaded: LoadedComponent, profile: Profile) -> Mapping[str, Range]:
    """Those of the plan, where there is one."""
    built: Mapping[str, Range] | None = getattr(loaded, "ranges", None)
    return built or {spec.name: profile.shapes(spec, component, downscale(bundle)) for spec in component.inputs}


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
