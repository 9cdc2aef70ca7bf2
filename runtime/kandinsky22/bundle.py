"""The bundle: a folder of ONNX graphs that says in `manifest.json` what it is, and is checked before it is used.

docs/bundle.md describes the format. The exporter writes manifests with the same classes that read them here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky22 import checksums
from kandinsky22.arrays import Array
from kandinsky22.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONSTANTS = "constants.npz"
STEP_SCHEDULERS = {
    "prior_step": "prior",
    "decoder_step": "decoder",
    "decoder_step_controlnet": "controlnet",
    "decoder_step_inpaint": "inpaint",
}
"""Whose scheduler of the manifest's `schedulers` each step component is run by."""
ATTENTION_IN_PARTS = "attention_in_parts"
"""The variant of a graph for backends without a kernel that attends with wide heads and writes no scores out."""

PIXELS_AT_ONCE = 1 << 20
"""What turns pictures into latents or back is given no more in one run, or one picture: MoVQ's memory grows with the
batch, its speed does not."""


def pictures_at_once(pixels: int) -> int:
    """How many pictures of so many `pixels` one run is given: at least one, and no more than `PIXELS_AT_ONCE`."""
    return max(1, PIXELS_AT_ONCE // pixels)


def runs(pictures: int, pixels: int) -> int:
    """In how many runs, as even as can be, so many pictures are given: each new number may be compiled for anew."""
    return -(-pictures // pictures_at_once(pixels))


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


class Bundle:
    """An exported bundle on disk: its manifest, and files that are verified before they are handed out."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder `path` and check that every file is there in its full size.

        Raises BundleError where it is no bundle, is of another format version, or misses bytes.
        """
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self._verified: set[str] = set()
        for name, record in self.manifest.files.items():
            _check_size(self._inside(name), record)

    def component(self, name: str) -> Component:
        """The component `name`. Raises BundleError where this bundle was exported without it."""
        try:
            return self.manifest.components[name]
        except KeyError:
            have = ", ".join(self.manifest.components) or "none"
            raise BundleError(
                f"The bundle {self.path} has no component {name!r} (it has: {have}); "
                f"export a checkpoint that contains it."
            ) from None

    def graph(self, name: str, variant: str = "") -> Path:
        """Path of the ONNX file of component `name`; its bytes and its weights' match the manifest's SHA-256.

        Where the component has the `variant`, it is that of the variant.
        """
        component = self.component(name)
        for file in component.files:
            self.verified(file)
        return self._inside(component.variants.get(variant, component.files[0]))

    def tokenizer(self) -> Path:
        """Path of tokenizer.json, verified. Raises BundleError where the bundle has no text encoder."""
        return self.verified(TOKENIZER)

    def constants(self) -> dict[str, Array]:
        """Constants of the checkpoint, see docs/bundle.md; an empty dictionary where none were exported."""
        if CONSTANTS not in self.manifest.files:
            return {}
        path = self.verified(CONSTANTS)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again.") from error

    def verified(self, name: str, *, afresh: bool = False) -> Path:
        """Path of a file of the bundle whose SHA-256 has been compared with the manifest's.

        Once per opened bundle, and not at all where it was by an earlier process and the file was not written to since,
        see `kandinsky22.checksums`; `afresh` reads it in any case.
        """
        path = self._inside(name)
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"The bundle {self.path} does not list {name}; export it again.")
        if afresh or name not in self._verified:
            _check_size(path, record)
            if not checksums.matches(path, record.sha256, afresh=afresh):
                raise BundleError(
                    f"{path} is not the file that was exported (SHA-256 differs); export the bundle again."
                )
            self._verified.add(name)
        return path

    def _inside(self, name: str) -> Path:
        """Path of `name`, which a manifest from elsewhere must not use to point out of its folder."""
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError(
                f"The manifest of {self.path} names a file outside of the bundle ({name}); do not use it."
            )
        return self.path / relative


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    hint = "expected a folder written by kandinsky22-export"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = "has no manifest.json" if path.is_dir() else "is not a folder"
        raise BundleError(f"{path} {what}: {hint}; export a checkpoint first: kandinsky22-export CHECKPOINT.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read ({error}): {hint}.") from error
    try:
        version = json.loads(text)["format_version"]
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{path} has bundle format {version}, this kandinsky22 reads {FORMAT_VERSION}; export it again."
            )
        manifest = Manifest.from_json(text)
        _require_complete(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is not a manifest ({error!r}): {hint}; export the bundle again.") from error
    return manifest


def _require_complete(manifest: Manifest) -> None:
    """Raise KeyError or TypeError where the manifest does not say what its components are run by."""
    facts = ("latent_channels", "downscale", "embedding_dim", "learned_variance", "default_size")
    needed = [(manifest.geometry, key) for key in facts]
    needed += [(manifest.limits, key) for key in ("max_size", "ranks")]
    if "text_encoder" in manifest.components:
        needed += [(manifest.text, key) for key in ("max_length", "pad_token_id")]
    needed += [(manifest.schedulers, name) for step, name in STEP_SCHEDULERS.items() if step in manifest.components]
    if "image_encoder" in manifest.components:
        needed += [(manifest.geometry, "image_size")]
        needed += [(manifest.image_processor or {}, key) for key in ("size", "crop", "mean", "std", "resample")]
    for part, key in needed:
        part[key]


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path} is missing ({error.strerror}); export the bundle again.") from error
    if size != record.bytes:
        raise BundleError(f"{path} has {size} bytes, the manifest says {record.bytes}; export the bundle again.")
