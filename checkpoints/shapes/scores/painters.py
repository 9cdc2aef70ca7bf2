"""Who paints the cases: kandinsky22 or diffusers, one method a task, so that both are scored alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kandinsky22 import Output, Pipeline
from recipe import drawing

SIDE = drawing.PICTURE_SIZE

Pictures = NDArray[np.float32]
"""(n, H, W, 3), values 0..1."""

Part = str | Image.Image
"""What is mixed: a prompt or a picture."""

INPAINT_GUIDANCE = 1.0
"""Of prior and decoder, 4 elsewhere: guidance overshoots, and MoVQ's norms carry it into the kept area."""


@dataclass(frozen=True)
class Run:
    """How pictures are painted: one for each seed, with a scheduler of this name and so many steps."""

    seeds: list[int]
    scheduler: str
    steps: int

    def singles(self) -> Iterator["Run"]:
        """A run for each picture."""
        return (replace(self, seeds=[seed]) for seed in self.seeds)


class Painter(Protocol):
    """Paints cases. Lists of inputs have one for each picture of the run."""

    def text2img(self, prompts: list[str], run: Run) -> Pictures:
        """Pictures of prompts."""
        ...

    def controlnet(self, prompts: list[str], hints: list[Image.Image], run: Run) -> Pictures:
        """Pictures of prompts and depth maps (RGB)."""
        ...

    def inpaint(
        self, prompts: list[str], images: list[Image.Image], masks: list[Image.Image], run: Run, *, overlay: bool
    ) -> Pictures:
        """Images (RGB) repainted where masks (L) are white; `overlay` puts their own pixels back elsewhere."""
        ...

    def img2img(self, prompts: list[str], images: list[Image.Image], strength: float, run: Run) -> Pictures:
        """Images (RGB) changed towards prompts."""
        ...

    def mix(self, pairs: list[tuple[Part, Part]], weights: tuple[float, float], run: Run) -> Pictures:
        """Pictures of the weighted sums of two embeddings."""
        ...


class Runtime:
    """Paints with kandinsky22."""

    def __init__(self, bundle: Path, backend: str) -> None:
        self.pipe = Pipeline.load(bundle, backend)

    def text2img(self, prompts: list[str], run: Run) -> Pictures:
        """See `Painter`."""
        return self._paint(self.pipe, run, prompts)

    def controlnet(self, prompts: list[str], hints: list[Image.Image], run: Run) -> Pictures:
        """See `Painter`."""
        return self._paint(self.pipe.controlnet, run, prompts, hints)

    def inpaint(
        self, prompts: list[str], images: list[Image.Image], masks: list[Image.Image], run: Run, *, overlay: bool
    ) -> Pictures:
        """See `Painter`."""
        guidance = {"guidance_scale": INPAINT_GUIDANCE, "prior_guidance_scale": INPAINT_GUIDANCE}
        return self._paint(self.pipe.inpaint, run, prompts, images, masks, overlay=overlay, **guidance)

    def img2img(self, prompts: list[str], images: list[Image.Image], strength: float, run: Run) -> Pictures:
        """See `Painter`."""
        return self._paint(self.pipe.img2img, run, prompts, images, strength=strength)

    def mix(self, pairs: list[tuple[Part, Part]], weights: tuple[float, float], run: Run) -> Pictures:
        """See `Painter`. One picture a call: a call is one mix."""
        cases = zip(pairs, run.singles(), strict=True)
        return np.concatenate([self._paint(self.pipe.mix, one, pair, weights) for pair, one in cases])

    @staticmethod
    def _paint(task: Callable[..., Output], run: Run, *inputs: Any, **options: Any) -> Pictures:
        steps = {"scheduler": run.scheduler, "num_inference_steps": run.steps}
        out = task(*inputs, seed=run.seeds, height=SIDE, width=SIDE, output_type="np", **steps, **options)
        return np.asarray(out.images)


