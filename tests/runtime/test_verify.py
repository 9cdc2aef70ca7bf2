"""Verification: it passes what is right, and catches what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kandinsky22 import BackendError, BundleError, InputError, backends
from kandinsky22.backends import Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import MANIFEST, Bundle
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.manifest import FileRecord
from kandinsky22.cli import main
from kandinsky22.cli.verify import table
from kandinsky22.measure import inputs, verify

SMALL = Profile(64, 128, 256, 2)


def altered(bundle: Bundle, folder: Path, name: str, alter: Callable[[Any], None]) -> Bundle:
    """A copy of a bundle with another graph in it."""
    shutil.copytree(bundle.path, folder)
    file = bundle.component(name).files[0]
    model = onnx.load(folder / file)
    alter(model.graph)
    onnx.save(model, folder / file)
    manifest = bundle.manifest
    record = FileRecord((folder / file).stat().st_size, sha256(folder / file))
    manifest = dataclasses.replace(manifest, files={**manifest.files, file: record})
    (folder / MANIFEST).write_text(manifest.to_json())
    return Bundle(folder)


class Wrong:
    """A backend that runs another bundle's graphs than it is asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def availability(self, bundle: Bundle | None = None) -> backends.Availability:
        return backends.Availability("wrong", True, "", precision="fp32")

    def load(self, bundle: Bundle, name: str, settings: Settings) -> backends.LoadedComponent:
        return CPU.load(self.bundle, name, Settings())


def test_openvino_computes_what_onnxruntime_does(handmade_bundle: Bundle) -> None:
    told: list[verify.Check] = []
    names, backend = ["text_encoder", "decoder_step"], backends.get("openvino")
    checks = verify.verify(
        handmade_bundle, backend, settings=Settings("fp32"), profile=SMALL, components=names, on_check=told.append
    )
    assert told == checks
    assert all(check.good for check in checks)
    assert {check.component for check in checks} == set(names)
    assert {check.place for check in checks} == set(verify.PLACES)
    assert {check.precision for check in checks} == {"fp32"}
    shapes = {check.place: check.shapes["latents"] for check in checks if check.component == "decoder_step"}
    assert shapes == {"min": (1, 4, 8, 8), "opt": (1, 4, 16, 16), "max": (2, 4, 32, 32)}
    assert "decoder_step" in table(checks)
    assert "WRONG" not in table(checks)


def scale(graph: Any) -> None:
    """Move one weight by 2 %."""
    (node,) = (node for node in graph.node if node.output[0] == "small")
    node.attribute[0].floats[0] *= 1.02


def swap(graph: Any) -> None:
    """Take two coefficients for each other."""
    (node,) = (node for node in graph.node if "b_0" in node.output)
    node.output[2], node.output[3] = node.output[3], node.output[2]


@pytest.mark.parametrize("alter", [scale, swap])
@pytest.mark.parametrize("name", ["decoder_step", "prior_step"])
def test_a_graph_that_is_a_little_wrong_is_caught(
    handmade_bundle: Bundle, tmp_path: Path, name: str, alter: Callable[[Any], None]
) -> None:
    wrong = Wrong(altered(handmade_bundle, tmp_path / "wrong", name, alter))
    checks = verify.verify(handmade_bundle, wrong, profile=SMALL)
    assert {check.component for check in checks} == set(handmade_bundle.manifest.components)
    assert {check.component for check in checks if not check.good} == {name}
    assert all(check.good for check in checks if check.component != name)
    assert "WRONG" in table(checks)


def test_errors_are_relative_and_of_the_worst_picture() -> None:
    theirs = np.random.default_rng(0).standard_normal((3, 1000))
    ours = theirs.copy()
    assert verify.relative_errors(ours, theirs) == (0, 0)
    ours[1] *= 1.01
    typical, largest = verify.relative_errors(ours, theirs)
    assert typical == pytest.approx(0.01)
    assert largest <= 0.01
    ours[2, 7] += 1
    assert verify.relative_errors(ours, theirs)[1] == pytest.approx(1 / np.abs(theirs).max())
    ours[0, 0] = np.nan
    assert verify.relative_errors(ours, theirs) == (np.inf, np.inf)
    assert verify.relative_errors(theirs[:2], theirs) == (np.inf, np.inf)
    assert verify.relative_errors(np.zeros(3), np.zeros(3)) == (0, 0)


