"""The bundle on disk: a folder of ONNX graphs whose files are verified before they are used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.bundle import checksums
from kandinsky22.bundle.manifest import Component, FileRecord, Manifest
from kandinsky22.bundle.reading import CONSTANTS, TOKENIZER, read_manifest
from kandinsky22.errors import BundleError
from kandinsky22.schema import MOST_BYTES, SchemaError

__all__ = ["CONSTANTS", "MANIFEST", "TOKENIZER", "Bundle"]

MANIFEST = "manifest.json"


class Bundle:
    """An exported bundle on disk: its manifest, and files that are verified before they are handed out."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder `path`, check its manifest as a whole and that every file is there in its full size.

        Raises BundleError where it is no bundle, is of another format version, or misses bytes.
        """
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self._verified: set[str] = set()
        for name, record in self.manifest.files.items():
            _check_size(self.path / name, record)

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
        return self.path / component.variants.get(variant, component.files[0])

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
                found = {name: file[name] for name in file.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again.") from error
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise BundleError(f"{path} has numbers that are not finite in {name}; export the bundle again.")
        return found

    def verified(self, name: str, *, afresh: bool = False) -> Path:
        """Path of a file of the bundle whose SHA-256 has been compared with the manifest's.

        Once per opened bundle, and not at all where it was by an earlier process and the file was not written to since,
        see `kandinsky22.bundle.checksums`; `afresh` reads it in any case.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"The bundle {self.path} does not list {name}; export it again.")
        path = self.path / name  # within the folder: the manifest's names were checked
        if afresh or name not in self._verified:
            _check_size(path, record)
            if not checksums.matches(path, record.sha256, afresh=afresh):
                raise BundleError(
                    f"{path} is not the file that was exported (SHA-256 differs); export the bundle again."
                )
            self._verified.add(name)
        return path


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    hint = "expected a folder written by kandinsky22-export"
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        what = "has no manifest.json" if path.is_dir() else "is not a folder"
        raise BundleError(f"{path} {what}: {hint}; export a checkpoint first: kandinsky22-export CHECKPOINT.") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error}): {hint}.") from error
    try:
        return read_manifest(text, path)
    except SchemaError as error:
        raise BundleError(f"{file} is not a manifest: {error}; export the bundle again.") from error


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path} is missing ({error.strerror}); export the bundle again.") from error
    if size != record.bytes:
        raise BundleError(f"{path} has {size} bytes, the manifest says {record.bytes}; export the bundle again.")
