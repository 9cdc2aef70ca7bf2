"""The manifest: what a bundle says about itself. docs/bundle.md describes the format.

The exporter writes manifests with the same classes that `kandinsky22.bundle.reading` reads them into. The annotations
here are the schema (`kandinsky22.schema`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from kandinsky22.errors import BundleError
from kandinsky22.schema import NOT_EMPTY, Rule, between, matching, one_of

FORMAT_VERSION = 2


class Role(enum.StrEnum):
    """What a component is for. A bundle has at most one component for a role; its name is the bundle's own affair."""

    TEXT_ENCODER = "text_encoder"
    IMAGE_ENCODER = "image_encoder"
    PRIOR = "prior"
    DECODER = "decoder"
    CONTROLNET_DECODER = "controlnet_decoder"
    INPAINT_DECODER = "inpaint_decoder"
    DECODER_FORECAST = "decoder_forecast"
    CONTROLNET_FORECAST = "controlnet_forecast"
    INPAINT_FORECAST = "inpaint_forecast"
    DECODER_SHALLOW = "decoder_shallow"
    CONTROLNET_SHALLOW = "controlnet_shallow"
    INPAINT_SHALLOW = "inpaint_shallow"
    HINT_ENCODER = "hint_encoder"
    MOVQ_ENCODER = "movq_encoder"
    MOVQ_DECODER = "movq_decoder"


DECODERS = frozenset({Role.DECODER, Role.CONTROLNET_DECODER, Role.INPAINT_DECODER})
"""The roles of components that turn image embeddings into latents, a step at a time."""
FORECASTS = {
    Role.DECODER: Role.DECODER_FORECAST,
    Role.CONTROLNET_DECODER: Role.CONTROLNET_FORECAST,
    Role.INPAINT_DECODER: Role.INPAINT_FORECAST,
}
"""The roles of components that take steps of a decoder without its network, by the decoder's."""
SHALLOWS = {
    Role.DECODER: Role.DECODER_SHALLOW,
    Role.CONTROLNET_DECODER: Role.CONTROLNET_SHALLOW,
    Role.INPAINT_DECODER: Role.INPAINT_SHALLOW,
}
"""The roles of components that take steps of a decoder with its network's top level alone, by the decoder's."""
SKIPPING_ROLES = frozenset({*FORECASTS.values(), *SHALLOWS.values()})
"""The roles of components that take steps in place of a decoder."""
STEP_ROLES = DECODERS | SKIPPING_ROLES | {Role.PRIOR}
"""The roles of step graphs: those that are repeated, with a scheduler."""
LATENT_ROLES = frozenset({Role.HINT_ENCODER, Role.MOVQ_ENCODER, Role.MOVQ_DECODER})
"""The roles of components between pixels and latents."""

Name = Annotated[str, NOT_EMPTY, Rule("a text that can be printed", str.isprintable)]
Count = Annotated[int, between(1, 2**31 - 1)]
"""Sizes, channels, and what else there is one of or more."""
ComponentName = Annotated[str, matching("[A-Za-z0-9_]+", "the name of a component: letters, digits and underscores")]
FileName = Annotated[
    str,
    matching(
        r"(?!(.*/)?\.+(/|$))[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*",
        'the name of a file in the bundle, such as "onnx/movq_decoder.onnx"',
    ),
]
"""A path with slashes from the bundle's folder, which does not lead out of it on any system."""
PositiveFloat = Annotated[float, Rule("a number above 0", lambda value: value > 0)]
Precision = Annotated[str, one_of("fp32", "fp16")]
PRECISIONS = ("auto", "fp32", "bf16", "int8")
"""What graphs can be asked to be computed in: "auto" is the best for a bundle, "int8" needs one that has it."""
_FACTOR = "([A-Za-z_][A-Za-z0-9_]*|[1-9][0-9]{0,5})"
Dimension = Count | Annotated[str, matching(rf"{_FACTOR}( ?\* ?{_FACTOR})*", 'a dimension such as "h" or "8*h"')]

MODEL = "model"
"""The output of a decoder that has what its network gave, guided."""
FEATURES = "features"
"""The output of a decoder that has what its lower levels gave, and the input of its shallow step."""

ATTENTION_IN_PARTS = "attention_in_parts"
"""The variant of a graph for backends without a kernel that attends with wide heads and writes no scores out."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: `dtype` is NumPy's name, `shape` has numbers and symbolic dimensions.

    A symbolic dimension is a name, or a product such as "8*h".
    """

    name: Name
    dtype: Annotated[str, one_of("float32", "int64", "bool")]
    shape: tuple[Dimension, ...]

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
class GraphCheck:
    """One comparison of a graph with torch at its export: the largest relative error, and what was allowed."""

    sizes: dict[str, Count]
    error: Annotated[float, between(0)]
    bound: Annotated[float, between(0)]


