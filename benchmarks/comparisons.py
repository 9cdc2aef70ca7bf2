"""What the latency report measures: which subjects take turns at which component and size, and whole pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kandinsky22 import backends
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Role
from kandinsky22.measure import timing
from kandinsky22.measure.timing import Size

PEERS: dict[str, dict[str, Any]] = {
    "diffusers fp32": {"kind": "diffusers", "precision": "fp32"},
    "diffusers fp32 compiled": {"kind": "diffusers", "precision": "fp32", "channels_last": True, "compile": True},
    "diffusers bf16": {"kind": "diffusers", "precision": "bf16", "channels_last": True},
    "diffusers bf16 compiled": {"kind": "diffusers", "precision": "bf16", "channels_last": True, "compile": True},
    "diffusers fp16": {"kind": "diffusers", "precision": "fp16", "channels_last": True, "device": "cuda"},
    "diffusers fp16 compiled": {
        "kind": "diffusers",
        "precision": "fp16",
        "channels_last": True,
        "device": "cuda",
        "compile": True,
    },
}
ROLES = (Role.DECODER, Role.MOVQ_DECODER, Role.PRIOR, Role.TEXT_ENCODER)
"""In the order in which they are measured: the most important first."""
LARGE = (1024, 1024)
Sides = tuple[int, int]
"""Width and height of a picture."""


@dataclass(frozen=True)
class Comparison:
    """Subjects that are measured in turns at one size of one component."""

    component: str
    size: Size
    subjects: tuple[str, ...]
    repeat: int

    @property
    def key(self) -> str:
        """What its results are kept under."""
        size = f"{self.size}" + ("" if self.size.guided else ", not guided")
        return f"{self.component}, {size}: {', '.join(self.subjects)}; {self.repeat} turns"


def comparisons(options: argparse.Namespace, bundle: Bundle) -> Iterator[Comparison]:
    """All that is to be measured, component by component.

    Raises InputError for sizes that cannot be, BundleError where the bundle lacks a component.
    """
    timing.sizes(bundle, [*options.sizes, *options.growth, *options.pictures], [1])
    for role in ROLES:
        name = bundle.manifest.name_of(role)
        yield from _beside_peers(options, bundle, name)
        if options.fp32_bundle and role is Role.MOVQ_DECODER and LARGE in options.sizes:
            yield Comparison(name, size_of(LARGE), ("ours onnxruntime",), 1)
        if timing.depends_on_size(bundle, name):
            yield from _growing(options, name)


def _beside_peers(options: argparse.Namespace, bundle: Bundle, component: str) -> Iterator[Comparison]:
    ours = tuple(f"ours {backend}" for backend in options.backends)
    first = size_of(min(options.sizes, key=pixels))
    sizes = map(size_of, options.sizes) if timing.depends_on_size(bundle, component) else [first]
    for size in sizes:
        yield Comparison(component, size, (*ours, *options.peers), options.repeat)
    # Subjects that do not fit beside the others, each against the first of ours.
    for subject in (*options.slow_peers, *(["ours onnxruntime"] if options.fp32_bundle else [])):
        yield Comparison(component, first, (ours[0], subject), _few(options))


def _growing(options: argparse.Namespace, component: str) -> Iterator[Comparison]:
    ours = (f"ours {options.backends[0]}",)
    for sides in options.growth:
        yield Comparison(component, size_of(sides), ours, _few(options))
    smallest = min([*options.sizes, *options.growth], key=pixels)
    for batch in options.batches:
        yield Comparison(component, size_of(smallest, batch), ours, _few(options))


def _few(options: argparse.Namespace) -> int:
    return max(int(options.repeat) // 2, 1)


def pixels(sides: Sides) -> int:
    """Pixels of a picture."""
    return sides[0] * sides[1]


def size_of(sides: Sides, batch: int = 1) -> Size:
    """The size of so many pictures."""
    return Size(height=sides[1], width=sides[0], batch=batch)


def subject_spec(options: argparse.Namespace, bundle: Bundle, component: str, subject: str) -> dict[str, Any]:
    """What the process of a subject is told (see subjects.py)."""
    if subject.startswith("ours "):
        backend, _, precision = subject.removeprefix("ours ").partition(" ")
        if precision:  # of a bundle of its own
            quantised = {"bundle": str(options.int8_bundle), "precision": precision}
            return {"kind": "ours", "stage": component, "backend": backend, **quantised}
        wide = backend == "onnxruntime" and options.fp32_bundle
        return {"kind": "ours", "stage": component, "backend": backend, "bundle": str(wide or options.bundle)}
    role = bundle.component(component).role
    return {**PEERS[subject], "stage": component, "role": str(role), "checkpoint": options.checkpoint}


def devices(options: argparse.Namespace, bundle: Bundle) -> list[str]:
    """Where subjects run, "cpu" or "cuda": the limits are measured there. Raises BackendError where one cannot run."""
    names = {*options.backends, *(["onnxruntime"] if options.fp32_bundle else [])}
    ours = {"cuda" if backends.get(name, bundle).availability(bundle).gpu else "cpu" for name in names}
    return sorted(ours | {PEERS[peer].get("device", "cpu") for peer in (*options.peers, *options.slow_peers)})


def pictures(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Settings of whole pictures: all components kept in memory where two are made, one at a time for the large."""
    smallest = min(map(pixels, options.pictures), default=0)
    return [
        {
            "bundle": str(options.bundle),
            "backend": options.backends[0],
            "height": sides[1],
            "width": sides[0],
            "steps": steps,
            "prior_steps": 25,
            "scheduler": "dpm++",
            "low_memory": low,
            "pictures": 1 if low else 2,
        }
        for sides in options.pictures
        for steps in options.steps
        for low in ([True] if pixels(sides) > smallest else [False, True])
    ]
