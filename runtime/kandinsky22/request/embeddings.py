"""Where a request's embeddings come from: prompts, pictures, blends of both, or the caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from kandinsky22 import checks, schedulers
from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.bundle.manifest import Manifest, Role
from kandinsky22.errors import BundleError, InputError, shown
from kandinsky22.images import reading
from kandinsky22.request import tasks
from kandinsky22.request.job import Blend, GivenEmbeddings, PriorRun, Source
from kandinsky22.request.request import Request
from kandinsky22.schedulers import configs
from kandinsky22.schedulers.schedule import Schedule

PRIOR = (Role.TEXT_ENCODER, Role.PRIOR)
"""What a run of the prior takes, in order."""
PRIOR_SCHEDULER = "prior"
"""Whose of the manifest's `schedulers` runs the prior."""


class Found(NamedTuple):
    """Where embeddings come from, what that runs, and how many pictures and prompts there are."""

    source: Source
    roles: tuple[Role, ...]
    pictures: int
    prompts: int


def find_source(request: Request, manifest: Manifest, zero: Floats | None) -> Found:
    """Where the embeddings of a request come from.

    `zero` (1, E) is the constant of the bundle that stands for no negative prompt, where it has one. Raises InputError
    where what was given cannot be, BundleError where the bundle lacks what it takes.
    """
    return _Sources(request, manifest, zero).find()


def prior_schedule(manifest: Manifest, steps: int, scheduler: object = None) -> Schedule:
    """The prior's schedule in this bundle, for `prior_num_inference_steps` and `prior_scheduler`.

    Raises InputError where one of them cannot be.
    Raises BundleError where the bundle has no prior's scheduler: a bundle may have one and no prior, for variations.
    """
    own = manifest.schedulers.get(PRIOR_SCHEDULER)
    if own is None:
        raise BundleError(f"The bundle {manifest.name} has no scheduler of a prior; export one that has a prior.")
    config = configs.from_user(own, scheduler, configs.PRIOR)
    predicted, asked = (each.get("prediction_type", "epsilon") for each in (own, config))
    if asked != predicted:
        raise InputError(
            f"prior_scheduler has the prediction_type {shown(asked)}, and this prior predicts {shown(predicted)}; make "
            "the scheduler from the config of the prior's own."
        )
    schedule = schedulers.solve(config, steps, name="prior_num_inference_steps")
    if schedule.thresholding.ratio is not None:
        raise InputError("prior_scheduler has thresholding, which the prior's graph does not do; expected it off.")
    return schedule


class _Sources:
    """Where the embeddings of one request come from."""

    def __init__(self, request: Request, manifest: Manifest, zero: Floats | None) -> None:
        self._request, self._manifest, self._zero = request, manifest, zero
        self._asked = request.parameters
        self._times = self._asked["num_images_per_prompt"]

    def find(self) -> Found:
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

    def _of_decoder_task(self) -> Found:
        """Prompts, prompts and a picture for the prior, or the caller's embeddings."""
        asked = self._asked
        if asked["image_embeds"] is not None:
            return self._given()
        if asked["prior_image"] is None:
            return self._prior_run()
        return self._prior_run("prior_image", asked["prior_image"], asked["prior_strength"])

    def _given(self) -> Found:
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
        return Found(GivenEmbeddings(Embeddings(*spread)), (), count * self._times, count)

    def _prior_run(self, name: str = "", pictures: Any = None, strength: float = 1.0) -> Found:
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
        return Found(run, roles, len(run.prompts), len(prompts))

    def _blend(
        self, things: Sequence[Any] | None, weights: Sequence[float] | None, negative_prior_prompt: str | None
    ) -> Found:
        """A weighted sum, as KandinskyV22PriorPipeline.interpolate makes it; it runs the prior once a prompt.

        diffusers runs it for `negative_prompt` as well, and throws the result away where that is "".
        """
        if things is None:  # a request of JSON may lack it
            raise InputError("There is nothing to mix; expected a list of prompts and pictures.")
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
        return Found(blend, roles, self._times, 1)

    def _prompts(self) -> list[str]:
        prompt = self._asked["prompt"]
        return checks.texts("prompt", [prompt] if isinstance(prompt, str) else prompt)

    def _schedule(self) -> Schedule:
        asked = self._asked
        return prior_schedule(self._manifest, asked["prior_num_inference_steps"], asked["prior_scheduler"])

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
