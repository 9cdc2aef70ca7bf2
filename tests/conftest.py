"""The trained checkpoint and its bundle, exported once a session through the real exporter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import Pipeline
from kandinsky22_export import export


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    return Path(__file__).parents[1] / "checkpoints" / "shapes"


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("engines") / "shapes"
    export(str(shapes_checkpoint / "decoder"), path)
    return path


@pytest.fixture(scope="session")
def shapes_pipe(shapes_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        yield pipe
