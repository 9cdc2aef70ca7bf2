"""Where a decoder's embeddings come from: prompts, pictures, blends of both, or the caller.

An `EmbeddingSource` is made in a moment, with everything checked; its `embed` does the work. Its generators are then
where diffusers' one generator would be, and the decoder goes on drawing from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kandinsky22 import checks
from kandinsky22.arrays import Embeddings, Floats
from kandinsky22.backends import OnStep
from kandinsky22.components import Components
from kandinsky22.conditioning import image_encoder, prior
from kandinsky22.conditioning.prior import InitialLatents
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.errors import InputError
from kandinsky22.images import reading
from kandinsky22.images.reading import Picture
from kandinsky22.noise import Generator
from kandinsky22.options import Callback, Options
from kandinsky22.schedulers import ddpm
from kandinsky22.schedulers.schedule import Schedule

_PRIOR = ("text_encoder", "prior_step")

OnStepOf = Callable[["Callback | None", NDArray[np.int64]], "OnStep | None"]
"""Dresses a user's callback, with the timesteps of a run, for a backend's loop."""


@dataclass(frozen=True)
class EmbeddingSource:
    """Embeddings to be: one a picture. `components` are the names of what `embed` runs, in order.

    `embed` makes those of some of the pictures. Each is to be made once, since that draws from its generator; inputs
    that are pictures are encoded once for all.
    """

    seeds: list[int]
    generators: list[Generator]
    components: tuple[str, ...]
    embed: Callable[[slice], Embeddings]


class EmbeddingSources:
    """Makes the sources of one pipeline. Every method raises InputError or BundleError before anything is loaded."""

    def __init__(self, components: Components, on_step: OnStepOf) -> None:
        self._components = components
        self._bundle = components.bundle
        self._on_step = on_step

    def prompts(self, prompt: object, negative_prompt: object, asked: Options) -> EmbeddingSource:
        """Text encoder and prior, as KandinskyV22PriorPipeline."""
        prompts, negatives = _prompts(prompt, negative_prompt)
        seeds, generators = _seeds(asked, len(prompts))
        self._require(_PRIOR)
        table = self._table(asked)
        beginning = InitialLatents(self._prior_noise(asked, len(seeds), negatives))

        def embed(part: slice) -> Embeddings:
            return self._run(prompts, negatives, generators, table, asked, beginning, part)

        return EmbeddingSource(seeds, generators, _PRIOR, embed)

    def pictures(
        self, prompt: object, image: Any, negative_prompt: object, strength: object, asked: Options, name: str = "image"
    ) -> EmbeddingSource:
        """Pictures' embeddings noised and led towards prompts, as KandinskyV22PriorEmb2EmbPipeline.

        `name` is what the caller calls the pictures.
        """
        prompts, negatives = _prompts(prompt, negative_prompt)
        seeds, generators = _seeds(asked, len(prompts))
        given = self._embeds_or_pictures(name, image)
        encoder = ("image_encoder",) if isinstance(given, list) else ()
        self._require((*encoder, *_PRIOR))
        if len(given) not in (1, len(prompts)):
            raise InputError(
                f"{name} has {len(given)} pictures for {len(prompts)} prompts; expected one for all, or one a prompt."
            )
        table = self._table(asked).last_part(checks.share("strength", strength))
        noise = self._prior_noise(asked, len(seeds), negatives)

        @functools.cache
        def beginning() -> InitialLatents:
            embeds = image_encoder.encode(self._components, given) if isinstance(given, list) else given
            return InitialLatents(noise, np.repeat(embeds, len(seeds) // len(embeds), axis=0), table.scales[0])

        def embed(part: slice) -> Embeddings:
            return self._run(prompts, negatives, generators, table, asked, beginning(), part)

        return EmbeddingSource(seeds, generators, (*encoder, *_PRIOR), embed)

    def blend(
        self,
        images_and_prompts: Any,
        weights: object,
        negative_prompt: object,
        negative_prior_prompt: object,
        asked: Options,
    ) -> EmbeddingSource:
        """A weighted sum of embeddings, as KandinskyV22PriorPipeline.interpolate; it runs the prior once a prompt.

        diffusers runs it for `negative_prompt` as well, and throws the result away where that is "": here the same
        noise is drawn and nothing is run.
        """
        for name in ("image_embeds", "prior_image"):
            if asked[name] is not None:
                raise InputError(f"{name} was given beside what is to be mixed; expected one of them.")
        parts = _parts(images_and_prompts)
        shares = checks.weights(weights, len(parts))
        negative = checks.text("negative_prompt", negative_prompt)
        negatives = None
        if negative_prior_prompt is not None:
            negatives = [checks.text("negative_prior_prompt", negative_prior_prompt)]
        seeds, generators = _seeds(asked, 1)
        pictures = {place: part for place, part in enumerate(parts) if not isinstance(part, str)}
        runs_prior = bool(negative) or negatives is not None or len(pictures) < len(parts)
        encoder = ("image_encoder",) if pictures else ()
        components = (*encoder, *(_PRIOR if runs_prior else ()))
        self._require(components)
        table = self._table(asked)
        noise = self._prior_noise(asked, len(seeds), negatives)

        def of_text(text: str, of: slice) -> Embeddings:
            return self._run([text], negatives, generators, table, asked, InitialLatents(noise), of)

        @functools.cache
        def of_picture(place: int) -> Floats:
            return image_encoder.encode(self._components, [pictures[place]])

        def of_part(place: int, of: slice) -> Floats:
            part = parts[place]
            if isinstance(part, str):
                return of_text(part, of).image_embeds
            return np.repeat(of_picture(place), len(generators[of]), axis=0)

        def embed(of: slice) -> Embeddings:
            weighted = [of_part(place, of) * np.float32(share) for place, share in enumerate(shares)]
            embeds: Floats = np.sum(weighted, axis=0)
            if negative:
                return Embeddings(embeds, of_text(negative, of).image_embeds)
            if negatives is not None:
                return Embeddings(embeds, of_text(negative, of).negative_image_embeds)
            prior.pass_over(table, generators[of], self._width, first=noise is None)
            return Embeddings(embeds, self._zero_embeds(len(embeds)))

        return EmbeddingSource(seeds, generators, components, embed)

    def given(self, asked: Options) -> EmbeddingSource:
        """Embeddings that the caller has, checked."""
        if asked["prior_latents"] is not None:
            raise InputError("prior_latents was given beside image_embeds, which need no prior; give one of them.")
        if asked["prior_image"] is not None:
            raise InputError("prior_image was given beside image_embeds, which need no prior; give one of them.")
        image_embeds, negative_image_embeds = asked["image_embeds"], asked["negative_image_embeds"]
        if isinstance(image_embeds, Embeddings):
            if negative_image_embeds is not None:
                raise InputError("image_embeds is a pair from embed() already; leave negative_image_embeds out.")
            negative_image_embeds = image_embeds.negative_image_embeds
            image_embeds = image_embeds.image_embeds
        embeds = self._embedding("image_embeds", image_embeds)
        negatives = (
            self._zero_embeds(len(embeds))
            if negative_image_embeds is None
            else self._embedding("negative_image_embeds", negative_image_embeds)
        )
        if len(negatives) != len(embeds):
            raise InputError(f"There are {len(embeds)} image_embeds and {len(negatives)} negative_image_embeds.")
        seeds, generators = _seeds(asked, len(embeds))
        pairs = [np.repeat(each, len(seeds) // len(embeds), axis=0) for each in (embeds, negatives)]
        return EmbeddingSource(seeds, generators, (), lambda part: Embeddings(*(each[part] for each in pairs)))

    def _run(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None,
        generators: Sequence[Generator],
        table: Schedule,
        asked: Options,
        beginning: InitialLatents,
        part: slice,
    ) -> Embeddings:
        """The prior's for a part of the pictures, of which there are as many a prompt as there are generators for."""
        times = len(generators) // len(prompts)
        return prior.embed(
            self._components,
            self._tokenizer,
            table,
            _repeat(prompts, times)[part],
            None if negatives is None else _repeat(negatives, times)[part],
            generators[part],
            guidance_scale=checks.scale("prior_guidance_scale", asked["prior_guidance_scale"]),
            at_once=asked["batch_size"],
            beginning=beginning.part(part),
            on_step=self._on_step(asked["prior_callback_on_step_end"], table.timesteps),
        )

    def _table(self, asked: Options) -> Schedule:
        """The prior's coefficients, and a check of what else it is given."""
        if asked["negative_image_embeds"] is not None:
            raise InputError("negative_image_embeds was given without image_embeds; give both, or a negative_prompt.")
        checks.scale("prior_guidance_scale", asked["prior_guidance_scale"])
        steps = checks.whole("prior_num_inference_steps", asked["prior_num_inference_steps"], 1, checks.MAX_STEPS)
        return ddpm.unclip(self._bundle.manifest.schedulers["prior"], steps)

    def _require(self, components: Sequence[str]) -> None:
        for name in components:
            self._bundle.component(name)

    def _prior_noise(self, asked: Options, pictures: int, negatives: Sequence[str] | None) -> Floats | None:
        """The caller's noise (copies, n, E), checked."""
        if asked["prior_latents"] is None:
            return None
        copies = 1 if negatives is None else 2
        shape = (copies * pictures, self._width)
        noise = reading.floats("prior_latents", asked["prior_latents"], f"{shape}, noise", shape)
        return noise.reshape(copies, pictures, self._width)

    def _embeds_or_pictures(self, name: str, image: Any) -> Floats | list[PIL.Image.Image]:
        """Pictures, or their embeddings (n, E), which diffusers takes too."""
        if isinstance(image, np.ndarray) and image.ndim == 2 and image.shape[1] == self._width:
            return self._embedding(name, image)
        return reading.several(name, image, _picture_for_clip)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._bundle)

    @property
    def _width(self) -> int:
        return int(self._bundle.manifest.geometry["embedding_dim"])

    def _zero_embeds(self, count: int) -> Floats:
        zero = self._bundle.constants().get("zero_image_embeds")
        if zero is None:
            raise InputError("The bundle has no zero-image embedding (no prior); pass negative_image_embeds too.")
        return np.repeat(zero, count, axis=0)

    def _embedding(self, name: str, value: Any) -> Floats:
        expected = f"(n, {self._width})"
        array = reading.floats(name, value, expected)
        if array.ndim != 2 or array.shape[1] != self._width or not len(array):
            raise InputError(f"{name} has shape {array.shape} and type {array.dtype}; expected floats {expected}.")
        return array


