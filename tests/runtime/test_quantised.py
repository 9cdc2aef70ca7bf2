"""Quantised bundles: pictures near those in floating point on every backend, and what each processor runs them in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from kandinsky22 import BackendError, Pipeline, backends
from kandinsky22.arrays import Floats
from kandinsky22.backends import Settings
from kandinsky22.backends.openvino import component as openvino
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import library
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import DECODERS, Role
from kandinsky22.bundle.reading import export_command
from kandinsky22.errors import BundleError
from kandinsky22.measure.likeness import psnr
from kandinsky22_export.quantise.layers import find_layers
from tests.runtime.conftest import Cli

PROMPTS = ["a large red circle in the middle of a blue background", "a small green triangle at the top"]
EASY = {"num_inference_steps": 20, "scheduler": "DDIMScheduler", "seed": [3, 4], "output_type": "np"}


@pytest.fixture(scope="module")
def exact(shapes_bundle: Path) -> Floats:
    """Pictures in float32."""
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        return pictures(pipe)


def pictures(pipe: Pipeline) -> Floats:
    images = pipe(PROMPTS, **EASY).images
    assert isinstance(images, np.ndarray)
    return images


def as_bytes(picture: Floats) -> NDArray[np.uint8]:
    return (picture * 255).round().astype(np.uint8)


def likeness(found: Floats, exact: Floats) -> float:
    """PSNR in dB of the picture that is least alike."""
    return min(psnr(as_bytes(one), as_bytes(other)) for one, other in zip(found, exact, strict=True))


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has products of bytes, and no bf16."""
    monkeypatch.setattr(openvino, "_has_bf16", lambda: False)
    monkeypatch.setattr(openvino, "_has_int8", lambda: True)


