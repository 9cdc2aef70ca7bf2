"""The modules that become graphs: each names its inputs and outputs and can draw feeds of any size.

docs/bundle.md is the contract. Everything that crosses a graph's border is float32 (ids int64, masks bool); a network
in half precision casts inside. The scheduler's update is float32 always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky22.bundle import ATTENTION_IN_PARTS, TensorSpec
from kandinsky22_export import rewrites

Sizes = Mapping[str, int]
Feeds = dict[str, Tensor]

ROW = 9
STATE = {"latents": "latents_next", "x0_before": "x0"}
HINT_DOWNSCALE = 8  # three convolutions of stride 2, whatever the config says: ImageHintTimeEmbedding of diffusers


class Graph(nn.Module):
    """One graph of the bundle: a module whose `forward` takes `inputs` in order and returns `outputs` in order.

    `example` are the sizes it is traced at, `checks` those it is compared with torch at: sizes that were not traced.
    `state` says which output feeds which input of the next step. `units` are what sizes are multiples of. `variants`
    are names of variants.VARIANTS.
    """

    name: str

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        example: Sizes,
        checks: tuple[Sizes, ...],
        state: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.network: Any = network
        self.inputs, self.outputs, self.state = inputs, outputs, dict(state or {})
        self.example, self.checks = example, checks
        self.units: Sizes = {}
        self.variants: tuple[str, ...] = ()

    def feeds(self, sizes: Sizes, seed: int) -> Feeds:
        """Random inputs at `sizes`, the same for the same seed, alike in kind to those of a real run."""
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: self.draw(spec, spec.resolve(sizes), generator) for spec in self.inputs}

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """One random input of `shape`: Gaussian unless a graph knows better."""
        return torch.randn(shape, generator=generator)


class TextEncoder(Graph):
    """CLIP's text tower with projection: ids (B, T) -> embeddings (B, E) and hidden states (B, T, H)."""

    name = "text_encoder"

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

    def __init__(self, network: nn.Module):
        config: Any = network.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            inputs=(_picture("image", scale, config.in_channels),),
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

    def __init__(self, network: nn.Module):
        convolutions: Any = hint_convolutions(network)
        super().__init__(
            convolutions,
            inputs=(_picture("hint", HINT_DOWNSCALE, convolutions[0].in_channels),),
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

    def __init__(self, network: nn.Module):
        config: Any = network.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            inputs=(TensorSpec("latents", "float32", ("B", config.latent_channels, "h", "w")),),
            outputs=(_picture("image", scale, config.out_channels),),
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


class Step(Graph):
    """What all step graphs share: how the feeds are drawn."""

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Feeds that reach every term of the update: no coefficient is zero, the variance is learned, x0 is cut."""
        match spec.name:
            case "timestep":
                return torch.randint(1, 999, shape, generator=generator).float()
            case "row":
                return torch.tensor([1.1, -0.4, 0.6, 0.5, -0.2, 0.3, -3.0, -1.0, 1.0])
            case "guidance":
                return torch.tensor([-3.0, 4.0]) if shape[0] == 2 else torch.ones(1)
            case _:
                return super().draw(spec, shape, generator)


class PriorStep(Step):
    """One whole step of the prior: network, guidance, scheduler."""

    name = "prior_step"

    def __init__(self, network: nn.Module):
        config: Any = network.config
        tokens, embedding = config.num_embeddings, config.embedding_dim
        shape = ("B", embedding)
        super().__init__(
            network,
            inputs=(
                *_step_inputs(shape),
                TensorSpec("text_embeds", "float32", ("G", "B", config.embedding_proj_dim or embedding)),
                TensorSpec("text_hidden", "float32", ("G", "B", tokens, embedding)),
                TensorSpec("text_mask", "bool", ("G", "B", tokens)),
            ),
            outputs=_step_outputs(shape),
            example={"B": 3, "G": 2},
            checks=({"B": 1, "G": 2}, {"B": 2, "G": 1}),
            state=STATE,
        )

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        row: Tensor,
        noise: Tensor,
        guidance: Tensor,
        limits: Tensor,
        text_embeds: Tensor,
        text_hidden: Tensor,
        text_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """State (B, E) and conditioning (G, B, …) -> `latents_next`, `x0`, both float32 (B, E)."""
        network = self.network
        output = network(
            _repeat(latents, text_embeds).to(network.dtype),
            timestep,
            proj_embedding=text_embeds.flatten(0, 1).to(network.dtype),
            encoder_hidden_states=text_hidden.flatten(0, 1).to(network.dtype),
            attention_mask=text_mask.flatten(0, 1),
            return_dict=False,
        )[0]
        branches = output.float().unflatten(0, text_embeds.shape[:2])
        model = guide(branches, guidance)
        quantile = torch.zeros_like(limits[:1])
        return scheduler_update(latents, x0_before, model, torch.zeros_like(model), row, noise, limits, quantile)

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `Step.draw`; x0 is clipped to 1.5, and masks keep a beginning of every text."""
        match spec.name:
            case "limits":
                return torch.tensor([1.5, 1.5, 0.0])
            case "text_mask":
                lengths = torch.randint(2, shape[-1], (*shape[:-1], 1), generator=generator)
                return torch.arange(shape[-1]) < lengths
            case _:
                return super().draw(spec, shape, generator)


class UNetStep(Step):
    """What the steps of all UNets share: network, guidance, dynamic thresholding, scheduler.

    `ranks` is K of docs/bundle.md: among how many of the largest |x0| of a picture the quantile is looked up. Of the
    UNet's input channels, `channels` are latents that are denoised. `more` are inputs of this task alone.
    """

    def __init__(self, network: nn.Module, ranks: int, channels: int, more: tuple[TensorSpec, ...] = ()):
        config: Any = network.config
        shape = ("B", channels, "h", "w")
        # The UNet halves height and width at every level but the last, and cannot make odd ones whole again.
        unit = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            inputs=(
                *_step_inputs(shape),
                TensorSpec("ranks", "int64", (2,)),
                TensorSpec("rank_weight", "float32", (1,)),
                TensorSpec("image_embeds", "float32", ("G", "B", config.encoder_hid_dim)),
                *more,
            ),
            outputs=_step_outputs(shape),
            example={"B": 3, "G": 2, "h": 2 * unit, "w": 3 * unit},
            checks=({"B": 1, "G": 2, "h": 4 * unit, "w": unit}, {"B": 2, "G": 1, "h": unit, "w": 2 * unit}),
            state=STATE,
        )
        rewrites.fold_upsampling(network)
        self.ranks, self.channels = ranks, channels
        self.units = {"h": unit, "w": unit}

    def predict(
        self, sample: Tensor, timestep: Tensor, guidance: Tensor, image_embeds: Tensor, hint: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """m and v of docs/bundle.md, float32 (B, C, h, w), for what the UNet sees: `sample` and `hint` (B, …)."""
        network = self.network
        conditioning = {"image_embeds": image_embeds.flatten(0, 1).to(network.dtype)}
        if hint is not None:
            conditioning["hint"] = _repeat(hint, image_embeds).to(network.dtype)
        output = network(
            _repeat(sample, image_embeds).to(network.dtype),
            timestep,
            encoder_hidden_states=None,
            added_cond_kwargs=conditioning,
            return_dict=False,
        )[0]
        branches = output.float().unflatten(0, image_embeds.shape[:2])
        model = guide(branches[:, :, : self.channels], guidance)
        learned = network.config.out_channels == 2 * self.channels
        return model, branches[-1, :, self.channels :] if learned else torch.zeros_like(model)

    def update(
        self,
        latents: Tensor,
        x0_before: Tensor,
        model: Tensor,
        variance: Tensor,
        row: Tensor,
        noise: Tensor,
        limits: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`latents_next` and `x0`, cut at the quantile of |x0| where `limits` say so."""
        clean = row[0] * latents + row[1] * model
        quantile = largest_values_quantile(clean, self.ranks, ranks, rank_weight)
        return scheduler_update(latents, x0_before, model, variance, row, noise, limits, quantile)

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `Step.draw`; dynamic thresholding is on, with a quantile between two neighbours."""
        match spec.name:
            case "limits":
                return torch.tensor([1.0, torch.finfo(torch.float32).max, 1.0])
            case "ranks":
                last = self.ranks - 1
                return torch.tensor([min(2, last), min(3, last)])
            case "rank_weight":
                return torch.tensor([0.3])
            case _:
                return super().draw(spec, shape, generator)


class DecoderStep(UNetStep):
    """One whole step of the decoder of text to image."""

    name = "decoder_step"

    def __init__(self, network: nn.Module, ranks: int):
        config: Any = network.config
        super().__init__(network, ranks, config.in_channels)

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        row: Tensor,
        noise: Tensor,
        guidance: Tensor,
        limits: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """State (B, C, h, w) and conditioning (G, B, E) -> `latents_next`, `x0`, both float32 (B, C, h, w)."""
        model, variance = self.predict(latents, timestep, guidance, image_embeds)
        return self.update(latents, x0_before, model, variance, row, noise, limits, ranks, rank_weight)


class ControlnetStep(UNetStep):
    """One whole step of a UNet that also sees a hint, of which `HintEncoder` has made latents.

    The network loses its own convolutions of the hint.
    """

    name = "decoder_step_controlnet"

    def __init__(self, network: nn.Module, ranks: int):
        config: Any = network.config
        channels = hint_channels(network)
        hint = TensorSpec("hint_latents", "float32", ("B", channels, "h", "w"))
        super().__init__(network, ranks, config.in_channels - channels, (hint,))
        self.network.add_embedding.input_hint_block = nn.Identity()

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        row: Tensor,
        noise: Tensor,
        guidance: Tensor,
        limits: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
        hint_latents: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `DecoderStep.forward`, with `hint_latents` (B, C, h, w) for all branches alike."""
        model, variance = self.predict(latents, timestep, guidance, image_embeds, hint_latents)
        return self.update(latents, x0_before, model, variance, row, noise, limits, ranks, rank_weight)


class InpaintStep(UNetStep):
    """One whole step of an inpainting UNet, and after it the pasting of what is known.

    The UNet sees the latents, as many channels of the masked picture, and the mask.
    """

    name = "decoder_step_inpaint"

    def __init__(self, network: nn.Module, ranks: int):
        config: Any = network.config
        channels = (config.in_channels - 1) // 2
        more = (
            TensorSpec("mask", "float32", ("B", 1, "h", "w")),
            TensorSpec("known", "float32", ("B", channels, "h", "w")),
            TensorSpec("known_noise", "float32", ("B", channels, "h", "w")),
            TensorSpec("known_scales", "float32", (2,)),
        )
        super().__init__(network, ranks, channels, more)

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        row: Tensor,
        noise: Tensor,
        guidance: Tensor,
        limits: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
        mask: Tensor,
        known: Tensor,
        known_noise: Tensor,
        known_scales: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `DecoderStep.forward`; where `mask` (B, 1, h, w) is 1, `latents_next` is the noised `known` instead."""
        sample = torch.cat([latents, known * mask, mask], dim=1)
        model, variance = self.predict(sample, timestep, guidance, image_embeds)
        following, x0 = self.update(latents, x0_before, model, variance, row, noise, limits, ranks, rank_weight)
        noised = known_scales[0] * known + known_scales[1] * known_noise
        return mask * noised + (1 - mask) * following, x0

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `UNetStep.draw`; half of the mask is 1."""
        match spec.name:
            case "mask":
                return (torch.rand(shape, generator=generator) < 0.5).float()
            case "known_scales":
                return torch.tensor([0.8, 0.6])
            case _:
                return super().draw(spec, shape, generator)


def guide(branches: Tensor, guidance: Tensor) -> Tensor:
    """The branches (G, B, …) weighted by `guidance` (G) and summed: (B, …)."""
    weights = guidance.reshape(-1, *(1,) * (branches.ndim - 1))
    return (weights * branches).sum(0)


def largest_values_quantile(clean: Tensor, count: int, ranks: Tensor, weight: Tensor) -> Tensor:
    """The quantile of |clean| a picture, between its values at `ranks` in descending order: (B, 1, 1, 1).

    Only the `count` largest values are sorted. Padding by -1, less than any of them, lets small pictures have as many.
    """
    values = nn.functional.pad(clean.abs().flatten(1), (0, count), value=-1.0)
    largest = values.topk(count, dim=1).values
    pair = largest.index_select(1, ranks)
    quantile = (1 - weight) * pair[:, :1] + weight * pair[:, 1:]
    return quantile.reshape(-1, *(1,) * (clean.ndim - 1))


def scheduler_update(
    x: Tensor, x0_before: Tensor, model: Tensor, variance: Tensor, row: Tensor, noise: Tensor, limits: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """The update of docs/bundle.md in float32: `latents_next` and `x0`, both like `x`.

    `variance` is v, `row` (9), `limits` (3) is `floor, ceiling, divide`, and `q` a quantile that broadcasts with `x`.
    """
    a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate = row.unbind(0)
    floor, ceiling, divide = limits.unbind(0)
    bound = torch.minimum(torch.maximum(q, floor), ceiling)
    x0 = a_x * x + a_m * model
    x0 = torch.minimum(torch.maximum(x0, -bound), bound) / torch.where(divide > 0, bound, 1.0)
    sigma = gate * torch.exp(0.5 * (log_min + (variance + 1) * 0.5 * (log_max - log_min)))
    return b_0 * x0 + b_x * x + b_m * model + b_h * x0_before + sigma * noise, x0


def _repeat(latents: Tensor, conditioning: Tensor) -> Tensor:
    """`latents` (B, …) once for every branch of `conditioning` (G, B, …): (G·B, …)."""
    branches = conditioning.shape[0]
    return latents.unsqueeze(0).expand(branches, *latents.shape).flatten(0, 1)


def hint_channels(network: nn.Module) -> int:
    """Channels of the latents that a ControlNet UNet makes of its hint."""
    last: Any = hint_convolutions(network)[-1]
    return int(last.out_channels)


def hint_convolutions(network: nn.Module) -> nn.Sequential:
    """What makes latents of the hint in diffusers' UNet for `addition_embed_type` "image_hint"."""
    embedding: Any = network.add_embedding
    convolutions: nn.Sequential = embedding.input_hint_block
    return convolutions


def _picture(name: str, scale: int, channels: int) -> TensorSpec:
    """Pictures of `scale` pixels a latent, channels last."""
    return TensorSpec(name, "float32", ("B", f"{scale}*h", f"{scale}*w", channels))


def _step_inputs(shape: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("latents", "float32", shape),
        TensorSpec("x0_before", "float32", shape),
        TensorSpec("timestep", "float32", (1,)),
        TensorSpec("row", "float32", (ROW,)),
        TensorSpec("noise", "float32", shape),
        TensorSpec("guidance", "float32", ("G",)),
        TensorSpec("limits", "float32", (3,)),
    )


def _step_outputs(shape: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    return (TensorSpec("latents_next", "float32", shape), TensorSpec("x0", "float32", shape))
