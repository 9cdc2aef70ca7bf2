"""The bundle on disk: a folder of ONNX graphs whose files are verified before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kandinsky22 import files
from kandinsky22.arrays import Array
from kandinsky22.bundle import checksums, constants
from kandinsky22.bundle.checksums import AlteredError, HeldFile, Verified
from kandinsky22.bundle.manifest import Component, FileRecord, Manifest
from kandinsky22.bundle.reading import CONSTANTS, TOKENIZER, Verify, read_manifest
from kandinsky22.errors import BundleError, KandinskyError
from kandinsky22.schema import MOST_BYTES, SchemaError

MANIFEST = "manifest.json"
MOST_IN_MEMORY = 1 << 26
"""Size of a tokenizer and of constants that are read. The tokenizer of the published checkpoint has 2 million bytes."""


class Bundle:
    """An exported bundle on disk: its manifest, and files that are verified before they are handed out."""

    def __init__(self, path: str | Path, verify: Verify = "auto") -> None:
        """Open the folder `path`, check its manifest as a whole and that every file is there in its full size.

        Raises BundleError where it is no bundle, is of another format version, or misses bytes.
        """
        self.path = Path(path)
        self.verify = verify
        text = _manifest_text(self.path)
        self.manifest = _read_manifest(text, self.path)
        self.manifest_sha256 = hashlib.sha256(text).hexdigest()
        """Of the manifest that was read, in hexadecimal; the file may be another by now."""
        self._verified: dict[str, Verified] = {}
        for name, record in self.manifest.files.items():
            _check_file(self.path / name, record)

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

    @contextlib.contextmanager
    def reading(self, name: str, variant: str = "") -> Iterator[Path]:
        """The path that `graph` gives, for a library that reads the file and its weights within the block.

        Raises BundleError, at the end too: where one of them was written to, or replaced, meanwhile.
        """
        graph = self.graph(name, variant)
        try:
            yield graph
        except KandinskyError:
            self.held(name).close()  # what was altered meanwhile is the better reason
            raise
        self.held(name).close()

    def held(self, name: str) -> FilesInUse:
        """The files of component `name` that were verified, as they were then: for as long as a library uses them.

        Raises BundleError where one of them was written to, or replaced, since.
        """
        held = FilesInUse()
        try:
            for file in self.component(name).files:
                if file in self._verified:  # not where a backend has plans and reads no graph
                    path = self.path / file
                    with _reading(path):
                        held.add(HeldFile(path, self.manifest.files[file].sha256, self._verified[file]))
            altered = held.altered()
        except BaseException:
            held.close()
            raise
        if altered is not None:
            held.close()
            raise BundleError(
                f"{altered} was written to while it was loaded; wait until nobody writes to the bundle, and load it "
                "again."
            )
        return held

    def tokenizer(self) -> bytes:
        """What tokenizer.json holds, verified. Raises BundleError where the bundle has no text encoder."""
        return self._read(TOKENIZER)

    def constants(self) -> dict[str, Array]:
        """Constants of the checkpoint, see docs/bundle.md; an empty dictionary where none were exported."""
        if CONSTANTS not in self.manifest.files:
            return {}
        try:
            return constants.read(self._read(CONSTANTS), self.manifest)
        except constants.ConstantsError as error:
            raise BundleError(f"{self.path / CONSTANTS} {error}; export the bundle again.") from error

    def verified(self, name: str, *, afresh: bool = False) -> Path:
        """Path of a file of the bundle whose SHA-256 has been compared with the manifest's.

        It is read for that unless it was before, by this bundle or an earlier process (see `bundle.remembered`), and
        was not written to since; `afresh`, or a bundle that verifies "always", reads it in any case.

        Raises BundleError where it is another file, or none that can be read.
        """
        record, path = self._record(name), self.path / name  # within the folder: the manifest's names were checked
        afresh = afresh or self.verify == "always"
        with _reading(path):
            known = self._verified.get(name)
            if afresh or known is None or not known.settled or checksums.state(path) != known.state:
                self._verified.pop(name, None)
                _check_file(path, record)
                self._verified[name] = checksums.compare(path, record.sha256, afresh=afresh)
        return path

    def _read(self, name: str) -> bytes:
        """The bytes of a small file: those whose SHA-256 is the manifest's, whatever is written to the file since."""
        record, path = self._record(name), self.path / name
        with _reading(path):
            _check_file(path, record)
            data = files.read_regular(path, MOST_IN_MEMORY)
            if hashlib.sha256(data).hexdigest() != record.sha256:
                raise AlteredError("is not the file that was exported (SHA-256 differs)")
        return data

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"The bundle {self.path} does not list {name}; export it again.")
        return record


class FilesInUse:
    """The files that a loaded component may have mapped into memory: writing to them changes what it computes."""

    def __init__(self) -> None:
        self._files: list[HeldFile] = []

    def add(self, file: HeldFile) -> None:
        """One more."""
        self._files.append(file)

    def altered(self) -> Path | None:
        """The first that was written to since it was verified; None where none was."""
        return next((file.path for file in self._files if not file.intact()), None)

    def close(self) -> None:
        """Let go of them."""
        for file in self._files:
            file.close()


def _manifest_text(path: Path) -> bytes:
    hint = "expected a folder written by kandinsky22-export"
    try:
        return files.read_regular(path / MANIFEST, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if path.is_dir() else "is not a folder"
        raise BundleError(f"{path} {what}: {hint}; export a checkpoint first: kandinsky22-export CHECKPOINT.") from None
    except OSError as error:
        raise BundleError(f"{path / MANIFEST} cannot be read ({error.strerror}): {hint}.") from error


def _read_manifest(text: bytes, path: Path) -> Manifest:
    try:
        return read_manifest(text, path)
    except SchemaError as error:
        raise BundleError(f"{path / MANIFEST} is not a manifest: {error}; export the bundle again.") from error


def _check_file(path: Path, record: FileRecord) -> None:
    """Raise BundleError where no file of the recorded size has this name."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise BundleError(f"{path} is missing ({error.strerror}); export the bundle again.") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise BundleError(f"{path} is {what}, expected a file; export the bundle again.")
    if found.st_size != record.bytes:
        raise BundleError(
            f"{path} has {found.st_size} bytes, the manifest says {record.bytes}; export the bundle again."
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into BundleError."""
    try:
        yield
    except AlteredError as error:
        raise BundleError(f"{path} {error}; export the bundle again.") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the bundle again.") from error
