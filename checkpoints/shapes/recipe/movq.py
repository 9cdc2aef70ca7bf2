"""MoVQ: pictures to latents of an eighth of the size (4 channels, about unit variance) and back."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.attention_processor import SpatialNorm
from torch import Tensor, nn

from recipe import drawing, loop

CROP = 64
CROP_STEPS, FULL_STEPS = 1100, 150
CROP_BATCH, FULL_BATCH = 8, 4
LATENT_NOISE = 0.15
CODES = 1024


def build() -> VQModel:
    """The published MoVQ's wiring. Spatial norm fixes 32 groups, so channels are multiples of 32."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=CODES,
        sample_size=drawing.PICTURE_SIZE,
        norm_type="spatial",
    )


class Trainee(nn.Module):
    """The model with what only training needs: a codebook that follows the latents by moving averages."""

    def __init__(self, movq: VQModel) -> None:
        super().__init__()
        self.movq = movq
        movq.quantize.embedding.weight.requires_grad_(False)
        movq.quantize.embedding.weight.normal_()
        self.register_buffer("code_count", torch.ones(CODES))
        self.register_buffer("code_sum", movq.quantize.embedding.weight.clone())

    @torch.no_grad()
    def _codes(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Nearest code of each vector, (n, 4); moves the codebook, and moves unused codes to vectors just seen."""
        codebook = self.movq.quantize.embedding.weight
        nearest = torch.cdist(vectors, codebook).argmin(1)
        chosen = codebook[nearest]
        self.code_count.mul_(0.99).index_add_(0, nearest, torch.ones(len(vectors)), alpha=0.01)
        self.code_sum.mul_(0.99).index_add_(0, nearest, vectors, alpha=0.01)
        unused = (self.code_count < 1e-3).nonzero()[:, 0]
        self.code_count[unused] = 0.1
        self.code_sum[unused] = 0.1 * vectors[torch.randint(len(vectors), (len(unused),), generator=generator)]
        codebook.copy_(self.code_sum / self.code_count[:, None])
        return chosen

    def forward(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch: a quarter decoded from codes, the rest from latents with a little noise.

        Pipelines decode unquantised, and a sampler's latents are never quite clean: the noise is for that.
        """
        movq = self.movq
        latents = movq.quant_conv(movq.encoder(pictures))
        coded = max(1, len(latents) // 4)
        latents = latents.float()
        vectors = latents[:coded].permute(0, 2, 3, 1)
        codes = self._codes(vectors.detach().reshape(-1, 4), generator).reshape(vectors.shape)
        commitment = F.mse_loss(vectors, codes)
        quantised = (vectors + (codes - vectors).detach()).permute(0, 3, 1, 2)
        level = LATENT_NOISE * torch.rand(len(latents) - coded, 1, 1, 1, generator=generator)
        noise = torch.randn(latents[coded:].shape, generator=generator)
        mixed = torch.cat([quantised, latents[coded:] + level * noise])
        decoded = movq.decoder(movq.post_quant_conv(mixed), mixed)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        unit_variance = (mean**2 + (std - 1) ** 2).mean()
        error = decoded - pictures
        square = error[coded:].square().mean()
        loss = error.abs().mean() + error.square().mean() + 0.1 * commitment + 0.05 * unit_variance
        return loss, {"psnr": (10 * torch.log10(4 / square)).item(), "commit": commitment.item()}


def _loss_of(trainee: Trainee, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Crops first, for speed; whole pictures at the end, since the norms and the attention see all of a picture."""
    if step >= CROP_STEPS:
        scenes = drawing.sample_scenes(FULL_BATCH, generator)
        return trainee(drawing.draw(scenes, drawing.sample_wobbles(FULL_BATCH, generator)), generator)
    scenes = drawing.sample_scenes(CROP_BATCH, generator)
    span = 2.0 * CROP / drawing.PICTURE_SIZE
    corners = torch.rand(CROP_BATCH, 2, generator=generator) * (2.0 - span) - 1.0
    wobbles = drawing.sample_wobbles(CROP_BATCH, generator)
    return trainee(drawing.draw(scenes, wobbles, CROP, corners, span), generator)


@torch.no_grad()
def fold_normalisation(movq: VQModel, mean: Tensor, std: Tensor) -> None:
    """Give the latents zero mean and unit variance without changing any decoded picture.

    What reads latents is affine and 1x1 (the convolution after the codebook and each spatial norm's pair),
    so the change of units goes into those weights, exactly.
    """
    movq.quant_conv.weight /= std[:, None, None, None]
    movq.quant_conv.bias.copy_((movq.quant_conv.bias - mean) / std)
    movq.quantize.embedding.weight.copy_((movq.quantize.embedding.weight - mean) / std)
    readers = [movq.post_quant_conv]
    for module in movq.decoder.modules():
        if isinstance(module, SpatialNorm):
            readers += [module.conv_y, module.conv_b]
    for conv in readers:
        conv.bias += conv.weight[:, :, 0, 0] @ mean
        conv.weight *= std[None, :, None, None]


@torch.no_grad()
def train(work: Path, out: Path) -> None:
    """Train, normalise the latents, and save to `out` in diffusers' layout."""
    torch.manual_seed(loop.SEED)
    trainee = Trainee(build())
    with torch.enable_grad():
        loop.train("movq", trainee, lambda s, g: _loss_of(trainee, s, g), CROP_STEPS + FULL_STEPS, 1e-3, work)
    movq = trainee.movq
    generator = loop.generator_for("movq-statistics", 0)
    scenes = drawing.sample_scenes(256, generator)
    latents = encode(movq, drawing.draw(scenes, drawing.sample_wobbles(256, generator)))
    fold_normalisation(movq, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    movq.save_pretrained(out)


@torch.no_grad()
def encode(movq: VQModel, pictures: Tensor, batch: int = 32) -> Tensor:
    """Pictures (n, 3, h, w) in -1..1 to latents (n, 4, h/8, w/8)."""
    return torch.cat([movq.encode(part).latents for part in pictures.split(batch)])


@torch.no_grad()
def decode(movq: VQModel, latents: Tensor, batch: int = 32) -> Tensor:
    """Latents to pictures, as the pipelines do: past the codebook, unquantised."""
    return torch.cat([movq.decode(part, force_not_quantize=True).sample for part in latents.split(batch)])
