"""Exact transformations of torch modules for speed and memory, one function each.

Each replaces modules in place and changes no result but for rounding; tests/export compares them in float64.
"""

from __future__ import annotations

from diffusers.models.attention_processor import SpatialNorm
from torch import Tensor, nn
from torch.nn import functional


def spatial_norm_before_upsampling(movq: nn.Module) -> None:
    """Run the 1x1 convolutions of every spatial norm on the latents instead of on the upsampled latents.

    A 1x1 convolution looks at one pixel and nearest upsampling copies pixels, so they commute. At 8x downscale the
    convolutions then run on 1/64 of the pixels; ONNX Runtime needs half the memory.
    """
    for parent in list(movq.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SpatialNorm):
                setattr(parent, name, _EarlySpatialNorm(child))


class _EarlySpatialNorm(nn.Module):
    """diffusers' SpatialNorm over the same parameters, convolutions first."""

    def __init__(self, norm: SpatialNorm):
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        """`f` (B, F, H, W) normalised, scaled and shifted by what the latents `zq` (B, C, h, w) say: (B, F, H, W)."""
        scale = functional.interpolate(self.conv_y(zq), size=f.shape[-2:], mode="nearest")
        shift = functional.interpolate(self.conv_b(zq), size=f.shape[-2:], mode="nearest")
        normed: Tensor = self.norm_layer(f)
        return normed * scale + shift