@dataclass(frozen=True)
class Quantisation:
    """How a graph was quantised: to what `type`, how many `layers`, and which were `kept` in floating point.

    `kept` has the relative error that each of these layers would have had. `samples` are the states of real runs that
    ranges were taken from, `error` is that of the graph's first output beside what it was before, relative and of the
    worst of some of them.
    """

    type: Annotated[str, one_of("int8", "fp8")]
    layers: Annotated[int, between(0)]
    kept: dict[Name, Annotated[float, between(0)]]
    samples: Count
    error: Annotated[float, between(0)]


@dataclass(frozen=True)
class Cut:
    """Where a shallow step is cut from its decoder: at which `branch`, 0 being the one that leaves the fewest layers.

    `errors` are those of all branches: of the network's output, relative, with features of the step before, over so
    many `states` of real runs.
    """

    branch: Annotated[int, between(0)]
    errors: Annotated[tuple[Annotated[float, between(0)], ...], NOT_EMPTY]
    states: Count


@dataclass(frozen=True)
class Component:
    """One graph: what it is for, its files in the bundle, its interface, and how far it was from torch when exported.

    `files` are the ONNX file first and then its external data. `variants` are other ONNX files over the same external
    data, by the name of the other way in which they compute the same. `checks` are the exporter's measurements (shapes,
    largest relative error, bound).

    A step graph also says how it is repeated: `state` maps its state inputs to the outputs that replace them,
    `per_step` names the inputs that change with the step, and `scheduler` is the key of `Manifest.schedulers` whose
    schedule they come from. A plain graph has none of the three.

    `shares_weights_with` is the name of another component over the same weights, or None. `precision` is that of what
    is not quantised, `quantisation` says what is; None for a graph in floating point. `cut` is that of a shallow step.
    """

    role: Role = field(kw_only=True)
    files: Annotated[tuple[FileName, ...], NOT_EMPTY]
    inputs: Annotated[tuple[TensorSpec, ...], NOT_EMPTY]
    outputs: Annotated[tuple[TensorSpec, ...], NOT_EMPTY]
    precision: Precision
    parameters: Annotated[int, between(0)]
    scheduler: str | None = None
    state: dict[str, str] = field(default_factory=dict)
    per_step: tuple[str, ...] = ()
    shares_weights_with: str | None = None
    checks: tuple[GraphCheck, ...] = ()
    variants: dict[Name, FileName] = field(default_factory=dict)
    quantisation: Quantisation | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file of the bundle."""

    bytes: Annotated[int, between(0)]
    sha256: Annotated[str, matching("[0-9a-f]{64}", "a SHA-256 in hexadecimal")]


@dataclass(frozen=True)
class Text:
    """How a prompt becomes ids: how many there are, and the one that fills them up."""

    max_length: Count
    pad_token_id: Annotated[int, between(0, 2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes that the runtime asks about. None where the checkpoint has no such part.

    `latent_channels` and `downscale` (pixels a latent, a side) are MoVQ's; `learned_variance` and `default_size`
    (pixels a side that it was trained at) the decoder's; `image_size` is pixels a side that the image encoder sees.
    """

    latent_channels: Count | None = None
    downscale: Count | None = None
    embedding_dim: Count
    learned_variance: bool | None = None
    default_size: Count | None = None
    image_size: Count | None = None


@dataclass(frozen=True)
class Limits:
    """What the graphs were exported for: pixels a side, and among how many of the largest |x0| quantiles are found."""

    max_size: Count
    ranks: Count | None = None


@dataclass(frozen=True)
class ImageProcessor:
    """How pictures are made ready for the image encoder, see docs/bundle.md."""

    size: Count
    crop: Count
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    resample: Annotated[str, one_of("bicubic")]


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    `source` names checkpoints, revisions and versions. `precision` is "int8" or "fp8" where some components are
    quantised. `schedulers` holds diffusers' configs (with `_class_name`), by the names that components give. `text` is
    None without a prior, `image_processor` without an image encoder.
    """

    name: Name
    precision: Annotated[str, one_of("fp32", "fp16", "int8", "fp8")]
    opset: Count
    source: dict[str, Any]
    components: Annotated[dict[ComponentName, Component], NOT_EMPTY]
    files: dict[FileName, FileRecord]
    schedulers: dict[Name, dict[str, Any]]
    text: Text | None
    geometry: Geometry
    limits: Limits
    image_processor: ImageProcessor | None
    format_version: int = FORMAT_VERSION

    @property
    def downscale(self) -> int:
        """Pixels a latent, a side. A bundle without a decoder has none, and nothing that depends on them: then 8."""
        return self.geometry.downscale or 8

    @property
    def latent_channels(self) -> int:
        """Channels of latents. A bundle without a decoder has none; then the published 4."""
        return self.geometry.latent_channels or 4

    @property
    def default_size(self) -> int:
        """Pixels a side that the decoder was trained at; the published 512 for a bundle without one."""
        return self.geometry.default_size or 512

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
