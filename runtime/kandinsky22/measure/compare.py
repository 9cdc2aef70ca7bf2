"""The same prompts and seeds through two bundles, or through two settings of one: how alike the pictures are.

Where nobody has reference pictures, the first side is the reference. Its pictures are all made, then those of the
second side, so that one bundle is in memory at a time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import PIL.Image

from kandinsky22.bundle.manifest import Role
from kandinsky22.callbacks import Callbacks
from kandinsky22.errors import BundleError, InputError, MemoryLimitError
from kandinsky22.measure import likeness
from kandinsky22.memory import Demand
from kandinsky22.pipeline import Pipeline
from kandinsky22.request.job import Job
from kandinsky22.request.request import Request

Which = Literal[0, 1]
"""The first side or the second."""
SIDES: tuple[Which, Which] = (0, 1)


@dataclass(frozen=True)
class Side:
    """One of the two: a pipeline, and what it is asked for beside the prompt and the seed of each case."""

    pipe: Pipeline
    request: Request

    def asked(self, case: Case) -> Request:
        """What makes one case's picture. Raises InputError where it cannot be asked for."""
        one = {"num_images_per_prompt": 1, "batch_size": 1, "output_type": "pil"}
        return self.request.with_(prompt=case.prompt, seed=case.seed, **one)

    def job(self, case: Case) -> Job:
        """The same, resolved. Raises as `Pipeline.resolve` does."""
        return self.pipe.resolve(self.asked(case))

    def size(self, case: Case) -> tuple[int, int]:
        """Width and height of its pictures. Raises as `Pipeline.resolve` does."""
        sampling = self.job(case).sampling
        assert sampling is not None  # tasks that make none have no `output_type`, and are refused for it
        _, height, width = sampling.shape
        return width * self.pipe.bundle.manifest.downscale, height * self.pipe.bundle.manifest.downscale


