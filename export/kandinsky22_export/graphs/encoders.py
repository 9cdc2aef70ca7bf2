"""Encoders and decoders as graphs: text, image, hint, MoVQ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, Role, TensorSpec
from kandinsky22_export.graphs import rewrites
from kandinsky22_export.graphs.base import Graph, picture_spec

HINT_DOWNSCALE = 8  # three convolutions of stride 2, whatever the config says: ImageHintTimeEmbedding of diffusers


class TextEncoder(Graph):
    """CLIP's text tower with projection: ids (B, T) -> embeddings (B, E) and hidden states (B, T, H)."""

    name = "text_encoder"
    role = Role.TEXT_ENCODER

    def __init__(self, network: nn.Module):
        config: Any = network.config
        tokens = config.max_position_embeddings
        super().__init__(
            network,
            inputs=(TensorSpec("input_ids", "int64", ("B", tokens)),),
            outputs=(
                TensorSpec("text_embeds", "float32", ("B", config.projection_dim)),
                TensorSpec("text_hidden", "float32", ("B", tokens, config.hidden_size)),
            ),
            example={"B": 2},
            checks=({"B": 1}, {"B": 3}),
        )
        self.last_id = config.vocab_size - 1

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`input_ids` int64 (B, T) -> float32 (B, E), (B, T, H)."""
        output = self.network(input_ids)
        return output.text_embeds.float(), output.last_hidden_state.float()

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random words, then the end token (the highest id, as in CLIP) to the end, from another place a text."""
        words = torch.randint(0, self.last_id, shape, generator=generator)
        lengths = torch.randint(1, shape[1], (shape[0], 1), generator=generator)
        return torch.where(torch.arange(shape[1]) < lengths, words, self.last_id)


class ImageEncoder(Graph):
    """CLIP's image tower with projection: normalised pictures (B, 3, S, S) -> embeddings (B, E)."""

    name = "image_encoder"
    role = Role.IMAGE_ENCODER

    def __init__(self, network: nn.Module):
        config: Any = network.config
        side = config.image_size
        super().__init__(
            network,
            inputs=(TensorSpec("pixel_values", "float32", ("B", config.num_channels, side, side)),),
            outputs=(TensorSpec("image_embeds", "float32", ("B", config.projection_dim)),),
            example={"B": 2},
            checks=({"B": 1}, {"B": 3}),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` float32 (B, 3, S, S) as CLIPImageProcessor makes them -> float32 (B, E)."""
        output: Tensor = self.network(pixel_values.to(self.network.dtype)).image_embeds
        return output.float()


class MovqEncoder(Graph):
    """MoVQ's encoder without quantisation: pictures (B, 8h, 8w, 3) in 0..1 -> latents (B, C, h, w)."""

    name = "movq_encoder"
    role = Role.MOVQ_ENCODER

    def __init__(self, network: nn.Module):
        config: Any = network.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            inputs=(picture_spec("image", scale, config.in_channels),),
            outputs=(TensorSpec("latents", "float32", ("B", config.vq_embed_dim or config.latent_channels, "h", "w")),),
            example={"B": 2, "h": 12, "w": 10},
            checks=({"B": 1, "h": 8, "w": 16}, {"B": 3, "h": 6, "w": 7}),
        )
        # The decoder and the codebook are no part of this graph, nor of its memory and its count of parameters.
        del network.decoder, network.post_quant_conv, network.quantize
        self.variants = (ATTENTION_IN_PARTS,)

    def forward(self, image: Tensor) -> Tensor:
        """`image` float32 (B, 8h, 8w, 3) -> float32 (B, C, h, w)."""
        sample = (image * 2 - 1).permute(0, 3, 1, 2).to(self.network.dtype)
        latents: Tensor = self.network.encode(sample, return_dict=False)[0]
        return latents.float()

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Pictures of noise."""
        return torch.rand(shape, generator=generator)


class HintEncoder(Graph):
    """The convolutions of a ControlNet UNet over its hint: pictures (B, 8h, 8w, 3) in 0..1 -> latents (B, C, h, w).

    They see neither the latents nor the timestep, so that they run once a picture instead of once a step.
    """

    name = "hint_encoder"
    role = Role.HINT_ENCODER

    def __init__(self, network: nn.Module):
        convolutions: Any = hint_convolutions(network)
        super().__init__(
            convolutions,
            inputs=(picture_spec("hint", HINT_DOWNSCALE, convolutions[0].in_channels),),
            outputs=(TensorSpec("hint_latents", "float32", ("B", convolutions[-1].out_channels, "h", "w")),),
            example={"B": 2, "h": 12, "w": 10},
            checks=({"B": 1, "h": 8, "w": 16}, {"B": 3, "h": 6, "w": 7}),
        )

    def forward(self, hint: Tensor) -> Tensor:
        """`hint` float32 (B, 8h, 8w, 3) -> float32 (B, C, h, w)."""
        output: Tensor = self.network(hint.permute(0, 3, 1, 2).to(self.network[0].weight.dtype))
        return output.float()

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Hints of noise."""
        return torch.rand(shape, generator=generator)


class MovqDecoder(Graph):
    """MoVQ without quantisation: latents (B, C, h, w) -> pictures (B, 8h, 8w, 3) in 0..1."""

    name = "movq_decoder"
    role = Role.MOVQ_DECODER

    def __init__(self, network: nn.Module):
        config: Any = network.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            inputs=(TensorSpec("latents", "float32", ("B", config.latent_channels, "h", "w")),),
            outputs=(picture_spec("image", scale, config.out_channels),),
            example={"B": 2, "h": 12, "w": 10},
            checks=({"B": 1, "h": 8, "w": 16}, {"B": 3, "h": 6, "w": 7}),
        )
        # The encoder and the codebook are no part of this graph, nor of its memory and its count of parameters.
        del network.encoder, network.quant_conv, network.quantize
        rewrites.spatial_norm_before_upsampling(network)
        rewrites.fold_upsampling(network)
        self.variants = (ATTENTION_IN_PARTS,)

    def forward(self, latents: Tensor) -> Tensor:
        """`latents` float32 (B, C, h, w) -> float32 (B, 8h, 8w, 3)."""
        latents = latents.to(self.network.dtype)
        sample: Tensor = self.network.decode(latents, force_not_quantize=True, return_dict=False)[0]
        return (sample.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def hint_channels(network: nn.Module) -> int:
    """Channels of the latents that a ControlNet UNet makes of its hint."""
    last: Any = hint_convolutions(network)[-1]
    return int(last.out_channels)


def hint_convolutions(network: nn.Module) -> nn.Sequential:
    """What makes latents of the hint in diffusers' UNet for `addition_embed_type` "image_hint"."""
    embedding: Any = network.add_embedding
    convolutions: nn.Sequential = embedding.input_hint_block
    return convolutions
