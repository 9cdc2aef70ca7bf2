"""Image embeddings to latents: the loop of the diffusion UNet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import OnStep
from kandinsky22.callbacks import counted_from
from kandinsky22.components import Run, finite
from kandinsky22.noise import Generator
from kandinsky22.sampling.guidance import guidance_weights

if TYPE_CHECKING:
    from kandinsky22.request.job import Sampling
    from kandinsky22.sampling.conditions import Conditions


def sample(
    run: Run,
    sampling: Sampling,
    embeddings: Embeddings,
    generators: Sequence[Generator],
    conditions: Conditions,
    on_step: OnStep | None = None,
) -> Floats:
    """Latents (n, C, h, w) of n pictures, as diffusers' Kandinsky 2.2 decoders make them.

    Picture i draws its noise from `generators[i]` alone. The state passes from one of `sampling`'s segments to the
    next; neighbours of one component are run without giving its turn away.
    """
    schedule = sampling.schedule

    def draw() -> Floats:
        return np.stack([generator.randn(sampling.shape) for generator in generators])

    noise = draw() if conditions.noise is None else conditions.noise
    latents = conditions.latents(noise)
    nothing = np.zeros_like(latents)
    per_step = schedule.per_step(draw, nothing)
    if conditions.paste is not None:
        per_step["known_scales"] = list(conditions.paste)
    state: dict[str, Array] = {"latents": latents, "x0_before": nothing}
    constants = {
        **conditions.feeds(noise),
        "thresholding": schedule.thresholding.array,
        "ranks": sampling.ranks,
        "rank_weight": sampling.rank_weight,
    }
    towards, away = embeddings.image_embeds, embeddings.negative_image_embeds
    for component, segments in itertools.groupby(sampling.segments, lambda segment: segment.component):
        with run.use(component) as decoder_step:
            for segment in segments:
                state = decoder_step.loop(
                    state,
                    {name: rows[segment.steps] for name, rows in per_step.items()},
                    {
                        **constants,
                        "image_embeds": np.stack([away, towards] if segment.guided else [towards]),
                        "guidance": guidance_weights(sampling.guidance_scale if segment.guided else 1.0),
                    },
                    counted_from(segment.steps.start, on_step),
                )
                finite(component, state["latents"])
    return conditions.pasted(state["latents"])
