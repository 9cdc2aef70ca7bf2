"""`Pipeline`: the tasks that a user asks for, each a few lines that read like its recipe."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kandinsky22 import arguments, backends, decoder, prior, schedulers
from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import OnStep, Settings
from kandinsky22.bundle import Bundle
from kandinsky22.errors import InputError
from kandinsky22.images import to_pil
from kandinsky22.noise import Generator
from kandinsky22.prior import Embeddings
from kandinsky22.stages import Stages
from kandinsky22.text import Tokenizer

OutputType = Literal["pil", "np", "latent"]
Callback = Callable[["Pipeline", int, int, dict[str, Array]], "Mapping[str, Array] | None"]
"""`callback(pipeline, step, timestep, {"latents": …, "x0": …})`, as in diffusers; see `Pipeline.__call__`."""


@dataclass(frozen=True)
class Output:
    """What a task returns.

    `images`: PIL pictures; or float32 (n, H, W, 3) in 0..1 for "np"; or latents (n, C, h, w) for "latent".
    `seeds`: one a picture. `timings`: seconds a stage, of loading ("load"), and in all ("total").
    """

    images: list[PIL.Image.Image] | Floats
    seeds: list[int]
    timings: dict[str, float]


class Pipeline:
    """A bundle on a backend, ready to make pictures. Use `Pipeline.load`; free it with `close` or a `with` block."""

    def __init__(self, stages: Stages) -> None:
        self.bundle = stages.bundle
        self._stages = stages

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        low_memory: bool = False,
    ) -> Pipeline:
        """Open the bundle in folder `path`.

        Args:
            path: a folder that kandinsky22-export wrote.
            backend: "auto" (the fastest that can run here), "tensorrt", "openvino" or "onnxruntime".
            precision: "auto" (the backend's best), "fp32" or "bf16".
            threads: processor threads; None leaves it to the backend.
            low_memory: load each component when its stage begins and free it when it ends, so that only the largest
                one must fit. Without it, components are loaded at their first use and kept.

        Raises:
            BundleError: `path` is no bundle, or is incomplete or altered.
            BackendError: the backend is unknown, not installed, or cannot run here.
            InputError: an argument has an impossible value.
        """
        arguments.choice("precision", precision, ("auto", "fp32", "bf16"))
        if threads is not None:
            arguments.whole("threads", threads, 1, 1024)
        bundle = Bundle(path)
        return cls(Stages(bundle, backends.get(backend, bundle), Settings(precision, threads), low_memory=low_memory))

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        prior_num_inference_steps: int = 25,
        prior_guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        scheduler: str | Mapping[str, Any] | None = None,
        eta: float = 0.0,
        image_embeds: Embeddings | Array | None = None,
        negative_image_embeds: Array | None = None,
        output_type: OutputType = "pil",
        batch_size: int | None = None,
        callback_on_step_end: Callback | None = None,
        prior_callback_on_step_end: Callback | None = None,
    ) -> Output:
        """Text to image. The same seed gives the same picture as diffusers with a CPU generator.

        Args:
            prompt: one or several; each gives `num_images_per_prompt` pictures. None where `image_embeds` is given.
            negative_prompt: what to lead away from: None, one for all prompts, or one a prompt. None and "" differ:
                see `kandinsky22.prior.embed`.
            height, width: pixels; each rounds up to a multiple of the squared downscale (64), as in diffusers. None
                takes the size that the checkpoint was trained at (512 for the published one).
            num_inference_steps, prior_num_inference_steps: denoising steps of the decoder and of the prior.
            guidance_scale, prior_guidance_scale: strength of guidance; none at 1 or below.
            guidance_interval: share of the decoder's steps that are guided, from and to, 0..1; a step without guidance
                takes half the time (arXiv:2404.07724).
            seed: picture i depends on seed + i alone; a list gives each picture its own; None draws one at random.
            scheduler: of the decoder: None for the checkpoint's own, "DDPM", "DDIM", "DPM++" (DPM-Solver++ 2M, for
                20 steps), or a diffusers config.
            eta: DDIM's share of fresh noise, 0..1 (arXiv:2010.02502).
            image_embeds: precomputed embeddings, from `embed` or (n, E); `seed` then begins at the decoder's noise.
            negative_image_embeds: (n, E) beside an array `image_embeds`; None takes the all-zero image's.
            output_type: "pil", "np" or "latent", see `Output`.
            batch_size: pictures that are denoised at once; None: all.
            callback_on_step_end, prior_callback_on_step_end: called after each step as `callback(pipeline, step,
                timestep, tensors)` with `latents` and the predicted clean `x0`; may return `{"latents": …}` to replace
                them. To stop, raise `kandinsky22.Cancelled` in it: the exception reaches the caller.

        Raises:
            InputError: an argument is outside what is possible; the message says what was expected.
            BundleError: the bundle lacks a component that this needs.
        """
        started = time.perf_counter()
        self._stages.timings.clear()
        shape = self._latent_shape(height, width)
        self._check_counts(num_images_per_prompt, batch_size)
        arguments.choice("output_type", output_type, ("pil", "np", "latent"))
        if output_type != "latent":
            self.bundle.component("movq_decoder")  # its lack should not show after the work
        guidance_scale = arguments.scale("guidance_scale", guidance_scale)
        guidance_interval = arguments.interval("guidance_interval", guidance_interval)
        table = self._decoder_table(num_inference_steps, scheduler, eta)
        decoder.quantile_ranks(self.bundle.manifest, table, shape)  # nor should a size that is too large for them
        if image_embeds is None:
            embeddings, generators, seeds = self._embed(
                prompt,
                negative_prompt,
                num_images_per_prompt,
                prior_num_inference_steps,
                prior_guidance_scale,
                seed,
                batch_size,
                prior_callback_on_step_end,
            )
        else:
            embeddings = self._given(
                image_embeds, negative_image_embeds, prompt, negative_prompt, num_images_per_prompt
            )
            seeds = arguments.seeds(seed, len(embeddings.image_embeds))
            generators = [Generator(each) for each in seeds]

        latents = np.concatenate(
            [
                decoder.sample(
                    self._stages,
                    table,
                    Embeddings(embeddings.image_embeds[part], embeddings.negative_image_embeds[part]),
                    generators[part],
                    shape,
                    guidance_scale=guidance_scale,
                    guidance_interval=guidance_interval,
                    on_step=self._on_step(callback_on_step_end, table.timesteps),
                )
                for part in prior.parts(len(seeds), batch_size)
            ]
        )
        images = self._images(latents, output_type)
        return Output(images, seeds, {**self._stages.timings, "total": time.perf_counter() - started})

    def embed(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        prior_num_inference_steps: int = 25,
        prior_guidance_scale: float = 4.0,
        seed: int | Sequence[int] | None = None,
        batch_size: int | None = None,
        prior_callback_on_step_end: Callback | None = None,
    ) -> Embeddings:
        """Image embeddings of prompts: the text encoder and the prior alone. Arguments as in `__call__`."""
        self._check_counts(num_images_per_prompt, batch_size)
        return self._embed(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            prior_num_inference_steps,
            prior_guidance_scale,
            seed,
            batch_size,
            prior_callback_on_step_end,
        )[0]

    def close(self) -> None:
        """Free every component. The pipeline loads them again when it is used again."""
        self._stages.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bundle)

    def _embed(
        self,
        prompt: object,
        negative_prompt: object,
        num_images: int,
        steps: int,
        guidance_scale: float,
        seed: int | Sequence[int] | None,
        batch_size: int | None,
        callback: Callback | None,
    ) -> tuple[Embeddings, list[Generator], list[int]]:
        """Embeddings of all pictures, their generators (which the decoder goes on drawing from), and their seeds."""
        prompts = arguments.prompts(prompt)
        negatives = arguments.negative_prompts(negative_prompt, len(prompts))
        seeds = arguments.seeds(seed, len(prompts) * num_images)
        generators = [Generator(each) for each in seeds]
        scale = arguments.scale("prior_guidance_scale", guidance_scale)
        for name in ("text_encoder", "prior_step"):
            self.bundle.component(name)
        arguments.whole("prior_num_inference_steps", steps, 1, arguments.MAX_STEPS)
        table = schedulers.unclip(self.bundle.manifest.schedulers["prior"], steps)
        embeddings = prior.embed(
            self._stages,
            self._tokenizer,
            table,
            _repeat(prompts, num_images),
            None if negatives is None else _repeat(negatives, num_images),
            generators,
            guidance_scale=scale,
            at_once=batch_size,
            on_step=self._on_step(callback, table.timesteps),
        )
        return embeddings, generators, seeds

    def _given(
        self,
        image_embeds: Embeddings | Array,
        negative_image_embeds: Array | None,
        prompt: object,
        negative_prompt: object,
        num_images: int,
    ) -> Embeddings:
        """Embeddings that the caller has, checked, one a picture."""
        if prompt is not None or negative_prompt is not None:
            raise InputError("Both a prompt and image_embeds were given; expected one of them.")
        if isinstance(image_embeds, Embeddings):
            if negative_image_embeds is not None:
                raise InputError("image_embeds is a pair from embed() already; leave negative_image_embeds out.")
            negative_image_embeds = image_embeds.negative_image_embeds
            image_embeds = image_embeds.image_embeds
        wide = self.bundle.manifest.geometry["embedding_dim"]
        embeds = _embedding("image_embeds", image_embeds, wide)
        if negative_image_embeds is None:
            zero = self.bundle.constants().get("zero_image_embeds")
            if zero is None:
                raise InputError("The bundle has no zero-image embedding (no prior); pass negative_image_embeds too.")
            negative_image_embeds = np.repeat(zero, len(embeds), axis=0)
        negatives = _embedding("negative_image_embeds", negative_image_embeds, wide)
        if len(negatives) != len(embeds):
            raise InputError(f"There are {len(embeds)} image_embeds and {len(negatives)} negative_image_embeds.")
        return Embeddings(np.repeat(embeds, num_images, axis=0), np.repeat(negatives, num_images, axis=0))

    def _decoder_table(self, steps: int, scheduler: str | Mapping[str, Any] | None, eta: float) -> schedulers.Table:
        """The decoder's coefficients. Raises InputError where the UNet has no variance that the scheduler needs."""
        self.bundle.component("decoder_step")
        arguments.whole("num_inference_steps", steps, 1, arguments.MAX_STEPS)
        config = self.bundle.manifest.schedulers["decoder"]
        if isinstance(scheduler, str):
            config = schedulers.switch(config, scheduler)
        elif scheduler is not None:
            config = dict(scheduler)
        table = schedulers.table(config, steps, eta=eta)
        if table.learned and not self.bundle.manifest.geometry["learned_variance"]:
            raise InputError("The scheduler asks for a learned variance and this UNet has none; choose fixed_small.")
        return table

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Latent channels, height and width of a picture of `height` x `width` pixels, checked."""
        self.bundle.component("decoder_step")
        manifest = self.bundle.manifest
        pixels = [
            manifest.geometry["default_size"]
            if side is None
            else arguments.whole(name, side, 1, manifest.limits["max_size"])
            for name, side in (("height", height), ("width", width))
        ]
        size = decoder.latent_size(pixels[0], pixels[1], manifest.geometry["downscale"])
        return manifest.geometry["latent_channels"], *size

    @staticmethod
    def _check_counts(num_images: int, batch_size: int | None) -> None:
        arguments.whole("num_images_per_prompt", num_images, 1, arguments.MAX_PICTURES)
        if batch_size is not None:
            arguments.whole("batch_size", batch_size, 1, arguments.MAX_PICTURES)

    def _on_step(self, callback: Callback | None, timesteps: NDArray[np.int64]) -> OnStep | None:
        """Dress a user's callback for a backend's loop."""
        if callback is None:
            return None

        def on_step(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
            tensors = {"latents": state["latents"], "x0": state["x0_before"]}
            replaced = callback(self, step, int(timesteps[step]), tensors)
            if not replaced or "latents" not in replaced:
                return None
            latents = np.asarray(replaced["latents"], np.float32)
            if latents.shape != state["latents"].shape:
                raise InputError(f"The callback returned latents {latents.shape}; expected {state['latents'].shape}.")
            return {"latents": latents}

        return on_step

    def _images(self, latents: Floats, output_type: OutputType) -> list[PIL.Image.Image] | Floats:
        if output_type == "latent":
            return latents
        pixels = decoder.to_pixels(self._stages, latents)
        return to_pil(pixels) if output_type == "pil" else pixels


def _repeat(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]


def _embedding(name: str, value: Array, wide: int) -> Floats:
    array = np.asarray(value)
    if array.ndim != 2 or array.shape[1] != wide or not len(array) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} has shape {array.shape} and type {array.dtype}; expected floats (n, {wide}).")
    if not np.isfinite(array).all():
        raise InputError(f"{name} has values that are not finite.")
    return array.astype(np.float32)
