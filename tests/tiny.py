"""A tiny untrained Kandinsky 2.2 checkpoint in diffusers' own classes and file layout, for tests.

Every dimension differs from every other where the classes allow it, so that a mixed-up axis shows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.kandinsky2_2 import (
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

EMBEDDING = 48
TOKENS = 77
MOVQ_CHANNELS = (32, 32, 64, 64)  # four levels: a ControlNet's hint has 8 pixels a latent, so the pictures have too
DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "prediction_type": "epsilon"}
PUBLISHED = DDPM | {"variance_type": "learned_range", "thresholding": True, "sample_max_value": None}


@dataclasses.dataclass
class Parts:
    """diffusers' and transformers' modules of one checkpoint, in float32 and evaluation mode."""

    unet: UNet2DConditionModel
    unet_controlnet: UNet2DConditionModel
    unet_inpaint: UNet2DConditionModel
    movq: VQModel
    prior: PriorTransformer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    tokenizer: CLIPTokenizer
    prior_scheduler: UnCLIPScheduler
    scheduler: DDPMScheduler | DDIMScheduler

    @classmethod
    def load(cls, folder: Path) -> Parts:
        """The modules of `prior/`, `decoder/`, `controlnet-depth/` and `inpaint/` in `folder`."""
        prior = KandinskyV22PriorPipeline.from_pretrained(folder / "prior").components
        prior["prior_scheduler"] = prior.pop("scheduler")
        del prior["image_processor"]
        return cls(
            **prior,
            **KandinskyV22Pipeline.from_pretrained(folder / "decoder").components,
            unet_controlnet=UNet2DConditionModel.from_pretrained(folder / "controlnet-depth" / "unet"),
            unet_inpaint=UNet2DConditionModel.from_pretrained(folder / "inpaint" / "unet"),
        )

    def save(self, folder: Path, **options: Any) -> Path:
        """Write `prior/`, and `decoder/`, `controlnet/` and `inpaint/`, whose cards name the prior.

        `options` go to `save_pretrained`.
        """
        self.prior_pipeline().save_pretrained(folder / "prior", **options)
        self.decoder_pipeline().save_pretrained(folder / "decoder", **options)
        self.controlnet_pipeline().save_pretrained(folder / "controlnet", **options)
        self.inpaint_pipeline().save_pretrained(folder / "inpaint", **options)
        for name in ("decoder", "controlnet", "inpaint"):
            (folder / name / "README.md").write_text("---\nprior:\n- ../prior\n---\n# A tiny decoder\n")
        return folder

    def half(self) -> Parts:
        """The same with all networks in half precision."""
        for field in dataclasses.fields(self):
            module = getattr(self, field.name)
            if isinstance(module, torch.nn.Module):
                module.half()
        return self

    def prior_pipeline(self) -> KandinskyV22PriorPipeline:
        """diffusers' own prior pipeline over these modules."""
        return KandinskyV22PriorPipeline(
            prior=self.prior,
            image_encoder=self.image_encoder,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.prior_scheduler,
            image_processor=CLIPImageProcessor(size=32, crop_size=32),
        )

    def decoder_pipeline(self) -> KandinskyV22Pipeline:
        """diffusers' own decoder pipeline over these modules."""
        return KandinskyV22Pipeline(unet=self.unet, scheduler=self.scheduler, movq=self.movq)

    def controlnet_pipeline(self) -> KandinskyV22ControlnetPipeline:
        """diffusers' own pipeline with a hint over these modules."""
        return KandinskyV22ControlnetPipeline(unet=self.unet_controlnet, scheduler=self.scheduler, movq=self.movq)

    def inpaint_pipeline(self) -> KandinskyV22InpaintPipeline:
        """diffusers' own inpainting pipeline over these modules."""
        return KandinskyV22InpaintPipeline(unet=self.unet_inpaint, scheduler=self.scheduler, movq=self.movq)

    def combined_pipeline(self) -> KandinskyV22CombinedPipeline:
        """diffusers' own pipeline of both."""
        prior = {f"prior_{name}": part for name, part in self.prior_pipeline().components.items()}
        return KandinskyV22CombinedPipeline(**self.decoder_pipeline().components, **prior)


def parts(seed: int = 0, movq_channels: tuple[int, ...] = MOVQ_CHANNELS, learned_variance: bool = True) -> Parts:
    """The modules, with every parameter random (norms and biases too, so that none is left out unseen)."""
    unet, movq = _unet(learned_variance), _movq(movq_channels)
    unet_controlnet = _unet(learned_variance, in_channels=8, addition_embed_type="image_hint")
    unet_inpaint = _unet(learned_variance, in_channels=9)
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=20, num_layers=2, embedding_dim=EMBEDDING, num_embeddings=TOKENS
    )
    text_encoder, image_encoder = _text_encoder(), _image_encoder()
    generator = torch.Generator().manual_seed(seed)
    for module in (unet, movq, prior, text_encoder, image_encoder, unet_controlnet, unet_inpaint):
        randomise(module, generator)
    return Parts(
        unet=unet,
        unet_controlnet=unet_controlnet,
        unet_inpaint=unet_inpaint,
        movq=movq,
        prior=prior,
        text_encoder=text_encoder,
        image_encoder=image_encoder,
        tokenizer=tokenizer(),
        prior_scheduler=UnCLIPScheduler(clip_sample=True, clip_sample_range=5.0, prediction_type="sample"),
        scheduler=DDPMScheduler(**(PUBLISHED if learned_variance else DDPM)),
    )


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of `module`, scaled so that activations stay near 1."""
    module.eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.normal_(0, fan_in**-0.5, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter += 1


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with a handful of merges."""
    characters = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r")]
    words = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _unet(learned_variance: bool, in_channels: int = 4, addition_embed_type: str = "image") -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=12,
        in_channels=in_channels,
        out_channels=8 if learned_variance else 4,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=40,
        attention_head_dim=16,
        encoder_hid_dim=EMBEDDING,
        encoder_hid_dim_type="image_proj",
        addition_embed_type=addition_embed_type,
        resnet_time_scale_shift="scale_shift",
        act_fn="silu",
    )


def _movq(channels: tuple[int, ...]) -> VQModel:
    levels = len(channels)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=64,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def _text_encoder() -> CLIPTextModelWithProjection:
    size = len(tokenizer())
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=EMBEDDING,
            intermediate_size=72,
            projection_dim=EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=TOKENS,
            hidden_act="gelu",
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def _image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=36,
            intermediate_size=40,
            projection_dim=EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=32,
            patch_size=16,
        )
    )
