"""Step graphs: network, guidance and scheduler update of one denoising step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kandinsky22.bundle.manifest import Role, TensorSpec
from kandinsky22_export.graphs import rewrites
from kandinsky22_export.graphs.base import Graph, Shape, Sizes
from kandinsky22_export.graphs.encoders import hint_channels
from kandinsky22_export.graphs.update import COEFFICIENTS, guide, paste, scheduler_update, thresholded_update

STATE = {"latents": "latents_next", "x0_before": "x0"}
PER_STEP = ("timestep", "coefficients", "noise")
QUANTILE = (TensorSpec("ranks", "int64", (2,)), TensorSpec("rank_weight", "float32", (1,)))
"""Inputs that say where dynamic thresholding finds its quantile."""


def latents_shape(channels: int) -> Shape:
    """The shape of something with so many channels at every latent pixel."""
    return "B", channels, "h", "w"


def known_inputs(channels: int) -> tuple[TensorSpec, ...]:
    """Inputs that say what of a picture is known, and how it is noised."""
    return (
        TensorSpec("mask", "float32", ("B", 1, "h", "w")),
        TensorSpec("known", "float32", latents_shape(channels)),
        TensorSpec("known_noise", "float32", latents_shape(channels)),
        TensorSpec("known_scales", "float32", (2,)),
    )


class Step(Graph):
    """What all step graphs share: state, what changes with the step, outputs, and how the feeds are drawn.

    `shape` is that of the state. Where `model_shape` is given, the graph hands out the network's output as `model` too,
    which is no state: guided, with all channels that the network has.
    """

    per_step: ClassVar[tuple[str, ...]] = PER_STEP

    def __init__(
        self,
        network: nn.Module,
        shape: Shape,
        inputs: tuple[TensorSpec, ...],
        example: Sizes,
        checks: tuple[Sizes, ...],
        model_shape: Shape | None = None,
    ):
        model = () if model_shape is None else (TensorSpec("model", "float32", model_shape),)
        super().__init__(
            network,
            inputs=inputs,
            outputs=(TensorSpec("latents_next", "float32", shape), TensorSpec("x0", "float32", shape), *model),
            example=example,
            checks=checks,
            state=STATE,
        )
        self.hands_out_model = model_shape is not None

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Feeds that reach every term of the update: no coefficient is zero, the variance is learned, x0 is cut."""
        match spec.name:
            case "timestep":
                return torch.randint(1, 999, shape, generator=generator).float()
            case "coefficients":
                return torch.tensor([1.1, -0.4, 0.6, 0.5, -0.2, 0.3, -3.0, -1.0, 1.0])
            case "guidance":
                return torch.tensor([-3.0, 4.0]) if shape[0] == 2 else torch.ones(1)
            case _:
                return super().draw(spec, shape, generator)


