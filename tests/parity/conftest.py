"""diffusers on the trained checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from .reference import Reference


@pytest.fixture(scope="session")
def reference(shapes_checkpoint: Path) -> Reference:
    return Reference(shapes_checkpoint)
