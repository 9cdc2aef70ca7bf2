"""The trained checkpoint, its bundle, and diffusers on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import Pipeline
from kandinsky22_export import export

from .reference import Reference

SHAPES = Path(__file__).parents[2] / "checkpoints" / "shapes"


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference(SHAPES)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "shapes"
    export(str(SHAPES / "decoder"), path)
    return path


@pytest.fixture(scope="session")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime") as pipeline:
        yield pipeline
