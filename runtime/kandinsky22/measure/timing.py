"""Latency and memory of a bundle on this machine, stage by stage and as whole pictures.

A stage is timed alone, at given sizes, on inputs like those of a real run; the step graphs in the backend's own loop.
A stage is given what the pipeline would give it, in as many runs: pictures beyond what `PIXELS_AT_ONCE` lets go through
MoVQ one part after the other. A time is that of a warm run: the first run at a size is not counted. docs/benchmarks.md
says how to read the numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kandinsky22 import batching
from kandinsky22.arrays import Array
from kandinsky22.backends import Backend, Settings
from kandinsky22.backends.cuda.gpu import device_memory
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import LATENT_ROLES, Role
from kandinsky22.errors import InputError
from kandinsky22.machine import highest_resident_memory
from kandinsky22.measure import inputs

if TYPE_CHECKING:
    from kandinsky22.pipeline import Pipeline

PROMPT = "a red circle in the middle of a blue background"


@dataclass(frozen=True)
class Size:
    """What is made at once: pixels, pictures, and whether there is guidance (two branches for every picture)."""

    height: int
    width: int
    batch: int = 1
    guided: bool = True

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f" x {self.batch}" if self.batch > 1 else "")

    @property
    def pixels(self) -> int:
        """Of all pictures together."""
        return self.height * self.width * self.batch


@dataclass(frozen=True)
class Timing:
    """Seconds of every warm run of a stage (a step graph: of one step), the highest memory meanwhile, and loading."""

    stage: str
    size: Size
    seconds: tuple[float, ...]
    memory: Memory
    load_seconds: float

    def percentile(self, share: float) -> float:
        """See `percentile`."""
        return percentile(self.seconds, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, 50 for the median: one of the values."""
    return sorted(values)[max(math.ceil(share / 100 * len(values)), 1) - 1]


@dataclass(frozen=True)
class Memory:
    """Bytes: the highest resident memory of this process, and what the GPU has lent out (0 where there is none)."""

    host: int
    device: int


class Stage:
    """One component, loaded on a backend to be timed."""

    def __init__(self, bundle: Bundle, name: str, backend: Backend, settings: Settings, steps: int = 1) -> None:
        """Load it. `steps` of a step graph are one run, of which a step is timed: more than one on a GPU."""
        self._bundle, self.name, self._steps = bundle, name, steps
        self._component = bundle.component(name)
        self._feeds: dict[str, Array] = {}
        self._parts: list[dict[str, Array]] = []
        started = time.perf_counter()
        self._loaded = backend.load(bundle, name, settings)
        self.load_seconds = time.perf_counter() - started

    def prepare(self, size: Size) -> None:
        """Make inputs of a size."""
        self._feeds = inputs.feeds(self._bundle, self.name, shapes(self._bundle, self.name, size), seed=0)
        if not self._component.state:
            runs = _runs(self._component.role, size)
            parts = {name: np.array_split(array, runs) for name, array in self._feeds.items()}
            self._parts = [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]

    def run(self) -> float:
        """Run all that was prepared once; the seconds that it took, of one step for a step graph."""
        started = time.perf_counter()
        component = self._component
        if not component.state:
            for part in self._parts:
                self._loaded.run(part)
            return time.perf_counter() - started
        state = {name: self._feeds[name] for name in component.state}
        per_step = {name: [self._feeds[name]] * self._steps for name in component.per_step}
        constants = {name: array for name, array in self._feeds.items() if name not in {*state, *per_step}}
        self._loaded.loop(state, per_step, constants)
        return (time.perf_counter() - started) / self._steps

    def close(self) -> None:
        """Free the component."""
        self._loaded.close()