def _prompts(prompt: object, negative_prompt: object) -> tuple[list[str], list[str] | None]:
    prompts = checks.prompts(prompt)
    return prompts, checks.negative_prompts(negative_prompt, len(prompts))


def _seeds(asked: Options, prompts: int) -> tuple[list[int], list[Generator]]:
    """One seed and one generator a picture."""
    if asked["batch_size"] is not None:
        checks.whole("batch_size", asked["batch_size"], 1, checks.MAX_PICTURES)
    times = checks.whole("num_images_per_prompt", asked["num_images_per_prompt"], 1, checks.MAX_PICTURES)
    seeds = checks.seeds(asked["seed"], prompts * times)
    return seeds, [Generator(each) for each in seeds]


def _parts(values: Any) -> list[str | PIL.Image.Image]:
    """Prompts, and pictures read."""
    if not isinstance(values, list | tuple) or not values:
        raise InputError("There is nothing to mix; expected a list of prompts and pictures.")
    named = [(f"images_and_prompts[{i}]", value) for i, value in enumerate(values)]
    return [
        checks.text(name, value) if isinstance(value, str) else _picture_for_clip(name, value) for name, value in named
    ]


def _picture_for_clip(name: str, value: Picture) -> PIL.Image.Image:
    picture = reading.picture(name, value)
    reading.not_too_long(name, picture)
    return picture


def _repeat(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]
