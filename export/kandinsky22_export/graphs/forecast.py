"""Steps whose network is not computed: its output is extrapolated, and the scheduler's update applied to that.

Forecasts of a network's output are those of TaylorSeer (arXiv:2503.06923) and Spectrum (arXiv:2603.01623), of first
order, over the timestep.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kandinsky22.bundle.manifest import Role, TensorSpec
from kandinsky22_export.graphs.steps import QUANTILE, LatentsStep, known_inputs, latents_shape
from kandinsky22_export.graphs.update import COEFFICIENTS, paste


class ForecastStep(LatentsStep):
    """What the steps of all decoders without a network share: a weighted sum of two of its outputs, and the scheduler.

    `out_channels` are those of the network: twice the latents' `channels` where the variance is learned. `more` are
    inputs of this task alone.
    """

    per_step: ClassVar[tuple[str, ...]] = ("coefficients", "noise", "forecast_weights")

    def __init__(self, ranks: int, channels: int, out_channels: int, more: tuple[TensorSpec, ...] = ()):
        latents, model = latents_shape(channels), latents_shape(out_channels)
        super().__init__(
            nn.Identity(),
            ranks,
            channels,
            (
                TensorSpec("latents", "float32", latents),
                TensorSpec("x0_before", "float32", latents),
                TensorSpec("model_0", "float32", model),
                TensorSpec("model_1", "float32", model),
                TensorSpec("forecast_weights", "float32", (2,)),
                TensorSpec("coefficients", "float32", (COEFFICIENTS,)),
                TensorSpec("noise", "float32", latents),
                TensorSpec("thresholding", "float32", (3,)),
                *QUANTILE,
                *more,
            ),
            example={"B": 3, "h": 8, "w": 12},
            checks=({"B": 1, "h": 16, "w": 4}, {"B": 2, "h": 5, "w": 7}),
            learned_variance=out_channels == 2 * channels,
        )

    def predict(self, model_0: Tensor, model_1: Tensor, forecast_weights: Tensor) -> tuple[Tensor, Tensor]:
        """m and v of docs/bundle.md, float32 (B, C, h, w), from two outputs of the network (B, C or 2C, h, w)."""
        output = forecast_weights[0] * model_0 + forecast_weights[1] * model_1
        model = output[:, : self.channels]
        return model, output[:, self.channels :] if self.learned_variance else torch.zeros_like(model)

    def draw(self, spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """As `LatentsStep.draw`; the weights are those of a step half as far again as the two outputs are apart."""
        if spec.name == "forecast_weights":
            return torch.tensor([1.5, -0.5])
        return super().draw(spec, shape, generator)


class DecoderForecast(ForecastStep):
    """One step of the decoder of text to image without its network."""

    name = "decoder_forecast"
    role = Role.DECODER_FORECAST
    scheduler = "decoder"

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        model_0: Tensor,
        model_1: Tensor,
        forecast_weights: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
    ) -> tuple[Tensor, ...]:
        """State (B, C, h, w) and two outputs of the network -> `latents_next`, `x0`, both float32 (B, C, h, w)."""
        model, variance = self.predict(model_0, model_1, forecast_weights)
        return self.update(latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight)


class ControlnetForecast(DecoderForecast):
    """The same for a decoder with a hint, of which a forecast sees nothing."""

    name = "decoder_forecast_controlnet"
    role = Role.CONTROLNET_FORECAST
    scheduler = "controlnet"


class InpaintForecast(ForecastStep):
    """One step of an inpainting decoder without its network, and after it the pasting of what is known."""

    name = "decoder_forecast_inpaint"
    role = Role.INPAINT_FORECAST
    scheduler = "inpaint"
    per_step = (*ForecastStep.per_step, "known_scales")

    def __init__(self, ranks: int, channels: int, out_channels: int):
        super().__init__(ranks, channels, out_channels, known_inputs(channels))

    def forward(
        self,
        latents: Tensor,
        x0_before: Tensor,
        model_0: Tensor,
        model_1: Tensor,
        forecast_weights: Tensor,
        coefficients: Tensor,
        noise: Tensor,
        thresholding: Tensor,
        ranks: Tensor,
        rank_weight: Tensor,
        mask: Tensor,
        known: Tensor,
        known_noise: Tensor,
        known_scales: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `DecoderForecast.forward`; where `mask` (B, 1, h, w) is 1, `latents_next` is the noised `known`."""
        model, variance = self.predict(model_0, model_1, forecast_weights)
        following, *others = self.update(
            latents, x0_before, model, variance, coefficients, noise, thresholding, ranks, rank_weight
        )
        return paste(following, mask, known, known_noise, known_scales), *others
