"""The decoder's UNet: latents under the picture's embedding, with a learned variance (arXiv:2102.09672)."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from recipe import loop
from recipe.dataset import Dataset

STEPS, BATCH, PEAK_RATE = 8000, 32, 1.2e-3
DROPPED_SHARE = 0.1
EMBED_NOISE = 0.2
SNR_CAP = 5.0
VARIANCE_WEIGHT = 0.01


def build(embedding: int) -> UNet2DConditionModel:
    """The published UNet's blocks and wiring, with fewer channels and one layer a block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        attention_head_dim=32,
        cross_attention_dim=64,
        encoder_hid_dim=embedding,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
    )


def scheduler() -> DDPMScheduler:
    """The published noise levels. x0 is not clipped: guidance overshoots on the way, and DDIM's steps need it whole."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=False,
    )


def widened(folder: Path, **changes: object) -> UNet2DConditionModel:
    """The trained UNet of `folder` with a changed config: more input channels that start at zero, new parts random."""
    trained = UNet2DConditionModel.from_pretrained(folder)
    wide = UNet2DConditionModel.from_config({**trained.config, **changes})
    weights = trained.state_dict()
    narrow = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.zeros_like(wide.conv_in.weight)
    weights["conv_in.weight"][:, : narrow.shape[1]] = narrow
    wide.load_state_dict(wide.state_dict() | weights)
    return wide


def train(data: Dataset, work: Path, decoder: Path) -> None:
    """Train and save `unet` and `scheduler` in `decoder`."""
    torch.manual_seed(loop.SEED)
    unet = build(data.embeds.shape[1])
    levels = scheduler()
    loop.train("unet", unet, lambda step, g: _loss_of(unet, levels, data, g), STEPS, PEAK_RATE, work, 0.9985)
    unet.save_pretrained(decoder / "unet")
    levels.save_pretrained(decoder / "scheduler")


def _loss_of(
    unet: UNet2DConditionModel, levels: DDPMScheduler, data: Dataset, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    rows = torch.randint(len(data.latents), (BATCH,), generator=generator)

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        return unet(noisy, times, None, added_cond_kwargs={"image_embeds": conditions(data, rows, generator)}).sample

    return denoising_loss(denoise, levels, data.latents[rows], generator)


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    levels: DDPMScheduler,
    clean: Tensor,
    generator: torch.Generator,
    region: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of predicting the noise in noised `clean` (n, 4, h, w), and that of the learned variance.

    `denoise` maps noisy latents and timesteps (n,) to the 8 output channels. `region` (n, 1, h, w), where given,
    weighs the places.
    """
    # One timestep in each of n equal spans: less noise in the loss than with independent ones.
    span = levels.config.num_train_timesteps / len(clean)
    times = ((torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) * span).long()
    noise = torch.randn(clean.shape, generator=generator)
    noisy = levels.add_noise(clean, noise, times)
    epsilon, variance = denoise(noisy, times).chunk(2, dim=1)
    alpha = levels.alphas_cumprod[times][:, None, None, None]
    # Min-SNR weights (arXiv:2303.09556): what shape it is gets decided where there is noise.
    weight = (SNR_CAP * (1 - alpha) / alpha).clamp(max=1)
    place = torch.ones(1) if region is None else region / region.mean()
    square = place * (epsilon - noise).square()
    bound = (place * _variance_bound(levels, times, clean, noisy, epsilon.detach(), variance)).mean()
    return (weight * square).mean() + VARIANCE_WEIGHT * bound, {"eps": square.mean().item(), "bound": bound.item()}


def conditions(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Embeddings a little off, as the prior's are; a tenth are the zero image's, which guidance leads away from."""
    embeds = data.embeds[rows]
    level = EMBED_NOISE * torch.rand(len(rows), 1, generator=generator)
    embeds = embeds + level * torch.randn(embeds.shape, generator=generator)
    dropped = torch.rand(len(rows), 1, generator=generator) < DROPPED_SHARE
    return torch.where(dropped, data.zero, embeds)


def _variance_bound(
    levels: DDPMScheduler, times: Tensor, clean: Tensor, noisy: Tensor, epsilon: Tensor, variance: Tensor
) -> Tensor:
    """KL divergence (bits, of each value) of the step's true posterior from the model's, whose mean is held fixed."""
    shape = (-1, 1, 1, 1)
    times = times.clamp(min=1)
    beta = levels.betas[times].reshape(shape)
    alpha, before = (levels.alphas_cumprod[t].reshape(shape) for t in (times, times - 1))
    low, high = ((1 - before) / (1 - alpha) * beta).log(), beta.log()
    log_variance = low + (variance + 1) / 2 * (high - low)
    guess = (noisy - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
    gap = before.sqrt() * beta / (1 - alpha) * (clean - guess)
    ratio = low - log_variance
    return 0.5 * (ratio.exp() - 1 - ratio + gap.square() * (-log_variance).exp()) / math.log(2)
