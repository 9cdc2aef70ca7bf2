"""diffusers on the trained checkpoint, and on the decoders beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .reference import Reference
from .task_reference import TaskReference


@pytest.fixture(scope="session")
def reference(shapes_checkpoint: Path) -> Reference:
    return Reference(shapes_checkpoint)


@pytest.fixture(scope="session")
def task_reference(shapes_checkpoint: Path) -> TaskReference:
    return TaskReference(shapes_checkpoint)
