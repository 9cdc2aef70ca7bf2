"""Embeddings of a job: made from prompts, from pictures, from blends of both, or the caller's own.

Afterwards the generators stand where diffusers' one generator would stand; the decoder goes on drawing from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.callbacks import Callbacks
from kandinsky22.components import Run
from kandinsky22.conditioning import image_encoder, prior
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.noise import Generator
from kandinsky22.request.job import Blend, GivenEmbeddings, Job, PriorRun


class EmbeddingSource:
    """Embeddings of one job's pictures. Each is made once, because making it draws from the picture's generator."""

    def __init__(
        self,
        run: Run,
        job: Job,
        tokenizer: Callable[[], Tokenizer],
        generators: Sequence[Generator],
        callbacks: Callbacks,
    ) -> None:
        """`tokenizer` is called only where text is encoded: a bundle without a prior has none."""
        self._run, self._source, self._generators, self._callbacks = run, job.source, generators, callbacks
        self._tokenizer = tokenizer
        self._at_once = job.request.parameters["batch_size"]

    def embed(self, of: slice) -> Embeddings:
        """Embeddings of the pictures in the slice `of`."""
        source = self._source
        if isinstance(source, GivenEmbeddings):
            return source.embeddings.part(of)
        if isinstance(source, PriorRun):
            return self._of_text(source, of)
        return self._blended(source, of)

    def _of_text(self, asked: PriorRun, of: slice) -> Embeddings:
        return prior.embed(
            self._run,
            self._tokenizer(),
            asked,
            of,
            self._generators,
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

    def _blended(self, blend: Blend, of: slice) -> Embeddings:
        count = len(self._generators[of])
        pictures = iter(self._encoded)
        weighted = []
        for part, weight in zip(blend.parts, blend.weights, strict=True):
            if isinstance(part, PriorRun):
                embeds = self._of_text(part, of).image_embeds
            else:
                embeds = np.repeat(next(pictures), count, axis=0)
            weighted.append(embeds * np.float32(weight))
        total: Floats = np.sum(weighted, axis=0)
        if isinstance(blend.away, PriorRun):
            return Embeddings(total, getattr(self._of_text(blend.away, of), blend.half))
        width = self._run.bundle.manifest.geometry.embedding_dim
        prior.pass_over(blend.away, self._generators[of], width, first=blend.draws_first)
        return Embeddings(total, np.repeat(self._run.bundle.constants()["zero_image_embeds"], count, axis=0))

    @functools.cached_property
    def _encoded(self) -> list[Floats]:
        """Embeddings (1, E) of each picture of a blend, encoded once for all batches."""
        parts = self._source.parts if isinstance(self._source, Blend) else ()
        pictures = [part for part in parts if isinstance(part, PIL.Image.Image)]
        return list(image_encoder.encode(self._run, pictures)[:, None]) if pictures else []
