"""What every exported graph says about itself: inputs, outputs, dynamic dimensions, example shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kandinsky22.bundle.manifest import Role, TensorSpec

Sizes = Mapping[str, int]
Shape = tuple[int | str, ...]
Feeds = dict[str, Tensor]


class Graph(nn.Module):
    """One graph of the bundle: a module whose `forward` takes `inputs` in order and returns `outputs` in order.

    `name`, `role`, `scheduler`, `per_step`, `state` and `variants` are what the manifest says of it, see `Component`;
    `variants` are names of variants.VARIANTS. `example` are the sizes it is traced at, `checks` those it is compared
    with torch at: sizes that were not traced. `units` are what sizes are multiples of.
    """

    name: ClassVar[str]
    role: ClassVar[Role]
    scheduler: ClassVar[str | None] = None
    per_step: ClassVar[tuple[str, ...]] = ()

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


def picture_spec(name: str, scale: int, channels: int) -> TensorSpec:
    """Pictures of `scale` pixels a latent, channels last."""
    return TensorSpec(name, "float32", ("B", f"{scale}*h", f"{scale}*w", channels))
