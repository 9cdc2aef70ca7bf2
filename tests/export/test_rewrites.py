"""Rewrites change no result: compared with the untouched module in float64, where rounding is out of sight."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import SpatialNorm

from kandinsky22_export import rewrites
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
