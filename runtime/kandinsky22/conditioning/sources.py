"""Embeddings of a job: made from prompts, from pictures, from blends of both, or the caller's own.

Afterwards the generators stand where diffusers' one generator would stand; the decoder goes on drawing from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import PIL.Image

from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.callbacks import Callbacks
from kandinsky22.components import Run
from kandinsky22.conditioning import image_encoder, prior
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.request.job import Blend, GivenEmbeddings, Job, PriorRun, Together
from kandinsky22.rows import Pictures


class EmbeddingSource:
    """Embeddings of one job's pictures. Each is made once, because making it draws from the picture's generator."""

    def __init__(
        self,
        run: Run,
        job: Job,
        tokenizer: Callable[[], Tokenizer],
        pictures: Pictures,
        callbacks: Callbacks,
    ) -> None:
        """`tokenizer` is called only where text is encoded: a bundle without a prior has none."""
        self._pictures = pictures
        source, at_once = job.source, job.request.parameters["batch_size"]
        parts = source.parts if isinstance(source, Together) else ((source, tuple(range(len(job.seeds)))),)
        self._parts = [_Part(run, *part, tokenizer, pictures, callbacks, at_once) for part in parts]

    def embed(self, places: Collection[int]) -> dict[int, Embeddings]:
        """Embeddings (1, E) by place of the pictures at `places`, in that order: of those that stay."""
        found: dict[int, Embeddings] = self._pictures.hold({})
        for part in self._parts:
            found.update(part.embed(places))
        return self._pictures.hold({place: found.pop(place) for place in self._pictures.staying(places)})


class _Part:
    """One source, and the places of its pictures in the call, one for each of its rows."""

    def __init__(
        self,
        run: Run,
        source: GivenEmbeddings | PriorRun | Blend,
        places: Sequence[int],
        tokenizer: Callable[[], Tokenizer],
        pictures: Pictures,
        callbacks: Callbacks,
        at_once: int | None,
    ) -> None:
        self._run, self._source, self._pictures, self._callbacks = run, source, pictures, callbacks
        self._rows = {place: row for row, place in enumerate(places)}
        self._tokenizer, self._at_once = tokenizer, at_once

    def embed(self, places: Collection[int]) -> dict[int, Embeddings]:
        """Embeddings (1, E) of those pictures at `places` that are this source's and stay."""
        source = self._source
        rows = {place: row for place, row in self._rows.items() if place in places}
        rows = {place: rows[place] for place in self._pictures.staying(rows)}
        if isinstance(source, GivenEmbeddings):
            return {place: source.embeddings.part(slice(row, row + 1)) for place, row in rows.items()}
        if not rows:
            return {}
        return self._of_text(source, rows) if isinstance(source, PriorRun) else self._blended(source, rows)

    def _of_text(self, asked: PriorRun, rows: Mapping[int, int]) -> dict[int, Embeddings]:
        return prior.embed(
            self._run,
            self._tokenizer(),
            asked,
            {place: rows[place] for place in self._pictures.staying(rows)},
            self._pictures,
            at_once=self._at_once,
            begin=self._begin,
            on_step=self._callbacks.prior(asked.schedule.timesteps),
        )

    @functools.cached_property
    def _begin(self) -> Floats | None:
        """Embeddings (n, E) that the prior begins from, or None; the caller's pictures are encoded once."""
        source = self._source
        if not isinstance(source, PriorRun) or source.pictures is None:
            return None
        given = source.pictures
        embeds = image_encoder.encode(self._run, given) if isinstance(given, list) else given
        return np.repeat(embeds, len(source.prompts) // len(embeds), axis=0)

    def _blended(self, blend: Blend, rows: Mapping[int, int]) -> dict[int, Embeddings]:
        encoded = iter(self._encoded)
        weighted: list[dict[int, Floats]] = []
        for part, weight in zip(blend.parts, blend.weights, strict=True):
            if isinstance(part, PriorRun):
                embeds = {place: each.image_embeds for place, each in self._of_text(part, rows).items()}
            else:
                embeds = dict.fromkeys(rows, next(encoded))
            share = {place: each * np.float32(weight) for place, each in embeds.items()}
            weighted.append(self._pictures.hold(share))
        away = self._away(blend, rows)
        totals = {place: np.sum([each[place] for each in weighted], axis=0) for place in self._pictures.staying(rows)}
        return {place: Embeddings(total, away[place]) for place, total in totals.items()}

    def _away(self, blend: Blend, rows: Mapping[int, int]) -> dict[int, Floats]:
        """Embeddings (1, E) that the decoder is led away from, by place."""
        if isinstance(blend.away, PriorRun):
            return {place: getattr(each, blend.half) for place, each in self._of_text(blend.away, rows).items()}
        staying = self._pictures.staying(rows)
        width = self._run.bundle.manifest.geometry.embedding_dim
        generators = [self._pictures.generators[place] for place in staying]
        prior.pass_over(blend.away, generators, width, first=blend.draws_first)
        return dict.fromkeys(staying, self._run.bundle.constants()["zero_image_embeds"])

    @functools.cached_property
    def _encoded(self) -> list[Floats]:
        """Embeddings (1, E) of each picture of a blend, encoded once for all batches."""
        parts = self._source.parts if isinstance(self._source, Blend) else ()
        pictures = [part for part in parts if isinstance(part, PIL.Image.Image)]
        return list(image_encoder.encode(self._run, pictures)[:, None]) if pictures else []
