"""`Pipeline`: the tasks that a user asks for. A call is a request, which is resolved, embedded, sampled, decoded."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack

import numpy as np
import PIL.Image

from kandinsky22 import backends, checks, memory
from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import Availability, Settings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import PRECISIONS, Role
from kandinsky22.bundle.reading import VERIFY, Verify
from kandinsky22.callbacks import NO_CALLBACKS, Callbacks, OnBatch
from kandinsky22.components import Components, Run
from kandinsky22.conditioning import image_encoder
from kandinsky22.conditioning.sources import EmbeddingSource
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.errors import Cancelled
from kandinsky22.images.writing import to_pil
from kandinsky22.memory import Demand
from kandinsky22.request.job import Job, Sampling
from kandinsky22.request.parameters import Parameters
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve
from kandinsky22.request.signatures import bind, takes
from kandinsky22.rows import Pictures
from kandinsky22.sampling import conditions, decoder, movq
from kandinsky22.sampling.preview import LatentsToRgb, latents_to_rgb

log = logging.getLogger(__name__)
logging.getLogger("kandinsky22").addHandler(logging.NullHandler())  # silent as a library

Images = list[PIL.Image.Image] | Floats


@dataclass(frozen=True)
class Output:
    """What a task returns.

    `images`: PIL pictures; or float32 (n, H, W, 3) in 0..1 for "np"; or latents (n, C, h, w) for "latent".
    `seeds`: one a picture. Pictures that a callback cancelled are in neither. `timings`: seconds by component, of
    loading ("load"), of waiting for other threads ("wait", where there were any), and in all ("total").
    """

    images: Images
    seeds: list[int]
    timings: dict[str, float]


class Pipeline:
    """A bundle on a backend, ready to make pictures. Use `Pipeline.load`; free it with `close` or a `with` block.

    It may be shared by threads: their calls take turns, component by component, and each returns its own pictures and
    timings.
    """

    def __init__(self, components: Components) -> None:
        self.bundle = components.bundle
        self._components = components

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
        verify: Verify = "auto",
    ) -> Pipeline:
        """Open the bundle in folder `path`.

        Args:
            path: a folder that kandinsky22-export wrote.
            backend: "auto" (the fastest that can run here), "tensorrt", "openvino" or "onnxruntime".
            precision: "auto" (the backend's best for the bundle), "fp32", "bf16" or, of a quantised bundle, "int8".
            threads: processor threads; None leaves it to the backend.
            low_memory: load each component when its stage begins and free it when it ends, so that only the largest
                one must fit. Without it, components are loaded at their first use and kept.
            memory_limit: GiB that a task may take by the estimate of `kandinsky22.memory`; a task that would take more
                is refused before it starts. "auto": what this machine has to spare now; None: no limit.
            verify: "auto" compares the SHA-256 of a file when it is loaded, unless it was compared before and has not
                been written to since; "always" compares it at each load.

        Raises:
            BundleError: `path` is no bundle, or is incomplete or altered.
            BackendError: the backend is unknown, not installed, or cannot run here.
            InputError: an argument has an impossible value.
        """
        checks.choice("precision", precision, PRECISIONS)
        if threads is not None:
            checks.whole("threads", threads, 1, 1024)
        checks.choice("verify", verify, VERIFY)
        limit = memory.limit(memory_limit)
        bundle = Bundle(path, verify)
        chosen = backends.get(backend, bundle)
        settings = Settings(precision, threads, low_memory)
        pipe = cls(Components(bundle, chosen, settings, memory_limit=limit))
        found = pipe.backend
        log.info("backend %s %s in %s: %s", found.name, found.version, pipe.precision, found.reason)
        return pipe

    @classmethod
    def from_pretrained(cls, path: str | Path, backend: str = "auto", **settings: Any) -> Pipeline:
        """`load` under the name that diffusers' users expect: `path` is a bundle, not a checkpoint."""
        return cls.load(path, backend, **settings)

    @property
    def backend(self) -> Availability:
        """What runs the graphs."""
        return self._components.availability

    @property
    def precision(self) -> str:
        """What graphs are computed in: "fp32", "bf16" or "int8", or "bundle" where a GPU takes what was exported."""
        return self._components.precision

    @takes("text2img")
    def __call__(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Text to image. The same seed gives the same picture as diffusers with a CPU generator.

        Raises:
            InputError: an argument is outside what is possible; the message says what was expected.
            BundleError: the bundle lacks a component that this needs.
        """
        return self._made("text2img", inputs, parameters)

    @takes("img2img")
    def img2img(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Change a picture towards a prompt, as KandinskyV22Img2ImgPipeline does. Raises as `__call__`."""
        return self._made("img2img", inputs, parameters)

    @takes("inpaint")
    def inpaint(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Repaint part of a picture, as KandinskyV22InpaintPipeline does. Raises as `__call__`."""
        return self._made("inpaint", inputs, parameters)

    @takes("controlnet")
    def controlnet(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Follow a depth map, as KandinskyV22ControlnetPipeline and, with `image`, its img2img sister do.

        `kandinsky22.images.depth` makes depth maps of pictures. Raises as `__call__`.
        """
        return self._made("controlnet", inputs, parameters)

    @takes("mix")
    def mix(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Blend prompts and pictures: a decoder run on the embeddings of `interpolate`. Raises as `__call__`."""
        return self._made("mix", inputs, parameters)

    @takes("variations")
    def variations(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Output:
        """Pictures of what a picture shows: `mix` of it alone. Raises as `__call__`.

        Without a negative prompt the prior is not run; its noise is drawn all the same, as diffusers draws it.
        """
        return self._made("variations", inputs, parameters)

    @takes("embed")
    def embed(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Embeddings:
        """Image embeddings of prompts: the text encoder and the prior alone. Raises as `__call__`."""
        return self._embedded("embed", inputs, parameters)

    @takes("emb2emb")
    def emb2emb(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Embeddings:
        """Embeddings of pictures, changed towards prompts, as KandinskyV22PriorEmb2EmbPipeline makes them.

        Raises as `__call__`.
        """
        return self._embedded("emb2emb", inputs, parameters)

    @takes("interpolate")
    def interpolate(self, *inputs: Any, **parameters: Unpack[Parameters]) -> Embeddings:
        """A weighted sum of image embeddings, as KandinskyV22PriorPipeline.interpolate makes it.

        The decoder is led away from the embedding of `negative_prompt`; "" takes the all-zero image's. Raises as
        `__call__`.
        """
        return self._embedded("interpolate", inputs, parameters)

    def resolve(self, request: Request) -> Job:
        """Everything that is decided about a request before anything is loaded.

        Raises InputError where it asks for what cannot be, BundleError where the bundle lacks a component.
        """
        zero = self.bundle.constants().get("zero_image_embeds") if "image_embeds" in request.given else None
        return resolve(request, self.bundle.manifest, zero)

    def run(self, request: Request, callbacks: Callbacks = NO_CALLBACKS) -> Output | Embeddings:
        """Do what a request asks for: `Output` of a task that makes pictures, else `Embeddings`.

        Raises as `resolve`, `pictures` and `embeddings` do.
        """
        job = self.resolve(request)
        return self.pictures(job, callbacks) if job.sampling is not None else self.embeddings(job, callbacks)

    def pictures(self, job: Job, callbacks: Callbacks = NO_CALLBACKS) -> Output:
        """The pictures of a job that this pipeline resolved.

        Raises MemoryLimitError where they would take too much memory, BackendError where the backend fails, and what a
        callback raises.
        """
        started = time.perf_counter()
        if job.sampling is None:
            raise TypeError(f"{job.request.task.name} gives embeddings: ask for them with `embeddings`.")
        run = self._begin(job)
        pictures = Pictures(job.seeds)
        source = EmbeddingSource(run, job, lambda: self._tokenizer, pictures, callbacks)
        images = _sampled(run, job, job.sampling, source, pictures, callbacks)
        seeds = [job.seeds[place] for place in pictures.staying(range(len(job.seeds)))]
        return Output(images, seeds, {**run.timings, "total": time.perf_counter() - started})

    def embeddings(self, job: Job, callbacks: Callbacks = NO_CALLBACKS) -> Embeddings:
        """The embeddings (n, E) of a job that this pipeline resolved: those that its pictures would be made from.

        Raises as `pictures` does.
        """
        source = EmbeddingSource(self._begin(job), job, lambda: self._tokenizer, Pictures(job.seeds), callbacks)
        found = source.embed(range(len(job.seeds))).values()
        return Embeddings(
            np.concatenate([each.image_embeds for each in found]),
            np.concatenate([each.negative_image_embeds for each in found]),
        )

    def image_embeds(self, pictures: Iterable[PIL.Image.Image]) -> Floats:
        """CLIP's embeddings (n, E) float32 of n RGB pictures, by the bundle's image encoder.

        Raises BundleError where the bundle has none, and as `pictures` does.
        """
        run = self._components.run()
        run.require_memory(Demand((self.bundle.manifest.name_of(Role.IMAGE_ENCODER),)))
        return image_encoder.encode(run, pictures)

    def try_out(self, demand: Demand) -> None:
        """Raise what would end work before its first run, as far as little tells it, and run nothing.

        Raises MemoryLimitError where the components of `demand` would take too much memory, BundleError or
        BackendError where the smallest of them cannot be loaded; it is loaded then.
        """
        run = self._components.run()
        run.require_memory(demand)
        components = self.bundle.manifest.components
        with run.use(min(demand.components, key=lambda name: components[name].parameters)):
            log.debug("%s can be loaded", self.bundle.path)

    def preview(self, latents: Array, size: tuple[int, int] | None = None) -> list[PIL.Image.Image]:
        """Small pictures of latents, by a linear map to colours that the bundle has: no component is loaded or run.

        Args:
            latents: floats (n, C, h, w), as callbacks are given them. While a run lasts, `x0` shows what the picture
                will be; `latents` is under noise.
            size: width and height in pixels that the previews are resized to; None: one pixel a latent, w and h.

        Raises:
            BundleError: the bundle has no such map.
            InputError: `latents` or `size` is something else.
        """
        return self._latents_to_rgb.pictures(latents, size)

    def _begin(self, job: Job) -> Run:
        """What a job uses the components through, once it is known to fit into memory."""
        log.info("%s: %d picture(s) by %s", job.request.task.name, len(job.seeds), ", ".join(job.components))
        run = self._components.run()
        run.require_memory(job.demand)
        return run

    def close(self) -> None:
        """Free every component, once no other thread runs one. The pipeline loads them again when it is used again.

        Raises BackendError in a step callback, whose loop is still running.
        """
        self._components.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _made(self, task: str, inputs: tuple[Any, ...], parameters: Mapping[str, Any]) -> Output:
        request = Request.of(task, **bind(task, inputs, parameters))
        return self.pictures(self.resolve(request), self._callbacks(request))

    def _embedded(self, task: str, inputs: tuple[Any, ...], parameters: Mapping[str, Any]) -> Embeddings:
        request = Request.of(task, **bind(task, inputs, parameters))
        return self.embeddings(self.resolve(request), self._callbacks(request))

    def _callbacks(self, request: Request) -> Callbacks:
        names = ("callback_on_step_end", "prior_callback_on_step_end", "callback_on_batch_end")
        return Callbacks(self, *(request.given.get(name) for name in names))

    @functools.cached_property
    def _latents_to_rgb(self) -> LatentsToRgb:
        return latents_to_rgb(self.bundle)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bundle)


def _sampled(
    run: Run,
    job: Job,
    sampling: Sampling,
    source: EmbeddingSource,
    pictures: Pictures,
    callbacks: Callbacks,
) -> Images:
    """Pictures of all batches: decoded together, or one batch after the other where the caller waits for each.

    Where nobody waits, the prior is run for all pictures first.
    """
    places = range(len(job.seeds))
    together = source.embed(places) if callbacks.on_batch is None else None
    encoded = pictures.hold(conditions.encode(run, sampling, pictures.staying(places), len(places)))

    def denoised(batch: range) -> dict[int, Floats]:
        embeddings = source.embed(batch) if together is None else together
        staying = pictures.staying(batch)
        if not staying:
            return {}
        rows = decoder.begin(run, sampling, pictures, staying, embeddings, encoded)
        return decoder.sample(run, sampling, rows, callbacks.decoder(sampling.schedule.timesteps))

    finished: dict[int, Any] = pictures.hold({})
    for batch in (places[part] for part in job.batches):
        latents = denoised(batch)
        if callbacks.on_batch is None:
            finished.update(latents)
        elif latents:
            images = _images(run, job, sampling, latents)
            finished.update(zip(latents, images, strict=True))
            _hand_over(callbacks.on_batch, pictures, list(latents), images)
    if callbacks.on_batch is None:
        return _images(run, job, sampling, finished)
    pil = job.request.parameters["output_type"] == "pil"
    return list(finished.values()) if pil else np.stack(list(finished.values()))


def _hand_over(on_batch: OnBatch, pictures: Pictures, places: list[int], images: Images) -> None:
    """Tell a callback of a batch, in parts without a gap where pictures in between have ended."""
    starts = [row for row, place in enumerate(places) if row == 0 or place != places[row - 1] + 1]
    for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
        try:
            on_batch(places[start], images[start:stop])
        except Cancelled as asked:
            pictures.cancel(asked)


def _images(run: Run, job: Job, sampling: Sampling, latents: dict[int, Floats]) -> Images:
    """What comes out for the latents (C, h, w) of some of a job's pictures, by place."""
    output_type, stacked = job.request.parameters["output_type"], np.stack(list(latents.values()))
    if output_type == "latent":
        return stacked
    pixels = movq.to_pixels(run, stacked)
    if sampling.inputs.overlay:
        pixels = conditions.overlaid(sampling.inputs, pixels, list(latents), len(job.seeds))
    return to_pil(pixels) if output_type == "pil" else pixels
