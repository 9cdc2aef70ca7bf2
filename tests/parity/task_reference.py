"""The references of the tasks that begin from pictures: diffusers' own pipelines, one generator from prior to decoder.

diffusers 0.42 hands width and height to its image processor in the wrong order in the two pipelines that begin from a
picture: they are given swapped here, so that a picture of 64x192 comes out as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from diffusers.pipelines.kandinsky2_2 import (
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
)

from kandinsky22 import Pipeline
from kandinsky22.arrays import Floats

from .reference import PROMPT

Size = tuple[int, int]
"""Height and width, in pixels."""


@dataclass(frozen=True)
class TaskCase:
    """One call of a task. `task` is a method of `TaskReference` and, with `call`, of `TaskRun`."""

    task: str
    size: Size = (64, 64)
    strength: float = 0.6
    mask: str = "middle"
    negative_prompt: str | None = None
    steps: int = 6
    prior_steps: int = 3
    guidance: float = 4.0
    seed: int = 0
    scheduler: str = "DDPMScheduler"

    def __str__(self) -> str:
        default = TaskCase(self.task)
        names = ("size", "strength", "mask", "negative_prompt", "guidance", "seed", "scheduler")
        changed = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) != getattr(default, name)]
        return " ".join([self.task, *changed])


def photograph(size: Size, seed: int = 0) -> PIL.Image.Image:
    """A picture of a shape on a gradient, of another size than is asked for, so that resizing is compared too."""
    height, width = size[0] + 24, size[1] + 40
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    picture = PIL.Image.fromarray(ramp)
    left, top = 10 + 7 * seed, 14
    PIL.ImageDraw.Draw(picture).ellipse((left, top, left + width // 2, top + height // 2), fill=(230, 40, 30))
    return picture


def mask_of(kind: str, size: Size) -> PIL.Image.Image:
    """A mask of `photograph`'s size: "middle", "border" (touches two), "corner", "all", "speckled" or "colours"."""
    height, width = size[0] + 24, size[1] + 40
    mask = PIL.Image.new("L", (width, height))
    draw = PIL.ImageDraw.Draw(mask)
    boxes = {
        "middle": (width // 3, height // 3, 2 * width // 3, 2 * height // 3),
        "border": (0, height // 4, width, height // 2),
        "corner": (width // 2, height // 2, width, height),
        "all": (0, 0, width, height),
    }
    if kind in boxes:
        draw.rectangle(boxes[kind], fill=255)
    elif kind == "speckled":
        drawn = np.random.default_rng(0).random((height // 8, width // 8)) < 0.3
        mask = PIL.Image.fromarray((drawn * 255).astype(np.uint8)).resize((width, height), PIL.Image.Resampling.NEAREST)
    else:
        draw.ellipse(boxes["middle"], fill=200)
        mask = PIL.Image.merge("RGB", [mask, mask, mask.point(lambda value: value // 2)])
    return mask


def depth_of(size: Size) -> Floats:
    """A depth map (H, W) float32 of the size that is asked for: a near disc before a ramp."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    disc = np.hypot(rows - size[0] / 2, columns - size[1] / 2) < min(size) / 3
    depth: Floats = np.where(disc, 0.9, 0.5 * rows / size[0]).astype(np.float32)
    return depth


class TaskReference:
    """diffusers on a checkpoint folder that holds `prior`, `decoder`, `controlnet-depth` and `inpaint`."""

    def __init__(self, checkpoint: Path) -> None:
        load: Callable[..., Any] = lambda cls, *folder: cls.from_pretrained(Path(*folder))  # noqa: E731
        self.prior = load(KandinskyV22PriorPipeline, checkpoint, "prior")
        self.emb2emb_prior = KandinskyV22PriorEmb2EmbPipeline(**self.prior.components)
        self.image = load(KandinskyV22Img2ImgPipeline, checkpoint, "decoder")
        self.inpainting = load(KandinskyV22InpaintPipeline, checkpoint, "inpaint")
        self.controlled = load(KandinskyV22ControlnetPipeline, checkpoint, "controlnet-depth")
        self.controlled_image = KandinskyV22ControlnetImg2ImgPipeline(**self.controlled.components)
        self.config = dict(self.image.scheduler.config)
        for each in vars(self).values():
            if isinstance(each, diffusers.DiffusionPipeline):
                each.set_progress_bar_config(disable=True)

    def picture(self, case: TaskCase, **more: Any) -> Floats:
        """The picture (H, W, 3) of a case, values 0..1. `more` are further arguments of the pipeline."""
        generator = torch.Generator("cpu").manual_seed(case.seed)
        common = {
            "num_inference_steps": case.steps,
            "guidance_scale": case.guidance,
            "generator": generator,
            "output_type": "np",
            **more,
        }
        (pictures,) = getattr(self, f"_{case.task}")(case, generator, common)
        return np.asarray(pictures[0], np.float32)

    def scheduler(self, case: TaskCase) -> Any:
        """See `Reference.scheduler`; a DPM-Solver++ fails on the learned variance, too."""
        foreign = set() if case.scheduler == "DDPMScheduler" else {"variance_type"}
        config = {key: value for key, value in self.config.items() if key not in foreign}
        return getattr(diffusers, case.scheduler).from_config(config)

    def _embeds(self, case: TaskCase, generator: torch.Generator) -> dict[str, torch.Tensor]:
        embeds, negative = self.prior(
            PROMPT,
            negative_prompt=case.negative_prompt,
            num_inference_steps=case.prior_steps,
            generator=generator,
            return_dict=False,
        )
        return {"image_embeds": embeds, "negative_image_embeds": negative}

    def _run(self, pipeline: Any, case: TaskCase, common: dict[str, Any], swap: bool = False, **inputs: Any) -> Any:
        pipeline.scheduler = self.scheduler(case)
        height, width = reversed(case.size) if swap else case.size
        return pipeline(height=height, width=width, **{**inputs, **common}, return_dict=False)

    def _img2img(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        embeds = self._embeds(case, generator)
        image = photograph(case.size)
        return self._run(self.image, case, common, swap=True, image=image, strength=case.strength, **embeds)

    def _inpaint(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        inputs = {"image": photograph(case.size), "mask_image": mask_of(case.mask, case.size)}
        return self._run(self.inpainting, case, common, **inputs, **self._embeds(case, generator))

    def _hint(self, case: TaskCase) -> torch.Tensor:
        return torch.from_numpy(depth_of(case.size))[None, None].repeat(1, 3, 1, 1)

    def _controlnet(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        return self._run(self.controlled, case, common, hint=self._hint(case), **self._embeds(case, generator))

    def _controlnet_img2img(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        inputs = {"hint": self._hint(case), "image": photograph(case.size), "strength": case.strength}
        return self._run(self.controlled_image, case, common, swap=True, **inputs, **self._embeds(case, generator))

    def _mix(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        blended = self.prior.interpolate(
            [PROMPT, photograph(case.size), "a green star"],
            [0.4, 0.7, -0.1],
            num_inference_steps=case.prior_steps,
            generator=generator,
            negative_prompt=case.negative_prompt or "",
            negative_prior_prompt=None if case.negative_prompt is None else "a blue square",
        )
        return self._decode(case, common, blended.image_embeds, blended.negative_image_embeds)

    def _variations(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        image = photograph(case.size)
        blended = self.prior.interpolate([image], [1.0], num_inference_steps=25, generator=generator)
        return self._decode(case, common, blended.image_embeds, blended.negative_image_embeds)

    def _decode(self, case: TaskCase, common: dict[str, Any], embeds: torch.Tensor, negative: torch.Tensor) -> Any:
        decoder = diffusers.KandinskyV22Pipeline(**self.image.components)
        decoder.set_progress_bar_config(disable=True)
        return self._run(decoder, case, common, image_embeds=embeds, negative_image_embeds=negative)

    def _prior_image(self, case: TaskCase, generator: torch.Generator, common: dict[str, Any]) -> Any:
        embeds, negative = self._changed(case, case.prior_steps, 4.0, generator, "pt")
        return self._decode(case, common, embeds, negative)

    def emb2emb(self, case: TaskCase) -> tuple[Floats, Floats]:
        """Embeddings (1, E) of `photograph`, changed towards the prompt, and the negative ones."""
        generator = torch.Generator("cpu").manual_seed(case.seed)
        return self._changed(case, case.steps, case.guidance, generator, "np")

    def _changed(self, case: TaskCase, steps: int, guidance: float, generator: torch.Generator, kind: str) -> Any:
        return self.emb2emb_prior(
            PROMPT,
            photograph(case.size),
            strength=case.strength,
            negative_prompt=case.negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type=kind,
            return_dict=False,
        )


def ours(pipe: Pipeline, reference: TaskReference, case: TaskCase, **more: Any) -> Any:
    """The same by the runtime: its `Output`. `more` are further arguments of the task."""
    height, width = case.size
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": case.steps,
        "prior_num_inference_steps": case.prior_steps,
        "guidance_scale": case.guidance,
        "seed": case.seed,
        "scheduler": {**reference.scheduler(case).config, "_class_name": case.scheduler},
        "output_type": "np",
        **more,
    }
    image, negative = photograph(case.size), case.negative_prompt
    if case.task == "img2img":
        return pipe.img2img(PROMPT, image, negative, strength=case.strength, **options)
    if case.task == "inpaint":
        mask = options.pop("mask_image", mask_of(case.mask, case.size))
        return pipe.inpaint(PROMPT, image, mask, negative, **options)
    if case.task == "controlnet":
        return pipe.controlnet(PROMPT, depth_of(case.size), None, negative, **options)
    if case.task == "controlnet_img2img":
        return pipe.controlnet(PROMPT, depth_of(case.size), image, negative, strength=case.strength, **options)
    if case.task == "prior_image":
        return pipe(PROMPT, negative, prior_image=image, prior_strength=case.strength, **options)
    if case.task == "mix":
        prior_negative = None if negative is None else "a blue square"
        parts = [PROMPT, image, "a green star"]
        return pipe.mix(parts, [0.4, 0.7, -0.1], negative or "", negative_prior_prompt=prior_negative, **options)
    return pipe.variations(image, **{**options, "prior_num_inference_steps": 25})


SMALL = [
    TaskCase("img2img"),
    TaskCase("img2img", (64, 128), 1.0, negative_prompt="", scheduler="DDIMScheduler"),
    TaskCase("img2img", (128, 64), 0.2, guidance=1.0, seed=3),
    TaskCase("inpaint"),
    TaskCase("inpaint", (64, 128), mask="border", negative_prompt="a green star"),
    TaskCase("inpaint", (128, 64), mask="corner", guidance=1.0, scheduler="DDIMScheduler"),
    TaskCase("inpaint", mask="speckled", seed=1),
    TaskCase("img2img", strength=0.7, scheduler="DPMSolverMultistepScheduler"),
    TaskCase("inpaint", scheduler="DPMSolverMultistepScheduler", seed=2),
    TaskCase("controlnet", (64, 128), seed=2),
    TaskCase("controlnet", guidance=1.0, scheduler="DDIMScheduler"),
    TaskCase("controlnet_img2img"),
    TaskCase("mix", negative_prompt="", seed=4),
    TaskCase("mix"),
    TaskCase("mix", negative_prompt="a yellow square", guidance=1.0),
    TaskCase("variations"),
    TaskCase("prior_image", (64, 128), prior_steps=5, seed=6),
    TaskCase("prior_image", strength=1.0, negative_prompt="a green star", scheduler="DDIMScheduler"),
]


def everything() -> list[TaskCase]:
    """Every task with every scheduler, guided or not, at sizes with a negative prompt each; strengths and masks."""
    cases = []
    settings = [((128, 128), None), ((64, 192), ""), ((192, 64), "a green star")]
    masks = ("middle", "border", "corner", "all", "speckled", "colours")
    for scheduler in ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"):
        for guidance in (1.0, 4.0):
            for size, negative in settings:
                shared: dict[str, Any] = {"size": size, "guidance": guidance, "scheduler": scheduler, "steps": 10}
                plain = {**shared, "negative_prompt": negative}
                cases += [TaskCase("img2img", strength=s, **plain) for s in (0.1, 0.3, 0.55, 0.9, 1.0)]
                cases += [TaskCase("controlnet_img2img", strength=s, **plain) for s in (0.3, 0.9)]
                cases += [TaskCase("inpaint", mask=mask, **plain) for mask in masks]
                cases += [TaskCase("controlnet", **plain), TaskCase("mix", **plain), TaskCase("variations", **shared)]
    return cases
