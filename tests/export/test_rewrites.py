"""Rewrites change no result: compared with the untouched module in float64, where rounding is out of sight."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import SpatialNorm
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from kandinsky22_export.graphs import rewrites
from tests import tiny


@pytest.mark.parametrize("channels", [(32, 64), (32, 32, 64, 64)])
def test_spatial_norm_before_upsampling(channels: tuple[int, ...]) -> None:
    movq = tiny.parts(movq_channels=channels).movq.double()
    latents = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    before = movq.decode(latents, force_not_quantize=True).sample
    rewrites.spatial_norm_before_upsampling(movq)
    assert not any(isinstance(module, SpatialNorm) for module in movq.modules())
    after = movq.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


def test_spatial_norm_convolves_the_small_map() -> None:
    movq = tiny.parts(movq_channels=(32, 32, 64, 64)).movq
    rewrites.spatial_norm_before_upsampling(movq)
    sizes = []
    norm = movq.decoder.conv_norm_out
    norm.conv_y.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    movq.decode(torch.randn(1, 4, 3, 5), force_not_quantize=True)
    assert sizes == [(3, 5)]


@pytest.mark.parametrize("channels", [(32, 64), (32, 32, 64, 64)])
def test_fold_upsampling_of_movq(channels: tuple[int, ...]) -> None:
    movq = tiny.parts(movq_channels=channels).movq.double()
    latents = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    before = movq.decode(latents, force_not_quantize=True).sample
    rewrites.fold_upsampling(movq.decoder)
    assert not any(isinstance(module, Upsample2D) for module in movq.decoder.modules())
    after = movq.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["scale_shift", "default"])
@pytest.mark.parametrize("output_channels", [32, 48])
def test_fold_upsampling_of_a_residual_block(kind: str, output_channels: int) -> None:
    """A block whose channels change has a shortcut convolution, too."""
    torch.manual_seed(0)
    options = {"out_channels": output_channels, "temb_channels": 24, "time_embedding_norm": kind, "up": True}
    parent = torch.nn.ModuleDict({"block": ResnetBlock2D(in_channels=32, groups=8, **options)}).double()
    small, embedding = torch.randn(2, 32, 3, 5, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    before = parent["block"](small, embedding)
    rewrites.fold_upsampling(parent)
    assert not isinstance(parent["block"], ResnetBlock2D)
    torch.testing.assert_close(parent["block"](small, embedding), before, rtol=1e-11, atol=1e-11)


def test_fold_upsampling_of_a_unet() -> None:
    unet: UNet2DConditionModel = tiny.parts().unet.double()
    side = 2 ** len(unet.config.block_out_channels)
    latents = torch.randn(2, unet.config.in_channels, side, 2 * side, dtype=torch.float64)
    embeds = torch.randn(2, unet.config.encoder_hid_dim, dtype=torch.float64)

    def run() -> torch.Tensor:
        return unet(latents, 7, None, added_cond_kwargs={"image_embeds": embeds}).sample

    before = run()
    rewrites.fold_upsampling(unet)
    names = [type(module).__name__ for module in unet.modules()]
    assert names.count("_FoldedResnetBlock") == len(unet.config.block_out_channels) - 1
    torch.testing.assert_close(run(), before, rtol=1e-10, atol=1e-10)
