"""The bundle on disk: a folder of ONNX graphs whose files are verified before they are used."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.bundle import checksums
from kandinsky22.bundle.manifest import FORMAT_VERSION, STEP_SCHEDULERS, Component, FileRecord, Manifest
from kandinsky22.errors import BundleError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONSTANTS = "constants.npz"


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
        see `kandinsky22.bundle.checksums`; `afresh` reads it in any case.
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
