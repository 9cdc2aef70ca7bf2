"""A request and a manifest to a job: every decision, and every refusal, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kandinsky22 import batching, checks, schedulers
from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.bundle.manifest import Manifest, Role
from kandinsky22.errors import BundleError, InputError
from kandinsky22.images import reading
from kandinsky22.request import tasks
from kandinsky22.request.job import Blend, GivenEmbeddings, Job, Painting, PriorRun, Segment, Source
from kandinsky22.request.request import Request
from kandinsky22.request.tasks import Shape
from kandinsky22.schedulers import configs, ddpm
from kandinsky22.schedulers.schedule import Schedule

PRIOR = (Role.TEXT_ENCODER, Role.PRIOR)
"""What a run of the prior takes, in order."""
PRIOR_SCHEDULER = "prior"
"""Whose of the manifest's `schedulers` runs the prior."""


def resolve(request: Request, manifest: Manifest, zero: Floats | None = None) -> Job:
    """Decide all that a request leaves open: components, schedules, seeds, batches, shapes, inputs.

    `zero` (1, E) is the constant of the bundle that unguided embeddings are led away from, where it has one.

    Raises InputError where a value cannot be for this bundle, BundleError where it lacks a component.
    """
    source, roles, pictures, prompts = _Sources(request, manifest, zero).find()
    painting = None
    if request.task.painted:
        inputs = tasks.read(request)
        last = () if request.parameters["output_type"] == "latent" else (Role.MOVQ_DECODER,)
        roles = (*roles, *inputs.roles, *last)
    components = tuple(manifest.name_of(role) for role in roles)
    seeds = checks.seeds(request.parameters["seed"], pictures)
    if request.task.painted:
        painting = _painting(request, manifest, inputs, prompts, pictures)
    batches = tuple(batching.parts(pictures, request.parameters["batch_size"]))
    return Job(request, components, tuple(seeds), batches, source, painting)


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


def prior_schedule(manifest: Manifest, steps: int) -> Schedule:
    """The prior's schedule in this bundle, for `prior_num_inference_steps`. Raises InputError for steps that cannot be.

    Raises BundleError where the bundle has no prior's scheduler: a bundle may have one and no prior, for variations.
    """
    config = manifest.schedulers.get(PRIOR_SCHEDULER)
    if config is None:
        raise BundleError(f"The bundle {manifest.name} has no scheduler of a prior; export one that has a prior.")
    return ddpm.unclip(config, steps, name="prior_num_inference_steps")


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


def _painting(request: Request, manifest: Manifest, inputs: tasks.Inputs, prompts: int, pictures: int) -> Painting:
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
    return Painting(inputs, schedule, scale, segments, shape, ranks, rank_weight, noise)


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


class _Found(NamedTuple):
    """Where embeddings come from, what that runs, and how many pictures and prompts there are."""

    source: Source
    roles: tuple[Role, ...]
    pictures: int
    prompts: int


