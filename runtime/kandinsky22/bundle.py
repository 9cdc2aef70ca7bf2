"""The bundle: a folder of ONNX graphs that says in `manifest.json` what it is, and is checked before it is used.

docs/bundle.md describes the format. The exporter writes manifests with the same classes that read them here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandinsky22.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONSTANTS = "constants.npz"
COMPONENTS = (
    "text_encoder",
    "image_encoder",
    "prior_step",
    "decoder_step",
    "decoder_step_controlnet",
    "decoder_step_inpaint",
    "movq_encoder",
    "movq_decoder",
)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: `dtype` is NumPy's name, `shape` has numbers and symbolic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Component:
    """One graph: its file in the bundle, its interface, and how far it was from torch when it was exported.

    `files` are the ONNX file first and then its external data; `state` maps state inputs of a step graph to the
    outputs that replace them; `checks` are the exporter's measurements (shapes, largest relative error, bound).
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    parameters: int
    state: dict[str, str] = field(default_factory=dict)
    checks: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    `source` names checkpoints, revisions and versions; `schedulers` holds diffusers' configs of `prior` and
    `decoder` (with `_class_name`); `text` has `max_length` and `pad_token_id`; `geometry` has `latent_channels`,
    `downscale`, `embedding_dim` and `learned_variance`; `limits` has `max_size` (pixels a side) and `ranks`.
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
    format_version: int = FORMAT_VERSION

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
    specs = {
        key: tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in data.pop(key))
        for key in ("inputs", "outputs")
    }
    return Component(files=tuple(data.pop("files")), checks=tuple(data.pop("checks")), **specs, **data)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
