"""The manifest: what a bundle says about itself. docs/bundle.md describes the format.

The exporter writes manifests with the same classes that read them here.
"""

from __future__ import annotations

import dataclasses
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
    """One graph: its file in the bundle, its interface, and how far it was from torch when it was exported.

    `files` are the ONNX file first and then its external data; `state` maps state inputs of a step graph to the
    outputs that replace them; `checks` are the exporter's measurements (shapes, largest relative error, bound).
    `variants` are other ONNX files over the same external data, which compute the same in another way, by its name.
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    parameters: int
    state: dict[str, str] = field(default_factory=dict)
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

    def to_json(self) -> str:
        """The manifest as indented JSON, ended by a newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
        data = json.loads(text)
        components = {name: _component(value) for name, value in data.pop("components").items()}
        files = {name: FileRecord(**value) for name, value in data.pop("files").items()}
        return Manifest(components=components, files=files, **data)


def _component(data: dict[str, Any]) -> Component:
    return Component(
        inputs=_specs(data.pop("inputs")),
        outputs=_specs(data.pop("outputs")),
        files=tuple(data.pop("files")),
        checks=tuple(data.pop("checks")),
        **data,
    )


def _specs(data: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in data)