def shapes(bundle: Bundle, name: str, size: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's inputs at a size, by name. The text encoder has a text for each branch."""
    component, downscale, branches = bundle.component(name), bundle.manifest.downscale, 2 if size.guided else 1
    values = {
        "B": size.batch * (branches if component.role is Role.TEXT_ENCODER else 1),
        "G": branches,
        "h": size.height // downscale,
        "w": size.width // downscale,
    }
    return {spec.name: spec.resolve(values) for spec in component.inputs}


def _runs(role: Role, size: Size) -> int:
    """In how many runs the pipeline gives a component all pictures.

    The image encoder takes one at a time (`conditioning.image_encoder`); between pixels and latents are at most
    `PIXELS_AT_ONCE`, or one picture (`sampling.movq`).
    """
    if role is Role.IMAGE_ENCODER:
        return size.batch
    return batching.runs(size.batch, size.height * size.width) if role in LATENT_ROLES else 1


def depends_on_size(bundle: Bundle, name: str) -> bool:
    """Whether a component's inputs grow with a picture's pixels."""
    return any(isinstance(each, str) and "h" in each for spec in bundle.component(name).inputs for each in spec.shape)


def time_stage(
    stage: Stage,
    size: Size,
    *,
    repeat: int,
    patience: float = math.inf,
    on_run: Callable[[float], object] = lambda seconds: None,
) -> Timing:
    """Time a stage at a size: one run that does not count, then `repeat` that do, or until `patience` seconds are over.

    `on_run` is told the seconds of each.
    """
    stage.prepare(size)
    seconds: list[float] = []
    with highest_memory() as memory:
        on_run(stage.run())
        while not seconds or (len(seconds) < repeat and sum(seconds) < patience):
            seconds.append(stage.run())
            on_run(seconds[-1])
    return Timing(stage.name, size, tuple(seconds), memory(), stage.load_seconds)


@dataclass(frozen=True)
class Picture:
    """A whole call of the pipeline: seconds in all and by stage, and the highest memory.

    `first` says that it was the first of its pipeline.
    """

    size: Size
    steps: int
    prior_steps: int
    timings: dict[str, float]
    memory: Memory
    first: bool


def time_picture(
    pipe: Pipeline, size: Size, *, steps: int, prior_steps: int, scheduler: str | None = None, first: bool, **more: Any
) -> Picture:
    """Make one call for `size.batch` pictures, and time it. The first one of a pipeline also loads its components.

    `more` are further parameters of the call.
    """
    with highest_memory() as memory:
        output = pipe(
            PROMPT,
            height=size.height,
            width=size.width,
            num_images_per_prompt=size.batch,
            num_inference_steps=steps,
            guidance_scale=4.0 if size.guided else 1.0,
            prior_num_inference_steps=prior_steps,
            scheduler=scheduler,
            seed=0,
            **more,
        )
    return Picture(size, steps, prior_steps, output.timings, memory(), first)


@contextlib.contextmanager
def highest_memory() -> Iterator[Callable[[], Memory]]:
    """Watch the memory of a block; what it gives tells the highest of the block, also after its end."""
    clear = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the highest since the process began is told
        clear.write_text("5")
    yield lambda: Memory(highest_resident_memory(), device_memory())


def sizes(bundle: Bundle, sides: Sequence[tuple[int, int]], batches: Sequence[int]) -> list[Size]:
    """All combinations of sides (width, height) and batches, each once, from the fewest pixels to the most.

    In this order, what a process may keep of a size that it has done with is no more than what the next one takes.
    Raises InputError where a side is no multiple of the latents' unit (64), which the step graphs would refuse.
    """
    unit = bundle.manifest.downscale**2
    largest = bundle.manifest.limits.max_size
    for side in {side for pair in sides for side in pair}:
        if side % unit or not unit <= side <= largest:
            raise InputError(f"The size {side} cannot be timed; expected multiples of {unit} up to {largest}.")
    found = {Size(height, width, batch) for width, height in sides for batch in batches}
    return sorted(found, key=lambda size: (size.pixels, size.batch, size.width))


def sides(text: str) -> tuple[int, int]:
    """ "1024" or "1024x512" as (width, height). Raises InputError for anything else."""
    numbers = text.lower().split("x")
    if not 1 <= len(numbers) <= 2 or not all(number.isdecimal() for number in numbers):
        raise InputError(f"The size is {text!r}; expected pixels such as 1024 or 1024x768.")
    return int(numbers[0]), int(numbers[-1])


def left(seconds: float) -> str:
    """An estimate of what is left, as a progress bar says it."""
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left"


def as_json(timing: Timing | Picture) -> dict[str, Any]:
    """A result as JSON takes it, with percentiles."""
    result: dict[str, Any] = {
        "width": timing.size.width,
        "height": timing.size.height,
        "batch": timing.size.batch,
        "guided": timing.size.guided,
        "peak_host_memory": timing.memory.host,
        "device_memory": timing.memory.device,
    }
    if isinstance(timing, Picture):
        how = {"steps": timing.steps, "prior_steps": timing.prior_steps, "first": timing.first}
        return {**result, **how, "timings": timing.timings}
    percentiles = {f"p{share}": timing.percentile(share) for share in (50, 90, 99)}
    throughput = timing.size.batch / float(np.median(timing.seconds))
    return {
        "stage": timing.stage,
        **result,
        "seconds": timing.seconds,
        **percentiles,
        "pictures_a_second": throughput,
        "load_seconds": timing.load_seconds,
    }


def size_of(result: Mapping[str, Any]) -> Size:
    """The size of a result as `as_json` gives it."""
    return Size(result["height"], result["width"], result["batch"], result["guided"])
