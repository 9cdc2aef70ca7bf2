"""The manifest of a bundle that is being written, with records of its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kandinsky22.bundle import bundle, checksums
from kandinsky22.bundle.manifest import FileRecord, Manifest
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.replacing import MARKER


def finish(manifest: Manifest, folder: Path, note: OnProgress = lambda component, stage: None) -> Manifest:
    """Write the manifest of the bundle in `folder` with records of all files that there are; that manifest."""
    note("manifest", "hashing")
    manifest = dataclasses.replace(manifest, files=_records(folder))
    (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _records(folder: Path) -> dict[str, FileRecord]:
    own = {folder / MARKER, folder / bundle.MANIFEST}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    return {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, checksums.sha256(path)) for path in files
    }
