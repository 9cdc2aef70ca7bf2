"""Scores of the frontier: settings paint the prompts of checkpoints/shapes, and its classifier judges the pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import shapes
from benchmarks.frontier_settings import DIFFUSERS, FLOAT, SAMPLERS, Setting, split
from benchmarks.runs import GUIDANCE, KeptPictures, Pictures
from benchmarks.shapes import FOLDER, classifier, text2img
from benchmarks.steps import distance
from kandinsky22 import Pipeline
from kandinsky22.arrays import Embeddings

BATCH = 16
REFERENCE = {"scheduler": "ddim", "num_inference_steps": 500}
"""The run that distances are to, in fp32."""
COMPARED = 30
"""Pictures that distances are of, at most: 500 steps take as long as ten other settings."""


class Shapes:
    """Prompts of the model card, spread evenly, who paints them, and the judge. Close it."""

    def __init__(self, bundles: Mapping[str, Path], backend: str, threads: int | None, prompts: int) -> None:
        """`bundles` are those of shapes by the settings' subject, "float" and "int8"."""
        every, scenes = text2img.unseen_prompts()
        chosen = [place * len(every) // prompts for place in range(prompts)]
        self.prompts, self._scenes = [every[place] for place in chosen], scenes[chosen]
        self.compared = slice(None, None, max(1, prompts // COMPARED))
        self._bundles, self._backend, self._threads = bundles, backend, threads
        self._judge = classifier.load(FOLDER / "classifier.safetensors")
        self._pipes: dict[tuple[str, str], Pipeline] = {}
        self._embeddings: dict[str, Embeddings] = {}
        self._diffusers: Any = None
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        """Free all pipelines."""
        self._opened.close()

    def wrong(self, pictures: Pictures) -> list[int]:
        """The places of the pictures in which the judge does not read everything that was asked for."""
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        right = (classifier.classify(self._judge, signed) == self._scenes).all(1)
        return [place for place, is_right in enumerate(right.tolist()) if not is_right]

    def paint(self, setting: Setting) -> Pictures:
        """Pictures (n, H, W, 3) in 0..1 of all prompts. Picture i begins with the noise of seed i, whoever paints."""
        if setting.subject == DIFFUSERS:
            return self._by_diffusers(setting)
        precision = "auto" if setting.subject == FLOAT else setting.subject
        return self._by_us(setting.subject, precision, setting.given)

    def reference(self, kept: KeptPictures) -> Pictures:
        """The pictures that those of `compared` are compared with: kept, or painted and then kept."""
        pictures = kept.read()
        if pictures is None or len(pictures) != len(self.prompts[self.compared]):
            pictures = self._by_us(FLOAT, "fp32", REFERENCE, self.compared)
            kept.write(pictures)
        return pictures

    def distance(self, pictures: Pictures, reference: Pictures) -> float:
        """Root mean square of the difference to the reference, of 255, over the pictures of `compared`."""
        return distance(pictures[self.compared], reference)

    def _by_us(self, subject: str, precision: str, given: Mapping[str, Any], which: slice = slice(None)) -> Pictures:
        prior, rest = split(given)
        pipe, seeds = self._pipe(subject, precision), list(range(len(self.prompts)))
        key = f"{subject} {precision} {sorted(prior.items())}"
        if key not in self._embeddings:
            self._embeddings[key] = pipe.embed(self.prompts, seed=seeds, batch_size=BATCH, **prior)
        out = pipe(
            image_embeds=self._embeddings[key].part(which),
            seed=seeds[which],
            guidance_scale=GUIDANCE,
            output_type="np",
            batch_size=BATCH,
            **rest,
        )
        return np.asarray(out.images)

    def _pipe(self, subject: str, precision: str) -> Pipeline:
        key = subject, precision
        if key not in self._pipes:
            pipe = Pipeline.load(self._bundles[subject], self._backend, precision=precision, threads=self._threads)
            self._pipes[key] = self._opened.enter_context(pipe)
        return self._pipes[key]

    def _by_diffusers(self, setting: Setting) -> Pictures:
        if self._diffusers is None:
            self._diffusers = shapes.diffusers_painter()
        sampler, steps = SAMPLERS[setting.given.get("scheduler")], setting.request.parameters["num_inference_steps"]
        batches = [range(len(self.prompts))[first : first + BATCH] for first in range(0, len(self.prompts), BATCH)]
        return np.concatenate(
            [_diffused(self._diffusers, sampler, steps, [self.prompts[i] for i in batch], batch) for batch in batches]
        )


def _diffused(painter: Any, sampler: str, steps: int, prompts: list[str], seeds: range) -> Pictures:
    """Pictures of diffusers' pipelines. Each seed's noise is drawn for the prior, and anew for the decoder, as ours is
    where embeddings are given."""
    from diffusers import KandinskyV22Pipeline

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    towards, away = painter.prior(prompts, generator=generators(), guidance_scale=GUIDANCE, return_dict=False)
    images = painter.load(KandinskyV22Pipeline, "decoder", sampler)(
        image_embeds=towards,
        negative_image_embeds=away,
        height=shapes.SIDE,
        width=shapes.SIDE,
        num_inference_steps=steps,
        generator=generators(),
        output_type="np",
    ).images
    return np.asarray(images)