class PriorStep(Step):
    """One whole step of the prior: network, guidance, scheduler."""

    name = "prior_step"
    role = Role.PRIOR
    scheduler = "prior"

    def __init__(self, network: nn.Module, *, hand_out_model: bool = False):
        config: Any = network.config
        tokens, embedding = config.num_embeddings, config.embedding_dim
        shape = ("B", embedding)
        super().__init__(
            network,
            shape,
            inputs=(
                *_step_inputs(shape),
                TensorSpec("text_embeds", "float32", ("G", "B", config.embedding_proj_dim or embedding)),
                TensorSpec("text_hidden", "float32", ("G", "B", tokens, embedding)),
                TensorSpec("text_mask", "bool", ("G", "B", tokens)),
            ),
            example={"B": 3, "G": 2},
            checks=({"B": 1, "G": 2}, {"B": 2, "G": 1}),
            model_shape=shape if hand_out_model else None,
        )

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        guidance: Tensor,
        thresholding: Tensor,
        text_embeds: Tensor,
        text_hidden: Tensor,
        text_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """State (B, E) and conditioning (G, B, …) -> `latents_next`, `x0` and, if asked, `model`: float32 (B, E)."""
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
        quantile = torch.zeros_like(thresholding[:1])
        following, x0 = scheduler_update(
            latents, x0_before, model, torch.zeros_like(model), coefficients, noise, thresholding, quantile
        )
        return (following, x0, model) if self.hands_out_model else (following, x0)

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `Step.draw`; x0 is clipped to 1.5, and masks keep a beginning of every text."""
        match spec.name:
            case "thresholding":
                return torch.tensor([1.5, 1.5, 0.0])
            case "text_mask":
                lengths = torch.randint(2, shape[-1], (*shape[:-1], 1), generator=generator)
                return torch.arange(shape[-1]) < lengths
            case _:
                return super().draw(spec, shape, generator)


class LatentsStep(Step):
    """What the steps of all decoders share beside a network: dynamic thresholding, and the scheduler's update.

    `ranks` is K of docs/bundle.md: among how many of the largest |x0| of a picture the quantile is looked up.
    `channels` are those of the latents.
    """

    def __init__(
        self,
        network: nn.Module,
        ranks: int,
        channels: int,
        inputs: tuple[TensorSpec, ...],
        example: Sizes,
        checks: tuple[Sizes, ...],
        *,
        learned_variance: bool,
        model_shape: Shape | None = None,
    ):
        super().__init__(network, latents_shape(channels), inputs, example, checks, model_shape)
        self.ranks, self.channels, self.learned_variance = ranks, channels, learned_variance

    def update(
        self,
        latents: Tensor,
        x0_before: Tensor,
        model: Tensor,
        variance: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
    ) -> tuple[Tensor, ...]:
        """`latents_next`, `x0` (cut at the quantile of |x0| where `thresholding` says so), and `model` if asked for."""
        following, x0 = thresholded_update(
            latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight, self.ranks
        )
        if not self.hands_out_model:
            return following, x0
        return following, x0, torch.cat([model, variance], dim=1) if self.learned_variance else model

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `Step.draw`; dynamic thresholding is on, its quantile between two neighbours; half of a mask is 1."""
        match spec.name:
            case "thresholding":
                return torch.tensor([1.0, torch.finfo(torch.float32).max, 1.0])
            case "ranks":
                last = self.ranks - 1
                return torch.tensor([min(2, last), min(3, last)])
            case "rank_weight":
                return torch.tensor([0.3])
            case "mask":
                return (torch.rand(shape, generator=generator) < 0.5).float()
            case "known_scales":
                return torch.tensor([0.8, 0.6])
            case _:
                return super().draw(spec, shape, generator)


class UNetStep(LatentsStep):
    """What the steps of all UNets share: network, guidance, dynamic thresholding, scheduler.

    Of the UNet's input channels, `channels` are latents that are denoised. `more` are inputs of this task alone.

    With `hand_out_model` the graph has an output `model` (B, C or 2C, h, w): the guided channels and, where the
    variance is learned, that of the last branch. A forecast is made from it (`graphs/forecast.py`).
    """

    def __init__(
        self,
        network: nn.Module,
        ranks: int,
        channels: int,
        more: tuple[TensorSpec, ...] = (),
        *,
        hand_out_model: bool = False,
    ):
        config: Any = network.config
        # The UNet halves height and width at every level but the last, and cannot make odd ones whole again.
        unit = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(
            network,
            ranks,
            channels,
            (
                *_step_inputs(latents_shape(channels)),
                *QUANTILE,
                TensorSpec("image_embeds", "float32", ("G", "B", config.encoder_hid_dim)),
                *more,
            ),
            example={"B": 3, "G": 2, "h": 2 * unit, "w": 3 * unit},
            checks=({"B": 1, "G": 2, "h": 4 * unit, "w": unit}, {"B": 2, "G": 1, "h": unit, "w": 2 * unit}),
            learned_variance=config.out_channels == 2 * channels,
            model_shape=latents_shape(config.out_channels) if hand_out_model else None,
        )
        rewrites.fold_upsampling(network)
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
        return model, branches[-1, :, self.channels :] if self.learned_variance else torch.zeros_like(model)


