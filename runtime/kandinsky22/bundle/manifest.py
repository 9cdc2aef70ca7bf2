"""The manifest: what a bundle says about itself. docs/bundle.md describes the format.

The exporter writes manifests with the same classes that read them here.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kandinsky22.errors import BundleError

FORMAT_VERSION = 2
STEP_SCHEDULERS = {
    "prior_step": "prior",
    "decoder_step": "decoder",
    "decoder_step_controlnet": "controlnet",
    "decoder_step_inpaint": "inpaint",
}
"""Whose scheduler of the manifest's `schedulers` each step component is run by."""


class Role(enum.StrEnum):
    """What a component is for. A bundle has at most one component for a role; its name is the bundle's own affair."""

    TEXT_ENCODER = "text_encoder"
    IMAGE_ENCODER = "image_encoder"
    PRIOR = "prior"
    DECODER = "decoder"
    CONTROLNET_DECODER = "controlnet_decoder"
    INPAINT_DECODER = "inpaint_decoder"
    HINT_ENCODER = "hint_encoder"
    MOVQ_ENCODER = "movq_encoder"
    MOVQ_DECODER = "movq_decoder"


DECODERS = frozenset({Role.DECODER, Role.CONTROLNET_DECODER, Role.INPAINT_DECODER})
"""The roles of components that turn image embeddings into latents, a step at a time."""

ATTENTION_IN_PARTS = "attention_in_parts"
"""The variant of a graph for backends without a kernel that attends with wide heads and writes no scores out."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: `dtype` is NumPy's name, `shape` has numbers and symbolic dimensions.

    A symbolic dimension is a name, or a product such as "8*h".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, where `sizes` has those of the names. Raises BundleError for a name that it lacks."""
        return tuple(d if isinstance(d, int) else self._product(d, sizes) for d in self.shape)

    def _product(self, dimension: str, sizes: Mapping[str, int]) -> int:
        factors = [factor.strip() for factor in dimension.split("*")]
        if any(not factor.isdecimal() and factor not in sizes for factor in factors):
            raise BundleError(
                f"{self.name} has a dimension {dimension!r}, of which only {', '.join(sizes)} are known here; "
                f"export the bundle again with this version."
            )
        return math.prod(int(factor) if factor.isdecimal() else sizes[factor] for factor in factors)


@dataclass(frozen=True)
class Component:
    """One graph: what it is for, its files in the bundle, its interface, and how far it was from torch when exported.

    `files` are the ONNX file first and then its external data. `variants` are other ONNX files over the same external
    data, by the name of the other way in which they compute the same. `checks` are the exporter's measurements (shapes,
    largest relative error, bound).

    A step graph also says how it is repeated: `state` maps its state inputs to the outputs that replace them,
    `per_step` names the inputs that change with the step, and `scheduler` is the key of `Manifest.schedulers` whose
    schedule they come from. A plain graph has none of the three.

    `shares_weights_with` is the name of another component over the same weights, or None.
    """

    role: Role = field(kw_only=True)
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    parameters: int
    scheduler: str | None = None
    state: dict[str, str] = field(default_factory=dict)
    per_step: tuple[str, ...] = ()
    shares_weights_with: str | None = None
    checks: tuple[dict[str, Any], ...] = ()
    variants: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    `source` names checkpoints, revisions and versions. `schedulers` holds diffusers' configs (with `_class_name`) of
    `prior`, `decoder`, `controlnet` and `inpaint`, as far as they are there. `text` has `max_length` and
    `pad_token_id`. `geometry` has `latent_channels`, `downscale`, `embedding_dim`, `learned_variance`, `default_size`
    (pixels a side that the UNet was trained at) and, in bundles that know of it, `image_size` (pixels a side that the
    image encoder sees). `limits` has `max_size` (pixels a side) and `ranks`. `image_processor` says how pictures are
    made ready for the image encoder, see docs/bundle.md; None without one.
    """

    name: str
    precision: str
    opset: int
    source: dict[str, Any]
    components: dict[str, Component]
    files: dict[str, FileRecord]
    schedulers: dict[str, dict[str, Any]]
    text: dict[str, Any]
    geometry: dict[str, Any]
    limits: dict[str, Any]
    image_processor: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    @property
    def downscale(self) -> int:
        """Pixels a latent, a side. A bundle without a decoder has none, and nothing that depends on them: then 8."""
        return int(self.geometry["downscale"] or 8)

    @property
    def default_size(self) -> int:
        """Pixels a side that the decoder was trained at; the published 512 for a bundle without one."""
        return int(self.geometry["default_size"] or 512)

    def roles(self) -> frozenset[Role]:
        """What the components of this bundle are for."""
        return frozenset(component.role for component in self.components.values())

    def name_of(self, role: Role) -> str:
        """The name of the component for `role`. Raises BundleError where the bundle was exported without one."""
        for name, component in self.components.items():
            if component.role is role:
                return name
        have = ", ".join(component.role for component in self.components.values()) or "nothing"
        raise BundleError(
            f"The bundle {self.name} has no component for the role {str(role)!r} (it has: {have}); "
            f"export a checkpoint that contains it."
        )

    def to_json(self) -> str:
        """The manifest as indented JSON, ended by a newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
        data = json.loads(text)
        components = {name: _component(value) for name, value in data.pop("components").items()}
        files = {name: FileRecord(**value) for name, value in data.pop("files").items()}
        roles = collections.Counter(component.role for component in components.values())
        if twice := [role for role, count in roles.items() if count > 1]:
            raise ValueError(f"more than one component for the role {str(twice[0])!r}")
        return Manifest(components=components, files=files, **data)


def _component(data: dict[str, Any]) -> Component:
    return Component(
        role=Role(data.pop("role")),
        inputs=_specs(data.pop("inputs")),
        outputs=_specs(data.pop("outputs")),
        files=tuple(data.pop("files")),
        per_step=tuple(data.pop("per_step")),
        checks=tuple(data.pop("checks")),
        **data,
    )


def _specs(data: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in data)
