"""`Job`: a request resolved against a bundle. Everything is decided here before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import PIL.Image

from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.memory import Demand
from kandinsky22.request.request import Request
from kandinsky22.request.tasks import Inputs, Shape
from kandinsky22.schedulers.schedule import Schedule


@dataclass(frozen=True)
class GivenEmbeddings:
    """Embeddings that the caller has, one a picture."""

    embeddings: Embeddings

    @property
    def steps(self) -> int:
        """The prior is not run."""
        return 0


@dataclass(frozen=True)
class PriorRun:
    """One run of the prior: text, one a picture, to embeddings.

    `negatives` are one a picture, or None: the prior is then led away from the empty prompt, and the decoder from the
    all-zero image. `noise` (copies, n, E) is the caller's, with two copies where there are negatives. `pictures` to
    begin from are read, or embeddings (m, E) where one stands for n/m pictures; with them, `scales` (2,) say how much
    of them and of noise there is at first.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...] | None
    schedule: Schedule
    guidance_scale: float
    noise: Floats | None = None
    pictures: list[PIL.Image.Image] | Floats | None = None

    @property
    def steps(self) -> int:
        """Steps of the prior's graph for each batch."""
        return len(self.schedule.timesteps)


@dataclass(frozen=True)
class Blend:
    """A weighted sum of embeddings: of prompts, through `PriorRun`s of their own, and of pictures.

    `parts` are in the order in which their noise is drawn. `away` is the run whose `half` the decoder is led away
    from, or the schedule of a run that is not made: the decoder is then led away from the all-zero image, and the
    run's noise is drawn and thrown away, as diffusers throws away what it computes there (`draws_first` says whether
    with the noise that the run begins with).
    """

    parts: tuple[PriorRun | PIL.Image.Image, ...]
    weights: tuple[float, ...]
    away: PriorRun | Schedule
    half: Literal["image_embeds", "negative_image_embeds"] = "image_embeds"
    draws_first: bool = True

    @property
    def steps(self) -> int:
        """Steps of the prior's graph for each batch."""
        return sum(each.steps for each in (*self.parts, self.away) if isinstance(each, PriorRun))


@dataclass(frozen=True)
class Together:
    """Sources of jobs that are merged: each with the places of its pictures among all, one for each of its rows."""

    parts: tuple[tuple[GivenEmbeddings | PriorRun | Blend, tuple[int, ...]], ...]

    @property
    def steps(self) -> int:
        """Steps of the prior's graph for each batch."""
        return sum(source.steps for source, _ in self.parts)


Source = GivenEmbeddings | PriorRun | Blend | Together
"""Where a decoder's embeddings come from."""


@dataclass(frozen=True)
class Segment:
    """A part of a decoder's run: which steps, guided or not, by which component's graph.

    The state passes from one segment to the next, whatever component runs it.
    """

    steps: slice
    guided: bool
    component: str


@dataclass(frozen=True)
class Skip:
    """The steps, counted from the run's first, whose network is not computed as a whole, and what takes them.

    `kind` is the way to skip, `checks.FORECAST` or `checks.SHALLOW`.
    """

    kind: str
    component: str
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """What the decoder does: `shape` is of a picture's latents, `noise` (n, C, h, w) the caller's.

    `skip` is None where every step is computed. `ranks` and `rank_weight` say where dynamic thresholding finds its
    quantile, see `Thresholding.ranks`.
    """

    inputs: Inputs
    schedule: Schedule
    guidance_scale: float
    segments: tuple[Segment, ...]
    shape: Shape
    ranks: Array
    rank_weight: Array
    noise: Floats | None = None
    skip: Skip | None = None


@dataclass(frozen=True)
class Job:
    """All that is decided about a request: `components` by name in the order of their use, one of `seeds` a picture.

    `batches` are the pictures that are denoised at once, in order. `sampling` is None where embeddings alone were
    asked for. Of jobs that were merged, `request` is the first one's: it tells of all only what their key does, see
    `kandinsky22.request.merge`.
    """

    request: Request
    components: tuple[str, ...]
    seeds: tuple[int, ...]
    batches: tuple[slice, ...]
    source: Source
    sampling: Sampling | None = None

    @property
    def steps(self) -> int:
        """Steps of step graphs for each batch: of the prior, then of the decoder."""
        return self.source.steps + (len(self.sampling.schedule.timesteps) if self.sampling else 0)

    @property
    def demand(self) -> Demand:
        """What it asks of memory."""
        if self.sampling is None:
            return Demand(self.components)
        height, width = self.sampling.shape[1:]
        at_once = min(len(self.seeds), self.batches[0].stop)
        branches = frozenset(1 + segment.guided for segment in self.sampling.segments)
        return Demand(self.components, (height, width), len(self.seeds), at_once, branches)
