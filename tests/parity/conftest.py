"""diffusers on the trained checkpoint, and a bundle with every component."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import Pipeline

from . import decoders
from .reference import Reference
from .task_reference import TaskReference


@pytest.fixture(scope="session")
def reference(shapes_checkpoint: Path) -> Reference:
    return Reference(shapes_checkpoint)


@pytest.fixture(scope="session")
def task_decoders(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the decoders beside the text-to-image one, by the exporter's words for them."""
    scratch = tmp_path_factory.mktemp("decoders")
    names = {"controlnet": "controlnet-depth", "inpaint": "inpaint"}
    return {word: decoders.folder(shapes_checkpoint, name, scratch) for word, name in names.items()}


@pytest.fixture(scope="session")
def task_reference(shapes_checkpoint: Path, task_decoders: dict[str, Path]) -> TaskReference:
    return TaskReference(shapes_checkpoint, **task_decoders)


@pytest.fixture(scope="session")
def tasks_bundle(
    tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path, task_decoders: dict[str, Path]
) -> Path:
    from kandinsky22_export import export

    path = tmp_path_factory.mktemp("engines") / "tasks"
    folders = {word: str(folder) for word, folder in task_decoders.items()}
    export(str(shapes_checkpoint / "decoder"), path, **folders)
    return path


@pytest.fixture(scope="session")
def tasks_pipe(tasks_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tasks_bundle, "onnxruntime") as pipe:
        yield pipe
