"""A tiny checkpoint to alter, the modules of the trained one, and a stand-in for tracing, which takes the time."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, GraphCheck, Manifest
from kandinsky22_export import preview, write_bundle
from kandinsky22_export.graphs.base import Graph
from tests import tiny


@pytest.fixture(scope="session")
def drawn_parts() -> tiny.Parts:
    return tiny.parts()


@pytest.fixture
def tiny_parts(drawn_parts: tiny.Parts) -> tiny.Parts:
    """A copy of the test's own: graphs rewrite their networks in place."""
    return copy.deepcopy(drawn_parts)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, drawn_parts: tiny.Parts) -> Path:
    """A folder with `prior/`, `decoder/`, `controlnet/` and `inpaint/`. Tests that alter it work on a copy."""
    return drawn_parts.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def forged(tmp_path: Path, shapes_checkpoint: Path) -> Path:
    """A copy of the trained checkpoint for a test to forge files of; its weights are links, as in the Hub's cache."""
    folder = tmp_path / "forged"
    for name in ("prior", "decoder", "controlnet-depth", "inpaint"):
        for path in (path for path in (shapes_checkpoint / name).rglob("*") if path.is_file()):
            there = folder / path.relative_to(shapes_checkpoint)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path) if path.suffix == ".safetensors" else shutil.copy(path, there)
    return folder


@pytest.fixture(scope="session")
def shapes_parts(shapes_checkpoint: Path) -> tiny.Parts:
    """The modules that the bundle of shapes was made from."""
    return tiny.Parts.load(shapes_checkpoint)


@pytest.fixture(scope="session")
def shapes_manifest(shapes_bundle: Path) -> Manifest:
    return Bundle(shapes_bundle).manifest


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for the seconds of tracing: graphs are built, and files of the right names written.

    Previews are fitted to one picture: that is a second, too.
    """

    def stand_in(build: Callable[[], Graph], folder: Path, precision: str, note: Callable[[str], None]) -> Component:
        note("tracing")
        graph = build()
        files = (f"{graph.name}.onnx", f"{graph.name}.onnx.data")
        for file in files:
            (folder / file).write_bytes(np.random.default_rng(0).bytes(100))
        check = GraphCheck({"B": 1}, error=0.0, bound=1.0)
        return Component(
            role=graph.role,
            files=tuple(f"onnx/{f}" for f in files),
            inputs=graph.inputs,
            outputs=graph.outputs,
            precision=precision,
            parameters=1,
            scheduler=graph.scheduler,
            state=graph.state,
            per_step=graph.per_step,
            checks=(check,),
        )

    monkeypatch.setattr(write_bundle, "export_graph", stand_in)
    monkeypatch.setattr(preview, "PICTURES", 1)
