"""What Kandinsky 2.2 has: pipelines, networks and schedulers, by diffusers' and transformers' names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import transformers

from kandinsky22_export.architectures.configs import ImageConfig, MovqConfig, PriorConfig, TextConfig, UnetConfig

PIPELINES = {
    "KandinskyV22Pipeline": ("decoder",),
    "KandinskyV22Img2ImgPipeline": ("decoder",),
    "KandinskyV22ControlnetPipeline": ("decoder",),
    "KandinskyV22ControlnetImg2ImgPipeline": ("decoder",),
    "KandinskyV22InpaintPipeline": ("decoder",),
    "KandinskyV22PriorPipeline": ("prior",),
    "KandinskyV22PriorEmb2EmbPipeline": ("prior",),
    "KandinskyV22CombinedPipeline": ("decoder", "prior"),
    "KandinskyV22Img2ImgCombinedPipeline": ("decoder", "prior"),
    "KandinskyV22InpaintCombinedPipeline": ("decoder", "prior"),
}
"""Which halves of a checkpoint a repository with a pipeline of this class holds."""
SCHEDULERS = {"decoder": ("DDPMScheduler", "DDIMScheduler"), "prior": ("UnCLIPScheduler",)}
"""The classes of schedulers that each half may have."""


@dataclass(frozen=True)
class Kind:
    """A network of the decoder's or the prior's pipeline, in the subfolder `name`.

    `cls` is its class, `config` the schema of its config, `stem` what its files begin with.
    """

    name: str
    half: str
    cls: Any
    config: Any
    stem: str


UNET = Kind("unet", "decoder", diffusers.UNet2DConditionModel, UnetConfig, "diffusion_pytorch_model")
MOVQ = Kind("movq", "decoder", diffusers.VQModel, MovqConfig, "diffusion_pytorch_model")
PRIOR = Kind("prior", "prior", diffusers.PriorTransformer, PriorConfig, "diffusion_pytorch_model")
TEXT_ENCODER = Kind("text_encoder", "prior", transformers.CLIPTextModelWithProjection, TextConfig, "model")
IMAGE_ENCODER = Kind("image_encoder", "prior", transformers.CLIPVisionModelWithProjection, ImageConfig, "model")
KINDS = {
    "unet": UNET,
    "movq": MOVQ,
    "prior": PRIOR,
    "text_encoder": TEXT_ENCODER,
    "image_encoder": IMAGE_ENCODER,
    "unet_controlnet": UNET,
    "unet_inpaint": UNET,
}
"""What the networks of a checkpoint are, by their names. Random weights count on the order: new ones come last."""
UNETS = {"decoder": "unet", "controlnet": "unet_controlnet", "inpaint": "unet_inpaint"}
"""The names of the UNets among a checkpoint's networks, by what they are for."""
