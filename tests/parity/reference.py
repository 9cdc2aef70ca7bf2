"""The reference of the parity tests: diffusers' own pipelines on the same checkpoint, in float32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from numpy.typing import NDArray

from kandinsky22 import Pipeline

PROMPT = "a large red circle in the middle of a blue background"
LONG_PROMPT = "a small green star on a yellow background, " * 12 + "top left"


@dataclass(frozen=True)
class Case:
    """One call, in the words that both sides share. `scheduler` are overrides of the checkpoint's own config."""

    prompt: str = PROMPT
    negative_prompt: str | None = None
    height: int = 128
    width: int = 128
    steps: int = 10
    prior_steps: int = 5
    guidance: float = 4.0
    prior_guidance: float = 4.0
    seed: int = 0
    scheduler: str = "DDPMScheduler"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        default = Case()
        parts = [self.scheduler.removesuffix("Scheduler"), f"{self.width}x{self.height}"]
        parts += [f"{key}={value}" for key, value in self.options.items()]
        for name in ("negative_prompt", "guidance", "prior_guidance", "seed", "steps"):
            if getattr(self, name) != getattr(default, name):
                parts.append(f"{name}={getattr(self, name)}")
        return " ".join(parts + (["long"] if self.prompt == LONG_PROMPT else []))


class Reference:
    """diffusers on a checkpoint folder that holds `prior` and `decoder`."""

    def __init__(self, checkpoint: Path) -> None:
        self.prior = KandinskyV22PriorPipeline.from_pretrained(checkpoint / "prior")
        self.decoder = KandinskyV22Pipeline.from_pretrained(checkpoint / "decoder")
        self.config = dict(self.decoder.scheduler.config)
        for pipeline in (self.prior, self.decoder):
            pipeline.set_progress_bar_config(disable=True)

    def scheduler(self, case: Case) -> Any:
        """diffusers' scheduler of a case.

        A DDIM made from a config with a learned variance keeps that option, does not know it, and fails on the
        variance channels (diffusers 0.42): without it, they are dropped.
        """
        foreign = {"variance_type"} if case.scheduler == "DDIMScheduler" else set()
        config = {key: value for key, value in self.config.items() if key not in foreign}
        return getattr(diffusers, case.scheduler).from_config(config, **case.options)

    def scheduler_config(self, case: Case) -> dict[str, Any]:
        """The full scheduler config of a case, as diffusers itself writes it."""
        return {**self.scheduler(case).config, "_class_name": case.scheduler}

    def picture(self, case: Case) -> NDArray[np.float32]:
        """The picture (H, W, 3) of a case, values 0..1: prior and decoder draw from one generator."""
        generator = torch.Generator("cpu").manual_seed(case.seed)
        self.decoder.scheduler = self.scheduler(case)
        embeds, negative = self.prior(
            case.prompt,
            negative_prompt=case.negative_prompt,
            num_inference_steps=case.prior_steps,
            guidance_scale=case.prior_guidance,
            generator=generator,
            return_dict=False,
        )
        (pictures,) = self.decoder(
            image_embeds=embeds,
            negative_image_embeds=negative,
            height=case.height,
            width=case.width,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            generator=generator,
            output_type="np",
            return_dict=False,
        )
        return np.asarray(pictures[0], np.float32)


Pipelines = TypeVar("Pipelines")


def in_bfloat16(reference: Pipelines) -> Pipelines:
    """A reference itself, whose pipelines compute in bfloat16 from now on."""
    for each in vars(reference).values():
        if isinstance(each, diffusers.DiffusionPipeline):
            each.to(torch.bfloat16)
    return reference


def ours(pipe: Pipeline, case: Case, config: dict[str, Any]) -> NDArray[np.float32]:
    """The same picture by the runtime, with the scheduler config that `Reference.scheduler_config` gives."""
    out = pipe(
        case.prompt,
        case.negative_prompt,
        height=case.height,
        width=case.width,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        prior_num_inference_steps=case.prior_steps,
        prior_guidance_scale=case.prior_guidance,
        seed=case.seed,
        scheduler=config,
        output_type="np",
    )
    return np.asarray(out.images[0], np.float32)


def steps_of_255(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference of two pictures (values 0..1), in steps of 1/255."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max() * 255)


EQUAL = 60.0
"""PSNR in dB that float32 alone reaches."""


def psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB of pictures with values 0..1."""
    return float(-10 * np.log10(np.mean((one.astype(np.float64) - other) ** 2)))


THRESHOLD = {"thresholding": True, "sample_max_value": None}
THRESHOLD_CAPPED = {"thresholding": True, "sample_max_value": 1.5}
CLIP = {"thresholding": False, "clip_sample": True, "clip_sample_range": 1.5}
PLAIN = {"thresholding": False, "clip_sample": False}

SMALL = [
    Case(),
    Case(scheduler="DDIMScheduler", negative_prompt=""),
    Case(options=THRESHOLD, height=64, width=192, negative_prompt="a green star"),
    Case(scheduler="DDIMScheduler", options=THRESHOLD_CAPPED, height=192, width=64),
    Case(options=CLIP, guidance=1.0, negative_prompt=""),
    Case(scheduler="DDIMScheduler", options=CLIP, prior_guidance=1.0, negative_prompt="a green star"),
    Case(options=PLAIN, guidance=1.0, prior_guidance=1.0, prompt=LONG_PROMPT, seed=2**63 - 1),
    Case(scheduler="DDIMScheduler", options=PLAIN, height=100, width=65),
]


def everything() -> list[Case]:
    """Every combination that acceptance asks for, and the default number of steps on the checkpoint's own config."""
    cases = [
        Case(
            scheduler=scheduler,
            options=options,
            height=height,
            width=width,
            negative_prompt=negative,
            guidance=guidance,
            prior_guidance=prior_guidance,
            seed=number,
        )
        for number, (scheduler, options, (height, width), negative, guidance, prior_guidance) in enumerate(
            (scheduler, options, size, negative, guidance, prior_guidance)
            for scheduler in ("DDPMScheduler", "DDIMScheduler")
            for options in (PLAIN, CLIP, THRESHOLD, THRESHOLD_CAPPED)
            for size in ((128, 128), (64, 192), (192, 64))
            for negative in (None, "", "a green star")
            for guidance in (1.0, 4.0)
            for prior_guidance in (1.0, 4.0)
        )
    ]
    full = [Case(scheduler=name, steps=50, prior_steps=25) for name in ("DDPMScheduler", "DDIMScheduler")]
    return cases + full + [replace(case, prompt=LONG_PROMPT) for case in full]
