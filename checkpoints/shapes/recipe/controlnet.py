"""The depth ControlNet: the UNet fine-tuned to put its figure where a depth map has one (arXiv:2302.05543's task).

Kandinsky 2.2's has no copy of the encoder: a stack of convolutions makes the hint four more input channels.
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from recipe import drawing, loop
from recipe.dataset import Dataset
from recipe.unet import conditions, denoising_loss, widened

STEPS, BATCH, PEAK_RATE = 2500, 16, 6e-4
RELOCATED_SHARE = 0.5


def train(data: Dataset, work: Path, decoder: Path, out: Path) -> None:
    """Fine-tune the UNet of `decoder` and save `unet` and `scheduler` in `out`."""
    torch.manual_seed(loop.SEED)
    unet = widened(decoder / "unet", in_channels=8, addition_embed_type="image_hint")
    levels = DDPMScheduler.from_pretrained(decoder / "scheduler")
    alike = _alike(data.scenes)
    loop.train("hint", unet, lambda step, g: _loss_of(unet, levels, data, alike, g), STEPS, PEAK_RATE, work, 0.998)
    unet.save_pretrained(out / "unet")
    levels.save_pretrained(out / "scheduler")


def _alike(scenes: Tensor) -> list[Tensor]:
    """For each drawing, which drawings have its two colours."""
    pairs = scenes[:, 1] * len(drawing.COLOURS) + scenes[:, 2]
    groups = {pair: (pairs == pair).nonzero()[:, 0] for pair in pairs.unique().tolist()}
    return [groups[pair] for pair in pairs.tolist()]


def _loss_of(
    unet: UNet2DConditionModel, levels: DDPMScheduler, data: Dataset, alike: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    rows = torch.randint(len(data.latents), (BATCH,), generator=generator)
    # The embedding tells of shape and place too. Half of the time it is of another drawing in the same colours,
    # so that the model learns to take the colours from it, and shape and place from the hint.
    draws = torch.rand(BATCH, 2, generator=generator)
    others = torch.stack([alike[row][int(u * len(alike[row]))] for row, u in zip(rows, draws[:, 0], strict=True)])
    described = torch.where(draws[:, 1] < RELOCATED_SHARE, others, rows)
    hint = drawing.draw_depth(data.scenes[rows], data.wobbles[rows])

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        added = {"image_embeds": conditions(data, described, generator), "hint": hint}
        return unet(noisy, times, None, added_cond_kwargs=added).sample

    return denoising_loss(denoise, levels, data.latents[rows], generator)