class Diffusers:
    """Paints with diffusers' own pipelines, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.prior = _silent(KandinskyV22PriorPipeline.from_pretrained(checkpoint / "prior"))
        self.load = cache(self._load)

    def text2img(self, prompts: list[str], run: Run) -> Pictures:
        """See `Painter`."""
        return self._paint(KandinskyV22Pipeline, "decoder", prompts, run)

    def controlnet(self, prompts: list[str], hints: list[Image.Image], run: Run) -> Pictures:
        """See `Painter`."""
        hint = torch.from_numpy(np.stack([np.asarray(picture) for picture in hints])).permute(0, 3, 1, 2) / 255
        return self._paint(KandinskyV22ControlnetPipeline, "controlnet-depth", prompts, run, hint=hint)

    def inpaint(
        self, prompts: list[str], images: list[Image.Image], masks: list[Image.Image], run: Run, *, overlay: bool
    ) -> Pictures:
        """See `Painter`. One picture a call: diffusers takes the first image and mask of a batch for all of it."""
        parts = []
        for prompt, image, mask, one in zip(prompts, images, masks, run.singles(), strict=True):
            inputs = {"image": image, "mask_image": mask, "guidance": INPAINT_GUIDANCE}
            painted = self._paint(KandinskyV22InpaintPipeline, "inpaint", [prompt], one, **inputs)
            if overlay:
                (picture,) = VaeImageProcessor.numpy_to_pil(painted)
                painted = np.asarray(VaeImageProcessor().apply_overlay(mask, image, picture), np.float32)[None] / 255
            parts.append(painted)
        return np.concatenate(parts)

    def img2img(self, prompts: list[str], images: list[Image.Image], strength: float, run: Run) -> Pictures:
        """See `Painter`."""
        return self._paint(KandinskyV22Img2ImgPipeline, "decoder", prompts, run, image=images, strength=strength)

    def mix(self, pairs: list[tuple[Part, Part]], weights: tuple[float, float], run: Run) -> Pictures:
        """See `Painter`. One picture a call: a call is one mix."""
        parts = []
        for pair, one in zip(pairs, run.singles(), strict=True):
            (generator,) = generators = _generators(one)
            blended = self.prior.interpolate(list(pair), list(weights), generator=generator)
            embeds = blended.image_embeds, blended.negative_image_embeds
            parts.append(self._decode(KandinskyV22Pipeline, "decoder", embeds, generators, one))
        return np.concatenate(parts)

    def _load(self, kind: type[DiffusionPipeline], folder: str, scheduler: str) -> DiffusionPipeline:
        pipeline = _silent(kind.from_pretrained(self.checkpoint / folder))
        config = dict(pipeline.scheduler.config)
        if scheduler != "DDPM":
            # The others have no learned variance, and fail in diffusers where their config says so.
            del config["variance_type"]
        kinds = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler, "DPM++ Karras": DPMSolverMultistepScheduler}
        levels = {"use_karras_sigmas": True} if scheduler == "DPM++ Karras" else {}
        pipeline.scheduler = kinds[scheduler].from_config(config, **levels)
        return pipeline

    def _paint(
        self,
        kind: type[DiffusionPipeline],
        folder: str,
        prompts: list[str],
        run: Run,
        guidance: float = 4.0,
        **inputs: Any,
    ) -> Pictures:
        generators = _generators(run)
        embeds = self.prior(prompts, generator=generators, guidance_scale=guidance, return_dict=False)
        return self._decode(kind, folder, embeds, generators, run, guidance_scale=guidance, **inputs)

    def _decode(
        self,
        kind: type[DiffusionPipeline],
        folder: str,
        embeds: tuple[Tensor, Tensor],
        generators: list[torch.Generator],
        run: Run,
        **inputs: Any,
    ) -> Pictures:
        return self.load(kind, folder, run.scheduler)(
            image_embeds=embeds[0],
            negative_image_embeds=embeds[1],
            height=SIDE,
            width=SIDE,
            num_inference_steps=run.steps,
            generator=generators,
            output_type="np",
            **inputs,
        ).images


def _generators(run: Run) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in run.seeds]


def _silent(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures (n, 3, H, W) with values 0..1 as 8-bit ones, so that every painter is given the same."""
    pixels = (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return [Image.fromarray(picture) for picture in pixels]
