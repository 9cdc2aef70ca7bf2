"""Image embeddings to latents: the loop of the diffusion UNet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import OnStep
from kandinsky22.components import Components
from kandinsky22.noise import Generator
from kandinsky22.request.resolve import quantile_ranks
from kandinsky22.sampling.conditions import Conditions
from kandinsky22.sampling.guidance import guidance_weights, guided_parts
from kandinsky22.schedulers.schedule import Schedule

NO_CONDITIONS = Conditions()


def sample(
    components: Components,
    table: Schedule,
    embeddings: Embeddings,
    generators: Sequence[Generator],
    shape: tuple[int, int, int],
    *,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    conditions: Conditions = NO_CONDITIONS,
    on_step: OnStep | None = None,
) -> Floats:
    """Latents (n, C, h, w) of n pictures, where `shape` is (C, h, w), as diffusers' Kandinsky 2.2 decoders do it.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below, and outside of
    `guidance_interval`, a share of the steps (arXiv:2404.07724). Raises InputError as `quantile_ranks` does.
    """
    ranks, rank_weight = quantile_ranks(components.bundle.manifest, table, shape)

    def draw() -> Floats:
        return np.stack([generator.randn(shape) for generator in generators])

    noise = draw() if conditions.noise is None else conditions.noise
    latents = conditions.latents(noise)
    nothing = np.zeros_like(latents)
    per_step = table.per_step(draw, nothing)
    if conditions.paste is not None:
        per_step["known_scales"] = list(conditions.paste)
    state: dict[str, Array] = {"latents": latents, "x0_before": nothing}
    with components.use(conditions.component) as decoder_step:
        for part, guided in guided_parts(len(table.coefficients), guidance_scale, guidance_interval):
            towards, away = embeddings.image_embeds, embeddings.negative_image_embeds
            state = decoder_step.loop(
                state,
                {name: rows[part] for name, rows in per_step.items()},
                {
                    **conditions.feeds(noise),
                    "image_embeds": np.stack([away, towards] if guided else [towards]),
                    "guidance": guidance_weights(guidance_scale if guided else 1.0),
                    "thresholding": table.thresholding.array,
                    "ranks": ranks,
                    "rank_weight": rank_weight,
                },
                counted_from(part.start, on_step),
            )
    return state["latents"]


def counted_from(start: int, on_step: OnStep | None) -> OnStep | None:
    """`on_step` for a part of a run: its steps are counted from `start`."""
    if on_step is None or start == 0:
        return on_step
    return lambda step, state: on_step(start + step, state)