def test_the_bounds_are_those_of_the_coarser_precision(handmade_bundle: Bundle) -> None:
    assert list(verify.BOUNDS) == ["fp32", "fp16", "bf16"]
    limits = [(bounds.typical, bounds.largest) for bounds in verify.BOUNDS.values()]
    assert limits == sorted(limits)
    (check, *_) = verify.verify(
        handmade_bundle, CPU, profile=SMALL, components=["text_encoder"], places=["min"], settings=Settings("fp32")
    )
    assert check.precision == "fp32"
    options: dict[str, Any] = {"profile": SMALL, "components": ["text_encoder"], "places": ["min"]}
    (coarse, *_) = verify.verify(handmade_bundle, Wrong(handmade_bundle), settings=Settings("bf16"), **options)
    assert coarse.precision == "bf16"
    half = dataclasses.replace(check, precision="fp16", typical=1e-2)
    assert half.good
    assert not dataclasses.replace(half, precision="fp32").good


def test_the_inputs_are_those_of_a_real_run_and_depend_on_the_seed_alone(handmade_bundle: Bundle) -> None:
    shapes = {"input_ids": (4, 8)}
    (ids,) = inputs.feeds(handmade_bundle, "text_encoder", shapes, 3).values()
    np.testing.assert_array_equal(ids, inputs.feeds(handmade_bundle, "text_encoder", shapes, 3)["input_ids"])
    assert (ids != inputs.feeds(handmade_bundle, "text_encoder", shapes, 4)["input_ids"]).any()
    assert ids.dtype == np.int64
    assert (ids >= 0).all()
    assert (ids[:, -1] == 7).all()
    specs = handmade_bundle.component("prior_step").inputs
    sizes = {"B": 3, "G": 2}
    shapes = {spec.name: tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape) for spec in specs}
    drawn = inputs.feeds(handmade_bundle, "prior_step", shapes, 0)
    assert {name: array.shape for name, array in drawn.items()} == shapes
    assert {spec.name: drawn[spec.name].dtype.name for spec in specs} == {spec.name: spec.dtype for spec in specs}
    assert drawn["guidance"].tolist() == [-3, 4]
    assert drawn["text_mask"][..., 0].all()
    assert not drawn["text_mask"][..., -1].any()


def test_mistakes_are_named(handmade_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no place 'middle'"):
        verify.verify(handmade_bundle, CPU, places=["middle"])
    with pytest.raises(BundleError, match="no component 'unet'"):
        verify.verify(handmade_bundle, CPU, components=["unet"])
    with pytest.raises(BackendError, match="no bounds for the precision int4"):
        verify.verify(handmade_bundle, CPU, settings=Settings("int4"))


def test_the_command_prints_a_table_and_fails_where_numbers_are_wrong(
    handmade_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(handmade_bundle.path), "--backend", "openvino", "--precision", "fp32", "--max", "128"]
    command += ["--min", "64", "--at", "min", "--component", "decoder_step"]
    assert main.main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backend"]["name"] == "openvino"
    assert [check["good"] for check in report["checks"]] == [True, True]

    wrong = Wrong(altered(handmade_bundle, tmp_path / "wrong", "decoder_step", swap))
    monkeypatch.setattr(backends, "get", lambda name, bundle: wrong)
    assert main.main(command) == 1
    printed = capsys.readouterr()
    assert "WRONG" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: decoder_step: the numbers are wrong")
    assert main.main([*command, "--max", "100"]) == 1
    assert "expected multiples of 64" in capsys.readouterr().err
