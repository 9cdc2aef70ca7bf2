"""What the config of each network may hold: the schema by which config.json is read, and the bounds of every number.

Only what stands here reaches the constructors of diffusers and transformers. Options that Kandinsky 2.2 does not use
must have their default: anything else would be another network. Other keys are dropped, since configs carry what many
versions of the libraries wrote; but those of REFUSED say that the weights are not to be read as they are.

Bounds lie far above the published sizes of `published.py` and far below what would take all memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from kandinsky22.schema import Rule, between, one_of

MOST_PARAMETERS = 8 * 10**9
"""Weights of one network. The largest that was published, the image encoder, has 1.8 * 10**9."""

REFUSED = ("quantization_config", "auto_map")
"""Keys of which something other than null says: the weights are of another form, the network is code of its own."""


def _just(number: int) -> Rule:
    return Rule(f"{number}", lambda value: value == number)


Width = Annotated[int, between(1, 1 << 14)]
Layers = Annotated[int, between(1, 128)]
Groups = Annotated[int, between(1, 256)]
Words = Annotated[int, between(1, 1 << 20)]
Side = Annotated[int, between(1, 1024)]
TokenId = Annotated[int, between(0, (1 << 20) - 1)]
Share = Annotated[float, Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)]
Epsilon = Annotated[float, Rule("a number above 0 and up to 1", lambda value: 0 < value <= 1)]
Factor = Annotated[float, Rule("a number above 0 and up to 1000", lambda value: 0 < value <= 1000)]
Activation = Annotated[str, one_of("gelu", "quick_gelu")]
Off = Annotated[bool, Rule("false", lambda value: not value)]
Silu = Annotated[str, one_of("silu", "swish")]

_LEVELS = Rule("a list of 1 to 8", lambda value: 1 <= len(value) <= 8)
Channels = Annotated[tuple[Annotated[int, between(1, 1 << 13)], ...], _LEVELS]
PerLevel = Annotated[tuple[Annotated[int, between(1, 1 << 14)], ...], _LEVELS]
LayersPerBlock = Annotated[int, between(1, 16)]


@dataclass(frozen=True)
class UnetConfig:
    """diffusers' UNet2DConditionModel, of the blocks of Kandinsky 2.2."""

    in_channels: Width
    out_channels: Width
    block_out_channels: Channels
    encoder_hid_dim: Width
    down_block_types: Annotated[
        tuple[Annotated[str, one_of("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")], ...], _LEVELS
    ]
    up_block_types: Annotated[
        tuple[Annotated[str, one_of("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")], ...], _LEVELS
    ]
    mid_block_type: Annotated[str, one_of("UNetMidBlock2DSimpleCrossAttn")]
    addition_embed_type: Annotated[str, one_of("image", "image_hint")]
    encoder_hid_dim_type: Annotated[str, one_of("image_proj")]
    sample_size: Side | tuple[Side, Side] | None = None
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, between(0, 1)] = 0
    only_cross_attention: bool | Annotated[tuple[bool, ...], _LEVELS] = False
    layers_per_block: LayersPerBlock | Annotated[tuple[LayersPerBlock, ...], _LEVELS] = 2
    downsample_padding: Annotated[int, between(0, 1)] = 1
    mid_block_scale_factor: Factor = 1.0
    dropout: Share = 0.0
    act_fn: Silu = "silu"
    norm_num_groups: Groups = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: Width | PerLevel = 1280
    transformer_layers_per_block: Annotated[int, between(1, 16)] = 1
    reverse_transformer_layers_per_block: None = None
    attention_head_dim: Width | PerLevel = 8
    num_attention_heads: Width | PerLevel | None = None
    dual_cross_attention: Off = False
    use_linear_projection: bool = False
    class_embed_type: None = None
    addition_time_embed_dim: Width | None = None
    num_class_embeds: None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: Annotated[str, one_of("default", "scale_shift")] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Factor = 1.0
    time_embedding_type: Annotated[str, one_of("positional")] = "positional"
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Silu | None = None
    timestep_post_act: Silu | None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: Annotated[int, _just(3)] = 3
    conv_out_kernel: Annotated[int, _just(3)] = 3
    projection_class_embeddings_input_dim: None = None
    attention_type: Annotated[str, one_of("default")] = "default"
    class_embeddings_concat: Off = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: Width = 64


