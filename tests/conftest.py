"""The trained checkpoint and its bundle, exported once a session through the real exporter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import Pipeline
from kandinsky22.backends import LoadedComponent, Settings, onnxruntime
from kandinsky22.bundle import Bundle


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    return Path(__file__).parents[1] / "checkpoints" / "shapes"


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    """A bundle with every component."""
    from kandinsky22_export import export  # here, so that tests of the runtime alone need no torch

    path = tmp_path_factory.mktemp("engines") / "shapes"
    decoder, controlnet, inpaint = (
        str(shapes_checkpoint / name) for name in ("decoder", "controlnet-depth", "inpaint")
    )
    export(decoder, path, controlnet=controlnet, inpaint=inpaint)
    return path


@pytest.fixture(scope="session")
def shapes_pipe(shapes_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        yield pipe


@pytest.fixture(scope="session")
def handmade_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Four little graphs that stand for the real ones, written in a moment."""
    from .runtime.handmade import write_bundle

    return Bundle(write_bundle(tmp_path_factory.mktemp("engines") / "handmade"))


@pytest.fixture(scope="session")
def plain(handmade_bundle: Bundle) -> LoadedComponent:
    """The handmade decoder's step on the CPU, with the plain loop."""
    return onnxruntime.CPU.load(handmade_bundle, "decoder_step", Settings(threads=1))
