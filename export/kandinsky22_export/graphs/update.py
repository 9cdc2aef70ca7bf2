"""The scheduler's update as a graph: guidance, thresholding, the coefficients of one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COEFFICIENTS = 9


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
    x: Tensor,
    x0_before: Tensor,
    model: Tensor,
    variance: Tensor,
    coefficients: Tensor,
    noise: Tensor,
    thresholding: Tensor,
    q: Tensor,
) -> tuple[Tensor, Tensor]:
    """The update of docs/bundle.md in float32: `latents_next` and `x0`, both like `x`.

    `variance` is v, `coefficients` (9), `thresholding` (3) is `floor, ceiling, divide`, and `q` is a quantile that
    broadcasts with `x`.
    """
    a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate = coefficients.unbind(0)
    floor, ceiling, divide = thresholding.unbind(0)
    bound = torch.minimum(torch.maximum(q, floor), ceiling)
    x0 = a_x * x + a_m * model
    x0 = torch.minimum(torch.maximum(x0, -bound), bound) / torch.where(divide > 0, bound, 1.0)
    sigma = gate * torch.exp(0.5 * (log_min + (variance + 1) * 0.5 * (log_max - log_min)))
    return b_0 * x0 + b_x * x + b_m * model + b_h * x0_before + sigma * noise, x0


def thresholded_update(
    x: Tensor,
    x0_before: Tensor,
    model: Tensor,
    variance: Tensor,
    coefficients: Tensor,
    noise: Tensor,
    thresholding: Tensor,
    ranks: Tensor,
    rank_weight: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """`scheduler_update` with x0 cut at the quantile of |x0|, looked up among its `count` largest values a picture."""
    clean = coefficients[0] * x + coefficients[1] * model
    quantile = largest_values_quantile(clean, count, ranks, rank_weight)
    return scheduler_update(x, x0_before, model, variance, coefficients, noise, thresholding, quantile)


def paste(following: Tensor, mask: Tensor, known: Tensor, known_noise: Tensor, known_scales: Tensor) -> Tensor:
    """`following` (B, C, h, w) where `mask` (B, 1, h, w) is 0, and where it is 1 the noised `known`."""
    noised = known_scales[0] * known + known_scales[1] * known_noise
    return mask * noised + (1 - mask) * following