@dataclass(frozen=True)
class MovqConfig:
    """diffusers' VQModel."""

    latent_channels: Width
    block_out_channels: Channels
    down_block_types: Annotated[
        tuple[Annotated[str, one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D")], ...], _LEVELS
    ]
    up_block_types: Annotated[tuple[Annotated[str, one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D")], ...], _LEVELS]
    in_channels: Annotated[int, _just(3)] = 3
    out_channels: Annotated[int, _just(3)] = 3
    layers_per_block: LayersPerBlock = 1
    act_fn: Silu = "silu"
    sample_size: Annotated[int, between(1, 1 << 14)] = 32
    num_vq_embeddings: Words = 256
    norm_num_groups: Groups = 32
    vq_embed_dim: Width | None = None
    scaling_factor: Factor = 0.18215
    norm_type: Annotated[str, one_of("group", "spatial")] = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False


@dataclass(frozen=True)
class PriorConfig:
    """diffusers' PriorTransformer."""

    embedding_dim: Width
    num_embeddings: Side
    num_attention_heads: Width = 32
    attention_head_dim: Width = 64
    num_layers: Layers = 20
    additional_embeddings: Annotated[int, between(0, 64)] = 4
    dropout: Share = 0.0
    time_embed_act_fn: Silu = "silu"
    norm_in_type: None = None
    embedding_proj_norm_type: None = None
    encoder_hid_proj_type: Annotated[str, one_of("linear")] = "linear"
    added_emb_type: Annotated[str, one_of("prd")] = "prd"
    time_embed_dim: Width | None = None
    embedding_proj_dim: Width | None = None
    clip_embed_dim: Width | None = None


@dataclass(frozen=True)
class TextConfig:
    """transformers' CLIPTextModelWithProjection."""

    vocab_size: Words = 49408
    hidden_size: Width = 512
    intermediate_size: Annotated[int, between(1, 1 << 16)] = 2048
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Side = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Share = 0.0
    initializer_range: Share = 0.02
    initializer_factor: Factor = 1.0
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 49406
    eos_token_id: TokenId = 49407


@dataclass(frozen=True)
class ImageConfig:
    """transformers' CLIPVisionModelWithProjection."""

    hidden_size: Width = 768
    intermediate_size: Annotated[int, between(1, 1 << 16)] = 3072
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    num_channels: Annotated[int, _just(3)] = 3
    image_size: Side = 224
    patch_size: Side = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Share = 0.0
    initializer_range: Share = 0.02
    initializer_factor: Factor = 1.0


@dataclass(frozen=True)
class ShortestEdge:
    """Pixels of the shorter side that a picture is resized to."""

    shortest_edge: Side


@dataclass(frozen=True)
class CropSize:
    """Pixels that are cut out of the middle."""

    height: Side
    width: Side


Mean = Annotated[float, Rule("a number from -100 to 100", lambda value: abs(value) <= 100)]
Deviation = Annotated[float, Rule("a number from 0.001 to 1000", lambda value: 1e-3 <= value <= 1000)]
On = Annotated[bool, Rule("true", bool)]
BICUBIC = 3  # Pillow's number
_BYTES = Rule("1/255", lambda value: math.isclose(value, 1 / 255, rel_tol=1e-6))


@dataclass(frozen=True)
class ProcessorConfig:
    """transformers' CLIPImageProcessor: pictures are resized, cropped and normalised as CLIP does, or refused."""

    do_resize: On = True
    size: Side | ShortestEdge = ShortestEdge(224)
    resample: Annotated[int, _just(BICUBIC)] = BICUBIC
    do_center_crop: On = True
    crop_size: Side | CropSize = CropSize(224, 224)
    do_rescale: On = True
    rescale_factor: Annotated[float, _BYTES] = 1 / 255
    do_normalize: On = True
    image_mean: tuple[Mean, Mean, Mean] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)


def fields_of(kind: Any) -> dict[str, Any]:
    """The options of a config's schema, by name, with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def options_of(config: Any) -> dict[str, Any]:
    """A config that was read, with every option: keywords of its network's constructor. Lists are tuples."""
    return {name: getattr(config, name) for name in fields_of(type(config))}


def refused(value: Mapping[str, Any]) -> str | None:
    """The key of REFUSED that a config has something for."""
    return next((key for key in REFUSED if value.get(key) is not None), None)
