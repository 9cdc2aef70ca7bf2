"""Who paints the cases: kandinsky22 or diffusers, one method a task, so that both are scored alike."""

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kandinsky22 import Pipeline
from recipe import drawing

SIDE = drawing.PICTURE_SIZE

Pictures = NDArray[np.float32]
"""(n, H, W, 3), values 0..1."""


class Painter(Protocol):
    """Paints lists of prompts with their seeds; a scheduler's name and its steps come last."""

    def text2img(self, prompts: list[str], seeds: list[int], scheduler: str, steps: int) -> Pictures:
        """Pictures of prompts."""
        ...

    def controlnet(
        self, prompts: list[str], hints: list[Image.Image], seeds: list[int], scheduler: str, steps: int
    ) -> Pictures:
        """Pictures of prompts and depth maps (RGB)."""
        ...

    def inpaint(
        self,
        prompts: list[str],
        images: list[Image.Image],
        masks: list[Image.Image],
        seeds: list[int],
        scheduler: str,
        steps: int,
    ) -> Pictures:
        """Images (RGB) repainted where masks (L) are white."""
        ...


class Runtime:
    """Paints with kandinsky22."""

    def __init__(self, bundle: Path, backend: str) -> None:
        self.pipe = Pipeline.load(bundle, backend)

    def text2img(self, prompts: list[str], seeds: list[int], scheduler: str, steps: int) -> Pictures:
        """See `Painter`."""
        return np.asarray(self.pipe(prompts, seed=seeds, **_arguments(scheduler, steps)).images)

    def controlnet(
        self, prompts: list[str], hints: list[Image.Image], seeds: list[int], scheduler: str, steps: int
    ) -> Pictures:
        """See `Painter`."""
        arguments = _arguments(scheduler, steps)
        cases = zip(prompts, hints, seeds, strict=True)
        return np.concatenate([self.pipe.controlnet(p, hint, seed=s, **arguments).images for p, hint, s in cases])

    def inpaint(
        self,
        prompts: list[str],
        images: list[Image.Image],
        masks: list[Image.Image],
        seeds: list[int],
        scheduler: str,
        steps: int,
    ) -> Pictures:
        """See `Painter`."""
        arguments = _arguments(scheduler, steps)
        cases = zip(prompts, images, masks, seeds, strict=True)
        return np.concatenate([self.pipe.inpaint(p, i, m, seed=s, **arguments).images for p, i, m, s in cases])


def _arguments(scheduler: str, steps: int) -> dict[str, Any]:
    return {
        "height": SIDE,
        "width": SIDE,
        "scheduler": scheduler,
        "num_inference_steps": steps,
        "output_type": "np",
    }


class Diffusers:
    """Paints with diffusers' own pipelines, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.prior = _silent(KandinskyV22PriorPipeline.from_pretrained(checkpoint / "prior"))
        self.load = cache(self._load)

    def text2img(self, prompts: list[str], seeds: list[int], scheduler: str, steps: int) -> Pictures:
        """See `Painter`."""
        pipeline = self.load(KandinskyV22Pipeline, "decoder", scheduler)
        return self._paint(pipeline, prompts, seeds, steps)

    def controlnet(
        self, prompts: list[str], hints: list[Image.Image], seeds: list[int], scheduler: str, steps: int
    ) -> Pictures:
        """See `Painter`."""
        pipeline = self.load(KandinskyV22ControlnetPipeline, "controlnet-depth", scheduler)
        hint = torch.from_numpy(np.stack([np.asarray(picture) for picture in hints])).permute(0, 3, 1, 2) / 255
        return self._paint(pipeline, prompts, seeds, steps, hint=hint)

    def inpaint(
        self,
        prompts: list[str],
        images: list[Image.Image],
        masks: list[Image.Image],
        seeds: list[int],
        scheduler: str,
        steps: int,
    ) -> Pictures:
        """See `Painter`. One picture a call: diffusers takes the first image and mask of a batch for all of it."""
        pipeline = self.load(KandinskyV22InpaintPipeline, "inpaint", scheduler)
        cases = zip(prompts, images, masks, seeds, strict=True)
        parts = [self._paint(pipeline, [p], [s], steps, image=i, mask_image=m) for p, i, m, s in cases]
        return np.concatenate(parts)

    def _load(self, kind: type[DiffusionPipeline], folder: str, scheduler: str) -> DiffusionPipeline:
        pipeline = _silent(kind.from_pretrained(self.checkpoint / folder))
        config = dict(pipeline.scheduler.config)
        if scheduler == "DDIM":
            # DDIM has no learned variance, and fails in diffusers where its config says so.
            del config["variance_type"]
        pipeline.scheduler = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[scheduler].from_config(config)
        return pipeline

    def _paint(
        self, pipeline: DiffusionPipeline, prompts: list[str], seeds: list[int], steps: int, **inputs: Any
    ) -> Pictures:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        embeds, negative = self.prior(prompts, generator=generators, return_dict=False)
        return pipeline(
            image_embeds=embeds,
            negative_image_embeds=negative,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
            **inputs,
        ).images


def _silent(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures (n, 3, H, W) with values 0..1 as 8-bit ones, so that every painter is given the same."""
    pixels = (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return [Image.fromarray(picture) for picture in pixels]
