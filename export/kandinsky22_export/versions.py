"""Versions of the packages that a bundle is made with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package; "unknown" of one that is not installed, as where this runs from a source tree."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
