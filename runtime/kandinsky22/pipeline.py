"""`Pipeline`: the tasks that a user asks for, each a few lines that read like its recipe."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kandinsky22 import backends, batching, checks, memory, schedulers
from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import OnStep, Settings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import STEP_SCHEDULERS
from kandinsky22.components import Components
from kandinsky22.conditioning.sources import EmbeddingSource, EmbeddingSources
from kandinsky22.errors import InputError
from kandinsky22.images import reading
from kandinsky22.images.reading import Picture
from kandinsky22.images.writing import to_pil
from kandinsky22.options import Callback, Options, OutputType, PriorOptions, completed
from kandinsky22.request import resolve, tasks
from kandinsky22.request.tasks import Task
from kandinsky22.sampling import decoder, guidance, movq
from kandinsky22.schedulers import configs, schedule


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

    def __init__(self, stages: Components) -> None:
        self.bundle = stages.bundle
        self._components = stages

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        low_memory: bool = False,
        memory_limit: float | Literal["auto"] | None = "auto",
    ) -> Pipeline:
        """Open the bundle in folder `path`.

        Args:
            path: a folder that kandinsky22-export wrote.
            backend: "auto" (the fastest that can run here), "tensorrt", "openvino" or "onnxruntime".
            precision: "auto" (the backend's best), "fp32" or "bf16".
            threads: processor threads; None leaves it to the backend.
            low_memory: load each component when its stage begins and free it when it ends, so that only the largest
                one must fit. Without it, components are loaded at their first use and kept.
            memory_limit: GiB that a task may take by the estimate of `kandinsky22.memory`; a task that would take more
                is refused before it starts. "auto": what this machine has to spare now; None: no limit.

        Raises:
            BundleError: `path` is no bundle, or is incomplete or altered.
            BackendError: the backend is unknown, not installed, or cannot run here.
            InputError: an argument has an impossible value.
        """
        checks.choice("precision", precision, ("auto", "fp32", "bf16"))
        if threads is not None:
            checks.whole("threads", threads, 1, 1024)
        limit = memory.limit(memory_limit)
        bundle = Bundle(path)
        settings = Settings(precision, threads)
        return cls(
            Components(bundle, backends.get(backend, bundle), settings, low_memory=low_memory, memory_limit=limit)
        )

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Text to image. The same seed gives the same picture as diffusers with a CPU generator.

        Args:
            prompt: one or several; each gives `num_images_per_prompt` pictures. None where `image_embeds` is given.
            negative_prompt: what to lead away from: None, one for all prompts, or one a prompt. None and "" differ:
                see `kandinsky22.conditioning.prior.embed`.
            options: see `kandinsky22.options.Options`; every task takes them.

        Raises:
            InputError: an argument is outside what is possible; the message says what was expected.
            BundleError: the bundle lacks a component that this needs.
        """
        asked = completed(options)
        return self._paint(tasks.text_to_image(), self._source(prompt, negative_prompt, asked), asked)

    def img2img(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        strength: float = checks.STRENGTH,
        **options: Unpack[Options],
    ) -> Output:
        """Change a picture towards a prompt, as KandinskyV22Img2ImgPipeline does.

        Args:
            prompt, negative_prompt, options: as in `__call__`.
            image: one picture for all prompts, or a list of one a prompt; see `kandinsky22.images.reading` for what is
                read. It is resized to `height` x `width`. A float array (n, C, h, w) is taken for clean latents.
            strength: 0..1: how much of the picture is given up; the last int(steps · strength) steps are run.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        asked, task = completed(options), tasks.image_to_image(image, strength)
        return self._paint(task, self._source(prompt, negative_prompt, asked), asked)

    def inpaint(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask_image: Picture | Sequence[Picture] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        overlay: bool = False,
        **options: Unpack[Options],
    ) -> Output:
        """Repaint part of a picture, as KandinskyV22InpaintPipeline does.

        Args:
            prompt, negative_prompt, options: as in `__call__`.
            image: one picture for all prompts, or a list of one a prompt; see `kandinsky22.images.reading`.
            mask_image: masks of the same sizes, white where the picture is repainted, black where it is kept.
            overlay: put the picture's own pixels back where the mask is black. Without it they have been through MoVQ,
                and within some 16 pixels of the mask they are painted anew.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        asked, task = completed(options), tasks.inpainting(image, mask_image, overlay=overlay)
        if overlay and asked["output_type"] == "latent":
            raise InputError(
                "overlay puts pixels back and latents have none; choose another output_type, or no overlay."
            )
        return self._paint(task, self._source(prompt, negative_prompt, asked), asked)

    def controlnet(
        self,
        prompt: str | Sequence[str] | None = None,
        hint: Picture | Sequence[Picture] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        strength: float | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Follow a depth map, as KandinskyV22ControlnetPipeline and, with `image`, its img2img sister do.

        Args:
            prompt, negative_prompt, options: as in `__call__`.
            hint: depth maps, one for all prompts or one a prompt: near is bright; see `kandinsky22.images.reading`.
                `kandinsky22.images.depth` makes them from pictures.
            image: pictures to begin from, as in `img2img`; None begins from noise.
            strength: as in `img2img`, with `image` alone; None is 0.3 there.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        asked, task = completed(options), tasks.controlled(hint, image, strength)
        return self._paint(task, self._source(prompt, negative_prompt, asked), asked)

    def mix(
        self,
        images_and_prompts: Sequence[str | Picture],
        weights: Sequence[float],
        negative_prompt: str = "",
        *,
        negative_prior_prompt: str | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Blend prompts and pictures: a decoder run on the embeddings of `interpolate`, whose arguments it takes."""
        asked = completed(options)
        source = self._sources.blend(images_and_prompts, weights, negative_prompt, negative_prior_prompt, asked)
        return self._paint(tasks.text_to_image(), source, asked)

    def variations(self, image: Picture, **options: Unpack[Options]) -> Output:
        """Pictures of what `image` shows: `mix` of it alone, in which the prior is not run.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        return self.mix([_no_prompt(image)], [1.0], **options)

    def embed(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        **options: Unpack[PriorOptions],
    ) -> Embeddings:
        """Image embeddings of prompts: the text encoder and the prior alone. Arguments as in `__call__`."""
        return self._embedded(self._sources.prompts(prompt, negative_prompt, completed(options, PriorOptions)))

    def emb2emb(
        self,
        prompt: str | Sequence[str],
        image: Picture | Sequence[Picture],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        strength: float = checks.STRENGTH,
        **options: Unpack[PriorOptions],
    ) -> Embeddings:
        """Embeddings of pictures, changed towards prompts, as KandinskyV22PriorEmb2EmbPipeline makes them.

        Args:
            prompt, negative_prompt, options: as in `__call__`.
            image: one picture for all prompts, or a list of one a prompt; or embeddings, a float array (n, E).
            strength: 0..1: how much of the picture is given up; the last int(steps · strength) steps are run.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        asked = completed(options, PriorOptions)
        return self._embedded(self._sources.pictures(prompt, image, negative_prompt, strength, asked))

    def interpolate(
        self,
        images_and_prompts: Sequence[str | Picture],
        weights: Sequence[float],
        negative_prompt: str = "",
        *,
        negative_prior_prompt: str | None = None,
        **options: Unpack[PriorOptions],
    ) -> Embeddings:
        """A weighted sum of image embeddings, as KandinskyV22PriorPipeline.interpolate makes it.

        Args:
            images_and_prompts: strings are prompts, which go through the prior; anything else is a picture (a path must
                be a `pathlib.Path`), which goes through CLIP's image encoder.
            weights: one finite number each; they need not sum to 1.
            negative_prompt: whose embedding the decoder is led away from; "" takes the all-zero image's.
            negative_prior_prompt: what the prior is led away from.
            options: as in `embed`.

        Raises:
            InputError, BundleError: as in `__call__`.
        """
        asked = completed(options, PriorOptions)
        source = self._sources.blend(images_and_prompts, weights, negative_prompt, negative_prior_prompt, asked)
        return self._embedded(source)

    def close(self) -> None:
        """Free every component. The pipeline loads them again when it is used again."""
        self._components.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @functools.cached_property
    def _sources(self) -> EmbeddingSources:
        return EmbeddingSources(self._components, self._on_step)

    def _embedded(self, source: EmbeddingSource) -> Embeddings:
        """What a source gives, where that is all that was asked for."""
        memory.check(self._components, memory.Job(source.components))
        return source.embed(slice(None))

    def _source(self, prompt: object, negative_prompt: object, asked: Options) -> EmbeddingSource:
        """Where the embeddings come from: prompts, or the caller."""
        image, strength = asked["prior_image"], asked["prior_strength"]
        if image is None and strength is not None:
            raise InputError("prior_strength was given without a prior_image to begin from; give both, or neither.")
        if asked["image_embeds"] is None and image is not None:
            strength = checks.STRENGTH if strength is None else strength
            return self._sources.pictures(prompt, image, negative_prompt, strength, asked, "prior_image")
        if asked["image_embeds"] is None:
            return self._sources.prompts(prompt, negative_prompt, asked)
        if prompt is not None or negative_prompt is not None:
            raise InputError("Both a prompt and image_embeds were given; expected one of them.")
        return self._sources.given(asked)

    def _paint(self, task: Task, source: EmbeddingSource, asked: Options) -> Output:
        """Check, embed, encode the task's inputs, denoise in batches, decode: every task's way to its pictures."""
        started = time.perf_counter()
        self._components.timings.clear()
        checks.choice("output_type", asked["output_type"], ("pil", "np", "latent"))
        finish = () if asked["output_type"] == "latent" else ("movq_decoder",)
        components = (*source.components, *task.components, *finish)
        for name in components:
            self.bundle.component(name)  # its lack should not show after the work
        shape = self._latent_shape(asked)
        scale = checks.scale("guidance_scale", asked["guidance_scale"])
        interval = checks.interval("guidance_interval", asked["guidance_interval"])
        table = task.shortened(self._decoder_table(task, asked))
        resolve.quantile_ranks(self.bundle.manifest, table, shape)  # nor should a size that is too large for them
        pictures = len(source.generators)
        noise = _given_noise(asked, (pictures, *shape))
        task.check(self.bundle.manifest, pictures // asked["num_images_per_prompt"], shape)
        batches = batching.parts(pictures, asked["batch_size"])
        at_once = min(pictures, batches[0].stop)
        branches = {1 + guided for _, guided in guidance.guided_parts(len(table.coefficients), scale, interval)}
        memory.check(self._components, memory.Job(components, shape[1:], pictures, at_once, branches))

        one_by_one = asked["callback_on_batch_end"] is not None
        together = None if one_by_one else source.embed(slice(None))
        conditions = tasks.conditions(self._components, task, table, shape, pictures, noise)

        def denoised(part: slice) -> Floats:
            return decoder.sample(
                self._components,
                table,
                source.embed(part) if together is None else together.part(part),
                source.generators[part],
                shape,
                guidance_scale=scale,
                guidance_interval=interval,
                conditions=conditions.part(part),
                on_step=self._on_step(asked["callback_on_step_end"], table.timesteps),
            )

        images = self._finished(task, batches, denoised, pictures, asked)
        return Output(images, source.seeds, {**self._components.timings, "total": time.perf_counter() - started})

    def _finished(
        self, task: Task, batches: Sequence[slice], denoised: Callable[[slice], Floats], count: int, asked: Options
    ) -> list[PIL.Image.Image] | Floats:
        """Pictures of all batches: decoded together, or one batch after the other where the caller waits for each."""
        on_batch, output_type = asked["callback_on_batch_end"], asked["output_type"]
        if on_batch is None:
            latents = np.concatenate([denoised(part) for part in batches])
            return self._images(task, latents, range(count), count, output_type)
        finished: list[Any] = []
        for part in batches:
            of = range(count)[part]
            finished.append(self._images(task, denoised(part), of, count, output_type))
            on_batch(of.start, finished[-1])
        return [each for batch in finished for each in batch] if output_type == "pil" else np.concatenate(finished)

    def _decoder_table(self, task: Task, asked: Options) -> schedule.Schedule:
        """The decoder's coefficients. Raises InputError where the UNet has no variance that the scheduler needs."""
        config, scheduler = self.bundle.manifest.schedulers[STEP_SCHEDULERS[task.component]], asked["scheduler"]
        if isinstance(scheduler, str):
            config = configs.switch(config, scheduler)
        elif scheduler is not None:
            config = dict(scheduler)
        steps = checks.whole("num_inference_steps", asked["num_inference_steps"], 1, checks.MAX_STEPS)
        table = schedulers.solve(config, steps, eta=asked["eta"])
        if table.learned and not self.bundle.manifest.geometry["learned_variance"]:
            raise InputError("The scheduler asks for a learned variance and this UNet has none; choose fixed_small.")
        return table

    def _latent_shape(self, asked: Options) -> tuple[int, int, int]:
        """Latent channels, height and width of a picture, checked."""
        manifest = self.bundle.manifest
        pixels = [
            manifest.default_size if side is None else checks.whole(name, side, 1, manifest.limits["max_size"])
            for name, side in (("height", asked["height"]), ("width", asked["width"]))
        ]
        size = resolve.latent_size(pixels[0], pixels[1], manifest.downscale)
        return manifest.geometry["latent_channels"], *size

    def _on_step(self, callback: Callback | None, timesteps: NDArray[np.int64]) -> OnStep | None:
        """Dress a user's callback for a backend's loop."""
        if callback is None:
            return None

        def on_step(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
            tensors = {"latents": state["latents"], "x0": state["x0_before"]}
            replaced = callback(self, step, int(timesteps[step]), dict(tensors))
            if replaced is None:
                return None
            if not isinstance(replaced, Mapping):
                raise InputError(f"The callback returned {type(replaced).__name__}; expected None or {{'latents': …}}.")
            for name, value in replaced.items():
                # diffusers' callbacks return all that they were given, of which the rest is as it was.
                if name != "latents" and not (name in tensors and value is tensors[name]):
                    raise InputError(f"The callback returned {name!r}; only 'latents' can be replaced: leave it out.")
            if "latents" not in replaced:
                return None
            latents = np.asarray(replaced["latents"], np.float32)
            if latents.shape != state["latents"].shape:
                raise InputError(f"The callback returned latents {latents.shape}; expected {state['latents'].shape}.")
            return {"latents": latents}

        return on_step

    def _images(
        self, task: Task, latents: Floats, of: range, count: int, output_type: OutputType
    ) -> list[PIL.Image.Image] | Floats:
        """What comes out for the latents of some pictures (`of`) of a call for `count`."""
        if output_type == "latent":
            return latents
        pixels = movq.to_pixels(self._components, latents)
        if task.overlay:
            pixels = tasks.overlaid(task, pixels, of, count)
        return to_pil(pixels) if output_type == "pil" else pixels


def _given_noise(asked: Options, shape: tuple[int, ...]) -> Floats | None:
    """The caller's `latents`, checked."""
    given = asked["latents"]
    return None if given is None else reading.floats("latents", given, f"{shape}, noise", shape)


def _no_prompt(image: Picture) -> Picture:
    """A picture to mix, where a string is a path and not a prompt."""
    return Path(image) if isinstance(image, str) else image
