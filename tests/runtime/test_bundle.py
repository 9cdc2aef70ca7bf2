"""A bundle is checked before it is used: what is missing, altered, of another format or hostile is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, BundleError
from kandinsky22.backends import Settings, get
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.manifest import DECODERS, Manifest, Role, TensorSpec

Data = dict[str, Any]


def replace(path: Path, data: bytes) -> None:
    """Put other bytes in the place of a linked file."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def edit(bundle: Path, change: Callable[[Data], None]) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    replace(bundle / "manifest.json", json.dumps(data).encode())


def relist(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file that was replaced."""
    path = bundle / name
    record = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit(bundle, lambda data: data["files"].__setitem__(name, record))


def test_a_sound_bundle_hands_out_its_files(shapes_bundle: Path) -> None:
    bundle = Bundle(shapes_bundle)
    for name in bundle.manifest.components:
        assert bundle.graph(name) == shapes_bundle / "onnx" / f"{name}.onnx"
    assert bundle.tokenizer() == shapes_bundle / "tokenizer.json"
    assert set(bundle.constants()) == {"zero_image_embeds", "clip_mean", "clip_std"}


def test_a_manifest_is_what_it_was_written_from(shapes_bundle: Path) -> None:
    text = (shapes_bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_components_are_found_by_what_they_are_for(shapes_bundle: Path) -> None:
    manifest = Bundle(shapes_bundle).manifest
    assert manifest.roles() == frozenset(Role)
    assert {role: manifest.name_of(role) for role in Role} == {
        Role.TEXT_ENCODER: "text_encoder",
        Role.IMAGE_ENCODER: "image_encoder",
        Role.PRIOR: "prior_step",
        Role.DECODER: "decoder_step",
        Role.CONTROLNET_DECODER: "decoder_step_controlnet",
        Role.INPAINT_DECODER: "decoder_step_inpaint",
        Role.HINT_ENCODER: "hint_encoder",
        Role.MOVQ_ENCODER: "movq_encoder",
        Role.MOVQ_DECODER: "movq_decoder",
    }


def test_step_components_say_what_runs_them(shapes_bundle: Path) -> None:
    for component in Bundle(shapes_bundle).manifest.components.values():
        step = component.role in DECODERS or component.role is Role.PRIOR
        assert bool(component.scheduler) == bool(component.state) == bool(component.per_step) == step
        scheduled = {"timestep", "coefficients", "noise"} | (
            {"known_scales"} & {spec.name for spec in component.inputs}
        )
        assert set(component.per_step) == (scheduled if step else set())


def test_a_role_that_a_bundle_lacks_is_named(handmade_bundle: Bundle) -> None:
    have = "text_encoder, prior, decoder, movq_decoder"
    with pytest.raises(BundleError, match=rf"handmade has no component for the role 'hint_encoder' \(it has: {have}\)"):
        handmade_bundle.manifest.name_of(Role.HINT_ENCODER)


def test_two_components_for_one_role_are_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data["components"]["decoder_step_inpaint"].__setitem__("role", "decoder"))
    with pytest.raises(BundleError, match="more than one component for the role 'decoder'"):
        Bundle(bundle_copy)


def test_a_manifest_from_before_there_were_image_encoders_is_read(bundle_copy: Path) -> None:
    def age(data: Data) -> None:
        del data["image_processor"], data["geometry"]["image_size"], data["components"]["image_encoder"]

    edit(bundle_copy, age)
    bundle = Bundle(bundle_copy)
    assert bundle.manifest.image_processor is None
    assert bundle.graph("decoder_step").is_file()


@pytest.mark.parametrize("key", ["size", "crop", "mean", "std", "resample", None])
def test_an_image_encoder_needs_to_know_how_pictures_are_prepared(key: str | None, bundle_copy: Path) -> None:
    def forget(data: Data) -> None:
        del (data if key is None else data["image_processor"])[key or "image_processor"]

    edit(bundle_copy, forget)
    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [((), ()), ((3, "B"), (3, 2)), (("8*h", "h * 8", "h*w", 1), (40, 40, 35, 1)), (("2*3*w",), (42,))],
)
def test_a_shape_in_numbers(shape: tuple[int | str, ...], numbers: tuple[int, ...]) -> None:
    assert TensorSpec("x", "float32", shape).resolve({"B": 2, "h": 5, "w": 7}) == numbers


def test_a_dimension_of_another_version_is_named() -> None:
    with pytest.raises(BundleError, match=r"x has a dimension '8\*z', of which only B, h are known here; export"):
        TensorSpec("x", "float32", ("B", "8*z")).resolve({"B": 1, "h": 1})


@pytest.mark.parametrize("component", ["text_encoder", "prior_step", "decoder_step", "movq_decoder"])
def test_one_flipped_bit_in_the_weights_is_noticed(component: str, bundle_copy: Path) -> None:
    weights = bundle_copy / "onnx" / f"{component}.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    replace(weights, bytes(data))
    bundle = Bundle(bundle_copy)
    with pytest.raises(BundleError, match=rf"{component}\.onnx\.data is not the file that was exported .*SHA-256"):
        bundle.graph(component)


def test_a_graph_is_verified_as_its_weights_are(bundle_copy: Path) -> None:
    graph = bundle_copy / "onnx" / "prior_step.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    replace(graph, bytes(data))
    with pytest.raises(BundleError, match=r"prior_step\.onnx is not the file"):
        Bundle(bundle_copy).graph("prior_step")


@pytest.mark.parametrize(
    "name", ["onnx/decoder_step.onnx", "onnx/decoder_step.onnx.data", "tokenizer.json", "constants.npz"]
)
def test_a_file_cut_short_or_missing_is_noticed_at_once(name: str, bundle_copy: Path) -> None:
    replace(bundle_copy / name, (bundle_copy / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"has \d+ bytes, the manifest says \d+; export the bundle again"):
        Bundle(bundle_copy)
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=r"is missing .*; export the bundle again"):
        Bundle(bundle_copy)


def test_a_file_altered_while_the_bundle_is_open_is_noticed(bundle_copy: Path) -> None:
    bundle = Bundle(bundle_copy)
    replace(bundle_copy / "onnx" / "movq_decoder.onnx.data", b"short")
    with pytest.raises(BundleError, match="has 5 bytes"):
        bundle.graph("movq_decoder")


@pytest.mark.parametrize("name", ["../secret", "onnx/../../secret", "/etc/hostname"])
def test_a_manifest_cannot_point_out_of_its_folder(name: str, bundle_copy: Path) -> None:
    (bundle_copy.parent / "secret").write_bytes(b"secret")
    record = {"bytes": 6, "sha256": sha256(bundle_copy.parent / "secret")}
    edit(bundle_copy, lambda data: data["files"].__setitem__(name, record))
    with pytest.raises(BundleError, match="names a file outside of the bundle"):
        Bundle(bundle_copy)


def test_a_component_cannot_use_a_file_that_is_not_listed(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data["components"]["prior_step"].__setitem__("files", ["../copy/tokenizer.json"]))
    with pytest.raises(BundleError, match="outside of the bundle"):
        Bundle(bundle_copy).graph("prior_step")
    edit(bundle_copy, lambda data: data["components"]["prior_step"].__setitem__("files", ["manifest.json"]))
    with pytest.raises(BundleError, match=r"does not list manifest\.json"):
        Bundle(bundle_copy).graph("prior_step")


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_format_version_is_refused_by_number(version: object, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data.__setitem__("format_version", version))
    with pytest.raises(BundleError, match=rf"has bundle format {version}, this kandinsky22 reads 2"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b'"manifest"', b"{}", b'{"format_version": 2}', b"\xff\xfe\x00", b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(text: bytes, bundle_copy: Path) -> None:
    replace(bundle_copy / "manifest.json", text)
    with pytest.raises(BundleError, match=r"manifest\.json (is not a manifest|cannot be read)"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("key", ["name", "components", "files", "schedulers", "text", "geometry", "limits"])
def test_a_manifest_that_lacks_a_part_is_refused(key: str, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data.__delitem__(key))
    with pytest.raises(BundleError, match="is not a manifest"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    ("part", "key"),
    [("geometry", "downscale"), ("limits", "max_size"), ("text", "max_length"), ("schedulers", "decoder")],
)
def test_a_manifest_that_lacks_what_its_components_need_is_refused(part: str, key: str, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data[part].__delitem__(key))
    with pytest.raises(BundleError, match=rf"is not a manifest \(KeyError\('{key}'\)\)"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("key", ["files", "components"])
@pytest.mark.parametrize("value", [{"a": 1}, {"a": {}}, [], "text", None])
def test_a_part_of_another_kind_is_refused(key: str, value: object, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data.__setitem__(key, value))
    with pytest.raises(BundleError, match="is not a manifest"):
        Bundle(bundle_copy)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("missing", "is not a folder"), ("file", "manifest.json"), (".", "has no manifest.json")):
        with pytest.raises(BundleError, match=reason):
            Bundle(tmp_path / name)


def test_constants_are_never_unpickled(bundle_copy: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, clip_mean=np.array([{"run": "code"}], dtype=object))
    for data in (stream.getvalue(), b"no archive"):
        replace(bundle_copy / "constants.npz", data)
        relist(bundle_copy, "constants.npz")
        with pytest.raises(BundleError, match=r"constants\.npz cannot be read"):
            Bundle(bundle_copy).constants()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_graph_that_is_listed_and_yet_no_graph_is_refused_by_the_backend(
    backend: str, keep: float, bundle_copy: Path
) -> None:
    """As an exporter might leave it whose disk filled up: the manifest agrees with what is there."""
    graph = bundle_copy / "onnx" / "prior_step.onnx"
    data = graph.read_bytes()
    replace(graph, data[: int(len(data) * keep)])
    relist(bundle_copy, "onnx/prior_step.onnx")
    bundle = Bundle(bundle_copy)
    with pytest.raises(BackendError, match=r"cannot load .*prior_step\.onnx: \S"):
        get(backend).load(bundle, "prior_step", Settings())