@dataclass(frozen=True)
class Case:
    """What both sides make a picture of."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Pair:
    """Two pictures of one case: `psnr` in dB is infinite where they are equal, `cosine` None where it is not known.

    `seconds` of each side are without loading, compiling, and waiting for other threads.
    """

    case: Case
    psnr: float
    ssim: float
    cosine: float | None
    seconds: tuple[float, float]

    @property
    def identical(self) -> bool:
        """Whether all pixels are equal."""
        return self.psnr == math.inf


@dataclass(frozen=True)
class Statistics:
    """Of a measure over some pairs; `worst` is the smallest likeness, or the longest time."""

    mean: float
    median: float
    worst: float


@dataclass(frozen=True)
class Comparison:
    """All pairs in the order of the cases, and the seconds that each side was loaded and compiled for.

    `without_cosine` says in a sentence why there are no cosines, "" where there are.
    """

    pairs: tuple[Pair, ...]
    load_seconds: tuple[float, float]
    without_cosine: str = ""

    @property
    def identical(self) -> int:
        """How many pairs are equal in all pixels."""
        return sum(pair.identical for pair in self.pairs)

    def psnr(self) -> Statistics | None:
        """Of the pairs that differ: equal ones have no number. None where all are equal."""
        found = [pair.psnr for pair in self.pairs if not pair.identical]
        return _statistics(found, min) if found else None

    def ssim(self) -> Statistics:
        """Of all pairs."""
        return _statistics([pair.ssim for pair in self.pairs], min)

    def cosine(self) -> Statistics | None:
        """Of all pairs; None where it is not known."""
        found = [pair.cosine for pair in self.pairs if pair.cosine is not None]
        return _statistics(found, min) if found else None

    def seconds(self, side: Which) -> Statistics:
        """Of all pictures of a side."""
        return _statistics([pair.seconds[side] for pair in self.pairs], max)


class Shelf(Protocol):
    """Where pictures are kept, by their side and the place of their case: more than memory may hold."""

    def keep(self, side: Which, place: int, picture: PIL.Image.Image) -> None:
        """Keep a picture."""

    def picture(self, side: Which, place: int) -> PIL.Image.Image:
        """The picture that was kept, pixel by pixel."""


class InMemory:
    """A shelf for few pictures."""

    def __init__(self) -> None:
        self._pictures: dict[tuple[Which, int], PIL.Image.Image] = {}

    def keep(self, side: Which, place: int, picture: PIL.Image.Image) -> None:
        """Keep a picture."""
        self._pictures[side, place] = picture

    def picture(self, side: Which, place: int) -> PIL.Image.Image:
        """The picture that was kept."""
        return self._pictures[side, place]


def compare(
    first: Side,
    second: Side,
    cases: Sequence[Case],
    shelf: Shelf | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Comparison:
    """Make the pictures of all cases by both sides, one at a time, and measure how alike they are.

    The cosines are those of the embeddings that the first side's image encoder gives both pictures. Where the sides
    have two pipelines, each is closed before the other one loads. Pictures go to `shelf`, where the caller finds them
    afterwards. `on_step` is called after each step of a prior or a decoder; `steps` tells how many there are.

    Raises InputError where there is no case, the sides make pictures of two sizes, or one cannot be asked for; and as
    `Pipeline.resolve` and `Pipeline.pictures` do. What can be known of both sides is known before the first picture.
    """
    shelf = InMemory() if shelf is None else shelf
    check(first, second, cases)
    without_cosine = _try_out(first, second, cases)
    made = []
    for side in SIDES:
        made.append(_paint((first, second)[side], side, cases, shelf, on_step))
        if first.pipe is not second.pipe:
            (first, second)[side].pipe.close()
    cosines = [None] * len(cases) if without_cosine else _cosines(first.pipe, shelf, len(cases))
    pairs = tuple(
        Pair(case, *_likeness(shelf, place), cosines[place], (made[0].seconds[place], made[1].seconds[place]))
        for place, case in enumerate(cases)
    )
    return Comparison(pairs, (made[0].load_seconds, made[1].load_seconds), without_cosine)


def check(first: Side, second: Side, cases: Sequence[Case]) -> None:
    """Raise what `compare` refuses before it loads anything."""
    if not cases:
        raise InputError("There is no prompt to compare pictures of; expected one or more.")
    for side in (first, second):
        for case in cases:
            side.asked(case)
    sizes = [side.size(cases[0]) for side in (first, second)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "The first makes pictures of {}x{} and the second of {}x{}, which cannot be compared; ask both for one "
            "size.".format(*sizes[0], *sizes[1])
        )


def steps(first: Side, second: Side, cases: Sequence[Case]) -> int:
    """How often `compare` calls `on_step`. Raises as `check` does."""
    return len(cases) * sum(side.job(cases[0]).steps for side in (first, second))


@dataclass(frozen=True)
class _Made:
    """Seconds of a side: of each picture, and of loading."""

    seconds: list[float]
    load_seconds: float


def _paint(side: Side, which: Which, cases: Sequence[Case], shelf: Shelf, on_step: Callable[[], object]) -> _Made:
    """Make a side's pictures, one at a time."""

    def advance(*_: object) -> None:
        on_step()

    seconds, load = [], 0.0
    for place, case in enumerate(cases):
        output = side.pipe.pictures(side.job(case), Callbacks(side.pipe, advance, advance))
        assert isinstance(output.images, list)  # as `Side.job` asks
        shelf.keep(which, place, output.images[0])
        timings = output.timings
        load += timings.get("load", 0.0)
        seconds.append(timings["total"] - timings.get("load", 0.0) - timings.get("wait", 0.0))
    return _Made(seconds, load)


def _try_out(first: Side, second: Side, cases: Sequence[Case]) -> str:
    """Load the least of both sides; why there will be no cosines, "" where there will. Hours may depend on it."""
    for side in (first, second):
        side.pipe.try_out(side.job(cases[0]).demand)
        side.pipe.close()
    try:
        first.pipe.try_out(Demand((first.pipe.bundle.manifest.name_of(Role.IMAGE_ENCODER),)))
    except MemoryLimitError as error:
        return str(error)
    except BundleError as error:
        if Role.IMAGE_ENCODER in first.pipe.bundle.manifest.roles():
            raise
        return str(error)
    finally:
        first.pipe.close()
    return ""


def _cosines(pipe: Pipeline, shelf: Shelf, count: int) -> list[float]:
    """The cosine of the image encoder's embeddings of each pair."""
    pictures: Iterator[PIL.Image.Image] = (shelf.picture(side, place) for place in range(count) for side in SIDES)
    embeds = pipe.image_embeds(pictures)
    return [likeness.cosine(*embeds[2 * place : 2 * place + 2]) for place in range(count)]


def _likeness(shelf: Shelf, place: int) -> tuple[float, float]:
    """PSNR and SSIM of a pair."""
    first, second = (np.asarray(shelf.picture(side, place).convert("RGB")) for side in SIDES)
    return likeness.psnr(first, second), likeness.ssim(first, second)


def _statistics(values: Sequence[float], worst: Callable[[Sequence[float]], float]) -> Statistics:
    return Statistics(statistics.fmean(values), statistics.median(values), worst(values))
