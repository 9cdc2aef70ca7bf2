"""Exact transformations of torch modules for speed and memory, one function each.

Each replaces modules in place and changes no result but for rounding; tests/export compares them in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import SpatialNorm
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
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


def fold_upsampling(network: nn.Module) -> None:
    """Run the 3x3 convolutions that follow a nearest upsampling by two on the small map.

    Of the nine pixels that such a convolution looks at, several are copies of one, so that every pixel of the large map
    is a 2x2 convolution of the small one, with one of four kernels by its parity: 4/9 of the arithmetic. MoVQ has them
    in its `Upsample2D`s, the UNet in the residual blocks that upsample.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _is_nearest(child) and child.use_conv and _is_same_size(child.conv):
                setattr(parent, name, _FoldedUpsampling(child.conv))
            elif isinstance(child, ResnetBlock2D) and _is_nearest(child.upsample) and _is_same_size(child.conv1):
                setattr(parent, name, _FoldedResnetBlock(child))


def _is_nearest(module: Any) -> bool:
    """Whether it upsamples by copying, and does nothing before."""
    return (
        isinstance(module, Upsample2D) and module.interpolate and not module.use_conv_transpose and module.norm is None
    )


def _is_same_size(convolution: Any) -> bool:
    """Whether it is a plain 3x3 convolution that keeps height and width."""
    return isinstance(convolution, nn.Conv2d) and (
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.padding_mode,
    ) == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class _FoldedUpsampling(nn.Module):
    """Nearest upsampling by two, and a 3x3 convolution of the result."""

    def __init__(self, convolution: Any):
        super().__init__()
        kernel = convolution.weight.detach().double()
        kernel = _merged(_merged(kernel, 2), 4)  # (2 columns, 2 rows, O, I, 2, 2)
        self.channels = convolution.out_channels
        self.weight = nn.Parameter(
            kernel.transpose(0, 1).flatten(0, 2).to(convolution.weight.dtype), requires_grad=False
        )
        bias = torch.zeros(self.channels) if convolution.bias is None else convolution.bias.detach()
        self.bias = nn.Parameter(bias.to(convolution.weight.dtype).repeat(4), requires_grad=False)

    def forward(self, small: Tensor, output_size: Any = None) -> Tensor:
        """`small` (B, I, h, w) -> (B, O, 2h, 2w)."""
        if output_size is not None:
            raise NotImplementedError("folded upsampling doubles height and width, and makes no other size")
        height, width = small.shape[-2:]
        # One column and row more than `small` has: a pixel's even kernel lies around its corner, the odd one after it.
        corners = functional.conv2d(small, self.weight, self.bias, padding=1)
        even_and_odd = [
            corners.narrow(1, (2 * row + column) * self.channels, self.channels)[
                :, :, row : row + height, column : column + width
            ]
            for row in (0, 1)
            for column in (0, 1)
        ]
        return functional.pixel_shuffle(torch.stack(even_and_odd, dim=2).flatten(1, 2), 2)


def _merged(kernel: Tensor, dim: int) -> Tensor:
    """Three taps along `dim` on a map of doubled pixels as two on the small one: (2, …), for even and odd places."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)])


class _FoldedResnetBlock(nn.Module):
    """diffusers' ResnetBlock2D that upsamples, over the same parameters but for its first convolution."""

    def __init__(self, block: ResnetBlock2D):
        super().__init__()
        self.norm1, self.norm2, self.conv2 = block.norm1, block.norm2, block.conv2
        self.nonlinearity, self.conv_shortcut = block.nonlinearity, block.conv_shortcut
        self.time_emb_proj, self.time_embedding_norm = block.time_emb_proj, block.time_embedding_norm
        self.skip_time_act, self.output_scale_factor = block.skip_time_act, block.output_scale_factor
        self.upsampled_conv1 = _FoldedUpsampling(block.conv1)

    def forward(self, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
        """`input_tensor` (B, I, h, w) and the embedding of the timestep (B, T) -> (B, O, 2h, 2w)."""
        hidden: Tensor = self.upsampled_conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None and temb is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
        if self.time_embedding_norm == "scale_shift" and temb is not None:
            scale, shift = temb.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden if temb is None else hidden + temb)
        hidden = self.conv2(self.nonlinearity(hidden))
        shortcut = functional.interpolate(input_tensor, scale_factor=2.0, mode="nearest")
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        return (shortcut + hidden) / self.output_scale_factor
