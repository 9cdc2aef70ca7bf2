"""Image embeddings to latents: the loop of the diffusion UNet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.backends import Leg, OnStep, Relay
from kandinsky22.checks import FORECAST, SHALLOW
from kandinsky22.components import Key, Run, finite
from kandinsky22.rows import Pictures, Rows
from kandinsky22.sampling import forecast, shallow
from kandinsky22.sampling.conditions import Conditions, pasted, stacked
from kandinsky22.sampling.guidance import guidance_weights

if TYPE_CHECKING:
    from kandinsky22.request.job import Sampling


def begin(
    run: Run,
    sampling: Sampling,
    pictures: Pictures,
    places: Sequence[int],
    embeddings: dict[int, Embeddings],
    conditions: dict[int, Conditions],
) -> Rows:
    """What a run for the pictures at `places` begins with, as diffusers' Kandinsky 2.2 decoders begin.

    Each picture draws its noise from its own generator alone. Its embeddings and its conditions are taken out of the
    dictionaries: they are the rows' from now on.
    """
    schedule = sampling.schedule
    generators = [pictures.generators[place] for place in places]
    given = stacked([conditions.pop(place) for place in places])
    pairs = [embeddings.pop(place) for place in places]

    def draw() -> Floats:
        return np.stack([generator.randn(sampling.shape) for generator in generators])

    noise = draw() if given.noise is None else given.noise
    latents = noise
    if sampling.inputs.strength is not None and given.known is not None:
        latents = schedule.scales[0, 0] * given.known + schedule.scales[0, 1] * noise
    nothing = np.zeros_like(latents)
    per_step = schedule.per_step(draw, nothing)
    constants = {
        "thresholding": schedule.thresholding.array,
        "ranks": sampling.ranks,
        "rank_weight": sampling.rank_weight,
        "image_embeds": np.stack(
            [
                np.concatenate([pair.negative_image_embeds for pair in pairs]),
                np.concatenate([pair.image_embeds for pair in pairs]),
            ]
        ),
    }
    if given.mask is not None and given.known is not None:
        constants |= {"mask": given.mask, "known": given.known, "known_noise": noise}
        # What is known is noised to the next timestep, and not at all after the last.
        per_step["known_scales"] = list(np.concatenate([schedule.scales[1:], np.array([[1, 0]], np.float32)]))
    if given.hint_latents is not None:
        constants["hint_latents"] = given.hint_latents
    state = {"latents": latents, "x0_before": nothing}
    if sampling.skip is not None and sampling.skip.kind == FORECAST:
        channels = latents.shape[1] * (1 + bool(run.bundle.manifest.geometry.learned_variance))
        state |= forecast.nothing_kept(latents, channels)
        per_step["forecast_weights"] = list(forecast.weights(schedule.timesteps, sampling.skip.steps))
    inputs = [spec for name in _graphs(sampling) for spec in run.bundle.component(name).inputs]
    return Rows(pictures, places, inputs, state, per_step, constants)


def _graphs(sampling: Sampling) -> set[str]:
    """Names of the components whose graphs take steps."""
    found = {segment.component for segment in sampling.segments}
    return found if sampling.skip is None else found | {sampling.skip.component}


def _legs(sampling: Sampling) -> tuple[Leg, ...]:
    """Who takes each step of a run in which some are skipped."""
    assert sampling.skip is not None
    of_kind = {FORECAST: forecast.legs, SHALLOW: shallow.legs}[sampling.skip.kind]
    return of_kind(len(sampling.schedule.timesteps), sampling.skip.steps)


def sample(run: Run, sampling: Sampling, rows: Rows, on_step: OnStep | None = None) -> dict[int, Floats]:
    """Latents (C, h, w) of the pictures that `begin` has begun, by their places: those that stay to the end.

    The state passes from one of `sampling`'s segments to the next; neighbours of one component are run without giving
    its turn away.
    """
    skip = sampling.skip
    skipping = () if skip is None else (Key(skip.component),)
    for component, segments in itertools.groupby(sampling.segments, lambda segment: segment.component):
        with run.use_together(Key(component), *skipping) as (decoder_step, *others):
            relay = Relay(tuple(others), _legs(sampling)) if others else None
            for segment in segments:
                guidance = guidance_weights(sampling.guidance_scale if segment.guided else 1.0)
                if skip is not None and skip.kind == SHALLOW:  # features of another part have other branches
                    taking, size = run.bundle.component(skip.component), sampling.shape[1:]
                    rows.state |= shallow.nothing_kept(taking, len(rows.places), len(guidance), size)
                rows.loop(decoder_step, segment.steps, guidance, on_step, relay)
                finite(component, rows.state["latents"])
    latents = pasted(rows.state["latents"], rows.constant("mask"), rows.constant("known"))
    return dict(zip(rows.places, latents, strict=True))