@pytest.fixture
def no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of before both."""
    monkeypatch.setattr(openvino, "_has_bf16", lambda: False)
    monkeypatch.setattr(openvino, "_has_int8", lambda: False)


def test_the_manifest_says_what_was_quantised_and_what_was_kept(int8_bundle: Path, shapes_bundle: Path) -> None:
    manifest = Bundle(int8_bundle).manifest
    assert manifest.precision == "int8"
    for name, component in manifest.components.items():
        found = component.quantisation
        if component.role in DECODERS | {Role.PRIOR, Role.MOVQ_ENCODER, Role.MOVQ_DECODER}:
            assert found is not None, name
            assert (found.type, component.precision) == ("int8", "fp32")
            layers = find_layers(onnx.load(shapes_bundle / component.files[0], load_external_data=False))
            assert found.layers + len(found.kept) == len(layers)
            kept = sum(layer.parameters for layer in layers if layer.name in found.kept)
            assert kept < 0.15 * sum(layer.parameters for layer in layers)
            assert 0 < found.error < 0.05
        else:
            assert found is None, name


def test_files_are_a_third(int8_bundle: Path, shapes_bundle: Path) -> None:
    def size(path: Path) -> int:
        bundle = Bundle(path)
        return sum(bundle.manifest.files[file].bytes for file in bundle.component("decoder_step").files)

    assert size(int8_bundle) < size(shapes_bundle) / 2.5


def test_a_manifest_whose_parts_disagree_is_refused(int8_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_bundle, tmp_path / "bundle")
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "precision": "fp16"}))
    with pytest.raises(BundleError, match=r'quantisation.type is "int8", expected the precision fp16'):
        Bundle(folder)


def test_it_is_exported_anew_in_int8(int8_bundle: Path) -> None:
    data = json.loads((int8_bundle / "manifest.json").read_text())
    assert "--precision int8" in export_command(data, int8_bundle)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_pictures_are_near_those_in_floating_point(int8_bundle: Path, exact: Floats, backend: str) -> None:
    with Pipeline.load(int8_bundle, backend) as pipe:
        assert likeness(pictures(pipe), exact) > 22


def test_pictures_are_near_without_bf16_too(int8_bundle: Path, exact: Floats, no_bf16: None) -> None:
    with Pipeline.load(int8_bundle, "openvino") as pipe:
        assert pipe.precision == "int8"
        assert likeness(pictures(pipe), exact) > 22


def test_without_products_of_bytes_it_is_computed_in_floating_point(
    int8_bundle: Path, exact: Floats, no_int8: None
) -> None:
    with Pipeline.load(int8_bundle, "openvino") as pipe:
        assert pipe.precision == "fp32"
        assert "lacks products of bytes" in pipe.backend.reason
        alone = pictures(pipe)
    assert likeness(alone, exact) > 26  # weights alone are rounded
    with pytest.raises(BackendError, match="no products of bytes"):
        Pipeline.load(int8_bundle, "openvino", precision="int8")(PROMPTS[0], num_inference_steps=1)


@pytest.mark.parametrize("component", ["decoder_step", "movq_decoder", "prior_step"])
def test_openvino_multiplies_in_int8(int8_bundle: Path, component: str, no_bf16: None) -> None:
    """All quantised products but none of those kept, by what the compiled graph says of itself."""
    bundle = Bundle(int8_bundle)
    with Pipeline.load(int8_bundle, "openvino") as pipe:
        pipe(PROMPTS[0], num_inference_steps=1, prior_num_inference_steps=2)
        loaded = next(each for key, each in pipe._components._loaded.items() if key.name == component)
        (graph,) = loaded.component._kept._graphs.values()  # type: ignore[attr-defined]
        nodes = [node for _, compiled in graph._parts for node in compiled.get_runtime_model().get_ops()]
    infos = [{key: str(value.astype(str)) for key, value in node.get_rt_info().items()} for node in nodes]
    kinds = ("Convolution", "FullyConnected", "FullyConnectedQuantizedLegacy")
    primitives = [info["primitiveType"] for info in infos if info.get("layerType") in kinds]
    quantisation = bundle.component(component).quantisation
    assert quantisation is not None
    in_bytes = [each for each in primitives if each.upper().endswith("I8")]
    assert len(in_bytes) == quantisation.layers
    assert len(primitives) > len(in_bytes)  # embeddings, and what was kept
    assert "Reference" not in {info.get("layerType") for info in infos}  # code that is there to be right, not fast


def test_a_picture_alone_is_what_it_is_beside_others(int8_bundle: Path, no_bf16: None) -> None:
    with Pipeline.load(int8_bundle, "openvino") as pipe:
        together = pictures(pipe)
        alone = pipe(PROMPTS[1], **{**EASY, "seed": 4}).images
    np.testing.assert_array_equal(alone[0], together[1])


def test_a_bundle_in_floating_point_has_no_int8(shapes_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"The bundle is in fp32; export it with --precision int8"):
        backends.get("openvino").load(Bundle(shapes_bundle), "movq_decoder", Settings("int8"))
    with pytest.raises(BackendError, match="have no int8 for this bundle, run in fp32"):
        backends.get("onnxruntime").load(Bundle(shapes_bundle), "movq_decoder", Settings("int8"))


def test_doctor_says_what_it_runs_in_and_why(int8_bundle: Path, cli: Cli, no_bf16: None) -> None:
    told = cli("doctor", int8_bundle).out
    assert "int8" in told
    assert "has products of bytes for int8, and lacks instructions for bf16" in told


def test_fp8_is_for_gpus(fp8_bundle: Path, cli: Cli) -> None:
    told = cli("doctor", fp8_bundle)
    assert (told.code, told.err) == (
        1,
        "error: No backend can run this bundle here; what each of them lacks is told above.\n",
    )
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(BackendError, match="in fp8, which runs on a GPU alone; export it with --precision int8"):
            backends.get(name, Bundle(fp8_bundle))


@pytest.mark.parametrize(("made", "type_"), [("int8_bundle", "Int8"), ("fp8_bundle", "FP8")])
def test_plans_multiply_in_the_types_of_quantised_graphs(
    made: str, type_: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no plan is built for real")
    bundle = Bundle(shutil.copytree(request.getfixturevalue(made), tmp_path / "bundle"))
    names = ["prior_step", "decoder_step", "movq_decoder"]
    flavour = library.flavour("tensorrt-rtx")
    records = plans.build(bundle, flavour, Profile(128, 128, 128), components=names, progress=False)
    for record in records:
        quantisation = bundle.component(record.component).quantisation
        assert quantisation is not None
        operands, floating = record.report.operands, record.report.floating
        assert operands[type_] > quantisation.layers / 2  # some become one
        named = {re.sub(r"_myl\d+_\d+$", "", each): each for each in floating}
        # What was kept is told by name, and by that of one where TensorRT makes one of two.
        assert len(named.keys() & quantisation.kept) >= len(quantisation.kept) / 2, floating
        # Beside it there are embeddings, and attention's own products, which have no fused kernel in fp32.
        others = [each for name, each in named.items() if name not in quantisation.kept]
        assert all("linear" in each or each.startswith("__fc") for each in others), others


def test_a_plan_that_multiplies_in_other_types_is_refused(int8_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no plan is built for real")
    folder = shutil.copytree(int8_bundle, tmp_path / "bundle")
    data = json.loads((folder / "manifest.json").read_text())
    text_encoder = data["components"]["text_encoder"]
    text_encoder["quantisation"] = data["components"]["prior_step"]["quantisation"]  # which is not so
    (folder / "manifest.json").write_text(json.dumps(data))
    flavour = library.flavour("tensorrt-rtx")
    with pytest.raises(BackendError, match="it multiplies nothing in Int8"):
        plans.build(Bundle(folder), flavour, Profile(128, 128, 128), components=["text_encoder"], progress=False)