class _Sources:
    """Where the embeddings of one request come from."""

    def __init__(self, request: Request, manifest: Manifest, zero: Floats | None) -> None:
        self._request, self._manifest, self._zero = request, manifest, zero
        self._asked = request.parameters
        self._times = self._asked["num_images_per_prompt"]

    def find(self) -> _Found:
        """The source of the request's task."""
        name, asked = self._request.task.name, self._asked
        if name in ("mix", "interpolate"):
            return self._blend(asked["images_and_prompts"], asked["weights"], asked["negative_prior_prompt"])
        if name == "variations":
            return self._blend([_no_prompt(asked["image"])], [1.0], None)
        if name == "emb2emb":
            return self._prior_run("image", asked["image"], asked["strength"])
        if name == "embed":
            return self._prior_run()
        return self._of_decoder_task()

    def _of_decoder_task(self) -> _Found:
        """Prompts, prompts and a picture for the prior, or the caller's embeddings."""
        asked = self._asked
        if asked["image_embeds"] is not None:
            return self._given()
        if asked["prior_image"] is None:
            return self._prior_run()
        return self._prior_run("prior_image", asked["prior_image"], asked["prior_strength"])

    def _given(self) -> _Found:
        """Embeddings that the caller has, checked."""
        asked = self._asked
        if asked["prompt"] is not None or asked["negative_prompt"] is not None:
            raise InputError("Both a prompt and image_embeds were given; expected one of them.")
        for name, parameter in self._request.task.parameters().items():
            of_prior = parameter.part == "prior" or name.startswith("prior_")
            if of_prior and self._request.given.get(name) is not None:
                raise InputError(f"{name} was given beside image_embeds, which need no prior; give one of them.")
        pair: Any = asked["image_embeds"]
        negative: Any = asked["negative_image_embeds"]
        if isinstance(pair, Embeddings):
            if negative is not None:
                raise InputError("image_embeds is a pair from embed() already; leave negative_image_embeds out.")
            pair, negative = pair.image_embeds, pair.negative_image_embeds
        embeds = self._embedding("image_embeds", pair)
        count = len(embeds)
        away = self._zeros(count) if negative is None else self._embedding("negative_image_embeds", negative)
        if len(away) != count:
            raise InputError(f"There are {count} image_embeds and {len(away)} negative_image_embeds.")
        spread = [np.repeat(each, self._times, axis=0) for each in (embeds, away)]
        return _Found(GivenEmbeddings(Embeddings(*spread)), (), count * self._times, count)

    def _prior_run(self, name: str = "", pictures: Any = None, strength: float = 1.0) -> _Found:
        """Prompts through the prior; from pictures where there are some, which the caller calls `name`."""
        prompts = self._prompts()
        given = self._embeds_or_pictures(name, pictures) if name else None
        if given is not None and len(given) not in (1, len(prompts)):
            raise InputError(
                f"{name} has {len(given)} pictures for {len(prompts)} prompts; expected one for all, or one a prompt."
            )
        negatives = checks.negative_prompts(self._asked["negative_prompt"], len(prompts))
        roles = (*((Role.IMAGE_ENCODER,) if isinstance(given, list) else ()), *PRIOR)
        for role in roles:
            self._manifest.name_of(role)  # before its schedule is asked for
        schedule = self._schedule()
        if given is not None:
            schedule = schedule.last_part(strength, name="prior_strength" if name == "prior_image" else "strength")
        run = self._run(prompts, negatives, schedule, given)
        return _Found(run, roles, len(run.prompts), len(prompts))

    def _blend(
        self, things: Sequence[Any], weights: Sequence[float] | None, negative_prior_prompt: str | None
    ) -> _Found:
        """A weighted sum, as KandinskyV22PriorPipeline.interpolate makes it; it runs the prior once a prompt.

        diffusers runs it for `negative_prompt` as well, and throws the result away where that is "".
        """
        shares = [1 / len(things)] * len(things) if weights is None else weights
        if len(shares) != len(things):
            raise InputError(
                f"weights has {len(shares)} numbers; expected a list of {len(things)}, one for each prompt or picture."
            )
        negative = checks.text("negative_prompt", self._asked["negative_prompt"] or "")
        negatives = None if negative_prior_prompt is None else [negative_prior_prompt]
        read = [
            each if isinstance(each, str) else tasks.picture_for_clip(f"images_and_prompts[{place}]", each)
            for place, each in enumerate(things)
        ]
        has_pictures = not all(isinstance(each, str) for each in read)
        runs_prior = bool(negative) or negatives is not None or any(isinstance(each, str) for each in read)
        roles = (*((Role.IMAGE_ENCODER,) if has_pictures else ()), *(PRIOR if runs_prior else ()))
        for role in roles:
            self._manifest.name_of(role)
        schedule = self._schedule()
        parts = tuple(self._run([each], negatives, schedule) if isinstance(each, str) else each for each in read)
        led_away = bool(negative) or negatives is not None
        blend = Blend(
            parts,
            tuple(shares),
            away=self._run([negative], negatives, schedule) if led_away else schedule,
            half="image_embeds" if negative else "negative_image_embeds",
            draws_first=self._asked["prior_latents"] is None,
        )
        return _Found(blend, roles, self._times, 1)

    def _prompts(self) -> list[str]:
        prompt = self._asked["prompt"]
        return checks.texts("prompt", [prompt] if isinstance(prompt, str) else prompt)

    def _schedule(self) -> Schedule:
        return prior_schedule(self._manifest, self._asked["prior_num_inference_steps"])

    def _run(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None,
        schedule: Schedule,
        pictures: list[PIL.Image.Image] | Floats | None = None,
    ) -> PriorRun:
        """A run of the prior for so many pictures of each prompt."""
        spread = tuple(prompt for prompt in prompts for _ in range(self._times))
        negative = None if negatives is None else tuple(each for each in negatives for _ in range(self._times))
        noise = self._noise(len(spread), 1 if negatives is None else 2)
        return PriorRun(spread, negative, schedule, self._asked["prior_guidance_scale"], noise, pictures)

    def _noise(self, pictures: int, copies: int) -> Floats | None:
        """The caller's noise (copies, n, E)."""
        given = self._asked["prior_latents"]
        if given is None:
            return None
        shape = (copies * pictures, self._width)
        return reading.floats("prior_latents", given, f"{shape}, noise", shape).reshape(copies, pictures, self._width)

    def _embeds_or_pictures(self, name: str, image: Any) -> Floats | list[PIL.Image.Image]:
        """Pictures, or their embeddings (n, E), which diffusers takes too."""
        array = reading.array(name, image)
        if array is not None and array.ndim == 2 and array.shape[1] == self._width:
            return self._embedding(name, array)
        return tasks.pictures_for_clip(name, image)

    def _embedding(self, name: str, value: Any) -> Floats:
        expected = f"(n, {self._width})"
        array = reading.floats(name, value, expected)
        if array.ndim != 2 or array.shape[1] != self._width or not len(array):
            raise InputError(f"{name} has shape {array.shape} and type {array.dtype}; expected floats {expected}.")
        return array

    def _zeros(self, count: int) -> Floats:
        if self._zero is None:
            raise InputError("The bundle has no zero-image embedding (no prior); pass negative_image_embeds too.")
        return np.repeat(self._zero, count, axis=0)

    @property
    def _width(self) -> int:
        return self._manifest.geometry.embedding_dim


def _no_prompt(image: Any) -> Any:
    """A picture to vary, where a string is a path and not a prompt."""
    return Path(image) if isinstance(image, str) else image
