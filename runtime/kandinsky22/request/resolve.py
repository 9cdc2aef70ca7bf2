"""A request and a manifest to a job: every decision, and every refusal, before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandinsky22 import batching, checks, schedulers
from kandinsky22.arrays import Floats
from kandinsky22.bundle.manifest import Manifest, Role
from kandinsky22.errors import InputError
from kandinsky22.images import reading
from kandinsky22.request import skipping, tasks
from kandinsky22.request.embeddings import find_source
from kandinsky22.request.job import Job, Sampling, Segment
from kandinsky22.request.request import Request
from kandinsky22.request.tasks import Shape
from kandinsky22.schedulers import configs
from kandinsky22.schedulers.schedule import Schedule


def resolve(request: Request, manifest: Manifest, zero: Floats | None = None) -> Job:
    """Decide all that a request leaves open: components, schedules, seeds, batches, shapes, inputs.

    `zero` (1, E) is the constant of the bundle that unguided embeddings are led away from, where it has one.

    Raises InputError where a value cannot be for this bundle, BundleError where it lacks a component.
    """
    source, roles, pictures, prompts = find_source(request, manifest, zero)
    sampling = None
    if request.task.makes_pictures:
        inputs = tasks.read(request)
        last = () if request.parameters["output_type"] == "latent" else (Role.MOVQ_DECODER,)
        roles = (*roles, *inputs.roles, *last)
    components = tuple(manifest.name_of(role) for role in roles)
    seeds = checks.seeds(request.parameters["seed"], pictures)
    if request.task.makes_pictures:
        sampling = _sampling(request, manifest, inputs, prompts, pictures)
        if sampling.skip is not None:  # used with the decoder: before what makes pixels
            decoded = len(components) - len(last)
            components = (*components[:decoded], sampling.skip.component, *components[decoded:])
    batches = tuple(batching.parts(pictures, request.parameters["batch_size"]))
    return Job(request, components, tuple(seeds), batches, source, sampling)


def latent_size(height: int, width: int, downscale: int) -> tuple[int, int]:
    """Latent height and width of a picture: each side rounds up to a multiple of downscale², as in diffusers."""
    block = downscale**2
    return -(-height // block) * downscale, -(-width // block) * downscale


def quantile_ranks(manifest: Manifest, schedule: Schedule, shape: Shape) -> tuple[NDArray[np.int64], Floats]:
    """Where dynamic thresholding finds its quantile in latents of `shape` (C, h, w): see `Thresholding.ranks`.

    Raises InputError where that is further down than the bundle's graphs look.
    """
    ranks, weight = schedule.thresholding.ranks(math.prod(shape))
    if ranks.max() >= (manifest.limits.ranks or 0):
        raise InputError(
            f"Dynamic thresholding at this size ranks {ranks.max() + 1} values, the bundle was exported for "
            f"{manifest.limits.ranks}; ask for a smaller picture, or export with a larger --max-size."
        )
    return ranks, weight


def decoder_schedule(
    manifest: Manifest, decoder: Role, scheduler: object = None, steps: int = 50, eta: float = 0.0
) -> Schedule:
    """The schedule of one of a bundle's decoders. Raises InputError where scheduler, steps or eta cannot be.

    Raises BundleError where the bundle lacks that decoder.
    """
    config = configs.from_user(_config(manifest, decoder), scheduler)
    schedule = schedulers.solve(config, steps, eta=eta)
    if schedule.learned and not manifest.geometry.learned_variance:
        raise InputError("The scheduler asks for a learned variance and this UNet has none; choose fixed_small.")
    return schedule


def _config(manifest: Manifest, role: Role) -> dict[str, Any]:
    scheduler = manifest.components[manifest.name_of(role)].scheduler
    return manifest.schedulers[scheduler or ""]


def _sampling(request: Request, manifest: Manifest, inputs: tasks.Inputs, prompts: int, pictures: int) -> Sampling:
    asked = request.parameters
    shape = _latent_shape(manifest, asked["height"], asked["width"])
    steps, scale = asked["num_inference_steps"], asked["guidance_scale"]
    schedule = inputs.shortened(decoder_schedule(manifest, inputs.decoder, asked["scheduler"], steps, asked["eta"]))
    ranks, rank_weight = quantile_ranks(manifest, schedule, shape)
    inputs.check(prompts, shape, manifest.downscale)
    noise, expected = asked["latents"], (pictures, *shape)
    if noise is not None:
        noise = reading.floats("latents", noise, f"{expected}, noise", expected)
    name = manifest.name_of(inputs.decoder)
    guided = guided_parts(len(schedule.timesteps), scale, asked["guidance_interval"])
    segments = tuple(Segment(part, on, name) for part, on in guided)
    skip = skipping.skipped(asked["skip"], inputs.decoder, manifest, guided)
    return Sampling(inputs, schedule, scale, segments, shape, ranks, rank_weight, noise, skip)


def _latent_shape(manifest: Manifest, height: int | None, width: int | None) -> Shape:
    """Latent channels, height and width of a picture."""
    largest = manifest.limits.max_size
    pixels = [
        manifest.default_size if side is None else checks.side(name, side, largest)
        for name, side in (("height", height), ("width", width))
    ]
    return manifest.latent_channels, *latent_size(pixels[0], pixels[1], manifest.downscale)


def guided_parts(steps: int, scale: float, interval: tuple[float, float]) -> list[tuple[slice, bool]]:
    """The runs of steps that are guided or not, in order: step i is where interval[0] <= i / steps < interval[1].

    Guidance on a part of the steps alone is arXiv:2404.07724.
    """
    guided = [scale > 1 and interval[0] <= step / steps < interval[1] for step in range(steps)]
    starts = [step for step in range(steps) if step == 0 or guided[step] != guided[step - 1]]
    return [(slice(a, b), guided[a]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