class DecoderStep(UNetStep):
    """One whole step of the decoder of text to image."""

    name = "decoder_step"
    role = Role.DECODER
    scheduler = "decoder"

    def __init__(self, network: nn.Module, ranks: int, *, hand_out_model: bool = False):
        config: Any = network.config
        super().__init__(network, ranks, config.in_channels, hand_out_model=hand_out_model)

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        guidance: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
    ) -> tuple[Tensor, ...]:
        """State (B, C, h, w) and conditioning (G, B, E) -> `latents_next`, `x0`, both float32 (B, C, h, w).

        And `model` (B, C or 2C, h, w) where it is handed out.
        """
        model, variance = self.predict(latents, timestep, guidance, image_embeds)
        return self.update(latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight)


class ControlnetStep(UNetStep):
    """One whole step of a UNet that also sees a hint, of which `HintEncoder` has made latents.

    The network loses its own convolutions of the hint.
    """

    name = "decoder_step_controlnet"
    role = Role.CONTROLNET_DECODER
    scheduler = "controlnet"

    def __init__(self, network: nn.Module, ranks: int, *, hand_out_model: bool = False):
        config: Any = network.config
        channels = hint_channels(network)
        hint = TensorSpec("hint_latents", "float32", ("B", channels, "h", "w"))
        super().__init__(network, ranks, config.in_channels - channels, (hint,), hand_out_model=hand_out_model)
        self.network.add_embedding.input_hint_block = nn.Identity()

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        guidance: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
        hint_latents: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `DecoderStep.forward`, with `hint_latents` (B, C, h, w) for all branches alike."""
        model, variance = self.predict(latents, timestep, guidance, image_embeds, hint_latents)
        return self.update(latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight)


class InpaintStep(UNetStep):
    """One whole step of an inpainting UNet, and after it the pasting of what is known.

    The UNet sees the latents, as many channels of the masked picture, and the mask.
    """

    name = "decoder_step_inpaint"
    role = Role.INPAINT_DECODER
    scheduler = "inpaint"
    per_step = (*PER_STEP, "known_scales")

    def __init__(self, network: nn.Module, ranks: int, *, hand_out_model: bool = False):
        config: Any = network.config
        channels = (config.in_channels - 1) // 2
        super().__init__(network, ranks, channels, known_inputs(channels), hand_out_model=hand_out_model)

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        guidance: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        image_embeds: Tensor,
        mask: Tensor,
        known: Tensor,
        known_noise: Tensor,
        known_scales: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `DecoderStep.forward`; where `mask` (B, 1, h, w) is 1, `latents_next` is the noised `known` instead."""
        sample = torch.cat([latents, known * mask, mask], dim=1)
        model, variance = self.predict(sample, timestep, guidance, image_embeds)
        following, *others = self.update(
            latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight
        )
        return paste(following, mask, known, known_noise, known_scales), *others


def _repeat(latents: Tensor, conditioning: Tensor) -> Tensor:
    """`latents` (B, …) once for every branch of `conditioning` (G, B, …): (G·B, …)."""
    branches = conditioning.shape[0]
    return latents.unsqueeze(0).expand(branches, *latents.shape).flatten(0, 1)


def _step_inputs(shape: Shape) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("latents", "float32", shape),
        TensorSpec("x0_before", "float32", shape),
        TensorSpec("timestep", "float32", (1,)),
        TensorSpec("coefficients", "float32", (COEFFICIENTS,)),
        TensorSpec("noise", "float32", shape),
        TensorSpec("guidance", "float32", ("G",)),
        TensorSpec("thresholding", "float32", (3,)),
    )
