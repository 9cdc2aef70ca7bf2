"""A bundle is checked before it is used: what is missing, altered, of another format or hostile is refused."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky22 import BackendError, BundleError
from kandinsky22.backends import Settings, get
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.manifest import DECODERS, FORECASTS, SHALLOWS, Role, TensorSpec
from kandinsky22.bundle.reading import read_manifest
from kandinsky22.schema import SchemaError

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
    assert bundle.tokenizer() == (shapes_bundle / "tokenizer.json").read_bytes()
    names = {"zero_image_embeds", "clip_mean", "clip_std", "preview_weight", "preview_bias"}
    assert set(bundle.constants()) == names


def test_a_manifest_is_what_it_was_written_from(shapes_bundle: Path) -> None:
    text = (shapes_bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = read_manifest(text.encode(), shapes_bundle)
    assert manifest.to_json() == text
    assert read_manifest(manifest.to_json().encode(), shapes_bundle) == manifest


def test_components_are_found_by_what_they_are_for(shapes_bundle: Path) -> None:
    manifest = Bundle(shapes_bundle).manifest
    assert manifest.roles() == frozenset(Role) - set(SHALLOWS.values())
    assert {role: manifest.name_of(role) for role in manifest.roles()} == {
        Role.TEXT_ENCODER: "text_encoder",
        Role.IMAGE_ENCODER: "image_encoder",
        Role.PRIOR: "prior_step",
        Role.DECODER: "decoder_step",
        Role.CONTROLNET_DECODER: "decoder_step_controlnet",
        Role.INPAINT_DECODER: "decoder_step_inpaint",
        Role.DECODER_FORECAST: "decoder_forecast",
        Role.CONTROLNET_FORECAST: "decoder_forecast_controlnet",
        Role.INPAINT_FORECAST: "decoder_forecast_inpaint",
        Role.HINT_ENCODER: "hint_encoder",
        Role.MOVQ_ENCODER: "movq_encoder",
        Role.MOVQ_DECODER: "movq_decoder",
    }


def test_step_components_say_what_runs_them(shapes_bundle: Path) -> None:
    for component in Bundle(shapes_bundle).manifest.components.values():
        forecast = component.role in FORECASTS.values()
        step = component.role in DECODERS or component.role is Role.PRIOR or forecast
        assert bool(component.scheduler) == bool(component.state) == bool(component.per_step) == step
        scheduled = {"forecast_weights" if forecast else "timestep", "coefficients", "noise"} | (
            {"known_scales"} & {spec.name for spec in component.inputs}
        )
        assert set(component.per_step) == (scheduled if step else set())


def test_a_role_that_a_bundle_lacks_is_named(handmade_bundle: Bundle) -> None:
    have = "text_encoder, prior, decoder, movq_decoder"
    with pytest.raises(BundleError, match=rf"handmade has no component for the role 'hint_encoder' \(it has: {have}\)"):
        handmade_bundle.manifest.name_of(Role.HINT_ENCODER)


def test_two_components_for_one_role_are_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data["components"]["decoder_step_inpaint"].__setitem__("role", "decoder"))
    message = 'components.decoder_step_inpaint.role is "decoder", expected another role than that of decoder_step;'
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle(bundle_copy)


@pytest.mark.parametrize("key", ["size", "crop", "mean", "std", "resample", None])
def test_an_image_encoder_needs_to_know_how_pictures_are_prepared(key: str | None, bundle_copy: Path) -> None:
    def forget(data: Data) -> None:
        del (data if key is None else data["image_processor"])[key or "image_processor"]

    edit(bundle_copy, forget)
    with pytest.raises(BundleError, match=rf"image_processor{f'.{key}' if key else ''} is missing, expected"):
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


@pytest.mark.parametrize(
    "name",
    ["../secret", "onnx/../../secret", "..", ".", "", "onnx/..", "/etc/hostname", "C:\\secret", "..\\secret", "a//b"],
)
def test_a_manifest_cannot_point_out_of_its_folder(name: str, bundle_copy: Path) -> None:
    (bundle_copy.parent / "secret").write_bytes(b"secret")
    record = {"bytes": 6, "sha256": sha256(bundle_copy.parent / "secret")}
    edit(bundle_copy, lambda data: data["files"].__setitem__(name, record))
    with pytest.raises(BundleError, match=r"a key of files is .*, expected the name of a file in the bundle"):
        Bundle(bundle_copy)


def test_a_component_cannot_use_a_file_that_is_not_listed(bundle_copy: Path) -> None:
    for file, expected in (
        ("../copy/tokenizer.json", "the name of a file in the bundle"),
        ("manifest.json", "a file that the manifest lists"),
    ):
        edit(bundle_copy, lambda data, file=file: data["components"]["prior_step"].__setitem__("files", [file]))
        with pytest.raises(BundleError, match=rf'components\.prior_step\.files\[0\] is "{file}", expected {expected}'):
            Bundle(bundle_copy)


@pytest.mark.parametrize("version", [0, 1, 3, 2.0, "2", "\x1b[2J", "\ud800", None, True, [2]])
def test_another_format_version_is_refused_by_number(version: object, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data.__setitem__("format_version", version))
    found = "a list of 1" if isinstance(version, list) else json.dumps(version)
    message = (
        f"has bundle format {found}, this kandinsky22 reads 2; export it again: kandinsky22-export path/to/decoder"
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle(bundle_copy)


HUB = {"hub": "kandinsky-community/kandinsky-2-2-decoder", "revision": "0" * 40}
HOSTILE = "x; rm -rf ~"


@pytest.mark.parametrize(
    ("data", "command"),
    [
        ({}, "SOURCE"),
        ({"source": {"decoder": HUB}}, "kandinsky-community/kandinsky-2-2-decoder"),
        ({"source": {"decoder": HUB, "prior": HUB, "versions": {}}}, "kandinsky-community/kandinsky-2-2-decoder"),
        ({"source": {"prior": {"folder": "prior"}}}, "path/to/prior"),
        (
            {"source": {"inpaint": {"folder": "a"}, "controlnet": HUB, "prior": {"folder": "b"}}, "precision": "fp16"},
            "path/to/a --controlnet kandinsky-community/kandinsky-2-2-decoder --prior path/to/b --precision fp16",
        ),
        (
            {"source": {"random_weights": 7, "architecture": "kandinsky-2.2"}, "limits": {"max_size": 1024}},
            "--random-weights 7 --architecture kandinsky-2.2 --max-size 1024",
        ),
        ({"source": {"decoder": {"hub": HOSTILE}}, "limits": 7}, "SOURCE"),
        (
            {"source": {"decoder": {"folder": HOSTILE}, "inpaint": 3}, "limits": {"max_size": HOSTILE}},
            "SOURCE --inpaint SOURCE",
        ),
        ({"source": {"random_weights": 1, "architecture": HOSTILE}, "precision": HOSTILE}, "--random-weights 1"),
        ({"source": {"random_weights": HOSTILE, "architecture": "a"}}, "SOURCE"),
        ({"source": HOSTILE}, "SOURCE"),
    ],
)
def test_a_bundle_of_another_format_is_refused_with_the_command_that_exports_it_anew(
    data: Data, command: str, tmp_path: Path
) -> None:
    """Whoever copies it runs it: nothing of a manifest from elsewhere is in it but names and numbers."""
    (tmp_path / "my bundle").mkdir()
    (tmp_path / "my bundle" / "manifest.json").write_text(json.dumps({"format_version": 1, **data}))
    with pytest.raises(BundleError) as refused:
        Bundle(tmp_path / "my bundle")
    assert str(refused.value).endswith(f": kandinsky22-export {command} -o '{tmp_path / 'my bundle'}' --force")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b'"manifest"', b"{}", b'{"format_version": 2}', b"\xff\xfe\x00", b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(text: bytes, bundle_copy: Path) -> None:
    replace(bundle_copy / "manifest.json", text)
    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest: .*, expected |is not JSON"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    "key", ["name", "components", "files", "schedulers", "text", "geometry", "limits", "image_processor", "source"]
)
def test_a_manifest_that_lacks_a_part_is_refused(key: str, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data.__delitem__(key))
    with pytest.raises(BundleError, match=f"is not a manifest: {key} is missing, expected "):
        Bundle(bundle_copy)


STEP = "components.decoder_step"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "bell\a", 'name is "bell\\u0007", expected a text that can be printed'),
        ("precision", "int3", 'precision is "int3", expected one of fp32, fp16'),
        ("colour", "red", "colour is not known, expected only name, precision"),
        ("components", {}, "components is an object, expected something, not nothing"),
        (f"{STEP}.role", "unet", f'{STEP}.role is "unet", expected one of text_encoder, image_encoder'),
        (f"{STEP}.files", [], f"{STEP}.files is a list of 0, expected something"),
        (f"{STEP}.inputs.2.shape", 3, f"{STEP}.inputs[2].shape is 3, expected a list"),
        (f"{STEP}.inputs.2.shape", [0], f"{STEP}.inputs[2].shape[0] is 0, expected a number from 1 to"),
        (f"{STEP}.inputs.2.shape", ["0*h"], f'{STEP}.inputs[2].shape[0] is "0*h", expected a dimension such as'),
        (f"{STEP}.inputs.2.shape", ["h-1"], f'{STEP}.inputs[2].shape[0] is "h-1", expected a dimension such as'),
        (f"{STEP}.inputs.2.dtype", "float16", f'{STEP}.inputs[2].dtype is "float16", expected one of float32, int64'),
        (f"{STEP}.inputs.2.name", "latents", f'{STEP}.inputs[2].name is "latents", expected a name that no other has'),
        (f"{STEP}.state", {"x": "x0"}, f'a key of {STEP}.state is "x", expected an input of the component'),
        (f"{STEP}.state", {"latents": "y"}, f'{STEP}.state.latents is "y", expected an output of the type and shape'),
        (f"{STEP}.state", {"timestep": "x0"}, f'{STEP}.state.timestep is "x0", expected an output of the type'),
        (f"{STEP}.per_step", ["latents"], f'{STEP}.per_step[0] is "latents", expected an input of the component that'),
        (f"{STEP}.per_step", ["other"], f'{STEP}.per_step[0] is "other", expected an input of the component that'),
        (f"{STEP}.scheduler", "ddim", f'{STEP}.scheduler is "ddim", expected one of schedulers ('),
        (f"{STEP}.scheduler", None, f"{STEP}.scheduler is null, expected one of schedulers"),
        (f"{STEP}.shares_weights_with", "unet", f'{STEP}.shares_weights_with is "unet", expected the name of another'),
        (f"{STEP}.shares_weights_with", "decoder_step", "expected the name of another component, or null"),
        ("components.movq_decoder.scheduler", "decoder", "is a movq_decoder and has a scheduler"),
        ("components.movq_decoder.variants", {"fast": "onnx/x.onnx"}, 'variants.fast is "onnx/x.onnx", expected'),
        ("components.movq_decoder.checks.0.error", "inf", 'checks[0].error is "inf", expected a number'),
        ("schedulers.decoder", [], "schedulers.decoder is a list of 0, expected an object"),
        ("files", {"onnx/a": {"bytes": -1, "sha256": ""}}, 'files["onnx/a"].bytes is -1, expected a number of'),
        ("files", {"a": {"bytes": 1, "sha256": "F" * 64}}, "expected a SHA-256 in hexadecimal"),
        ("geometry.downscale", 0, "geometry.downscale is 0, expected a number from 1 to"),
        ("geometry.downscale", None, "geometry.downscale is null, expected a value, since"),
        ("geometry.learned_variance", None, "geometry.learned_variance is null, expected a value, since"),
        ("geometry.learned_variance", 1, "geometry.learned_variance is 1, expected true or false or null"),
        ("geometry.image_size", None, "geometry.image_size is null, expected a value, since"),
        ("limits.max_size", "large", 'limits.max_size is "large", expected a whole number'),
        ("limits.ranks", None, "limits.ranks is null, expected a value, since"),
        ("text", None, "text is null, expected a value, since"),
        ("text.max_length", 7.5, "text.max_length is 7.5, expected a whole number"),
        ("image_processor", None, "image_processor is null, expected a value, since"),
        ("image_processor.std", [1, 0, 1], "image_processor.std[1] is 0, expected a number above 0"),
        ("image_processor.mean", [1, 1], "image_processor.mean is a list of 2, expected a list of 3"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_told_with_its_place(
    path: str, value: object, message: str, bundle_copy: Path
) -> None:
    def change(data: Any) -> None:
        *way, last = path.split(".")
        for key in way:
            data = data[int(key) if isinstance(data, list) else key]
        data[last] = value

    edit(bundle_copy, change)
    with pytest.raises(BundleError, match=rf"manifest\.json is not a manifest: .*{re.escape(message)}") as refused:
        Bundle(bundle_copy)
    assert str(refused.value).endswith("; export the bundle again.")


@pytest.mark.parametrize("name", ["tokenizer.json", "constants.npz"])
def test_a_file_that_components_need_must_be_listed(name: str, bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data["files"].__delitem__(name))
    with pytest.raises(BundleError, match=rf'files\["{name}"\] is null, expected a value, since the bundle has a'):
        Bundle(bundle_copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=4,
)


def refusal(manifest: Any, bundle: Bundle) -> str | None:
    """Why a manifest is refused; None where it is read, and then it is what is written of it."""
    try:
        found = read_manifest(json.dumps(manifest).encode(), bundle.path)
    except (BundleError, SchemaError) as error:
        return str(error)
    assert read_manifest(found.to_json().encode(), bundle.path) == found
    return None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_put_anywhere_is_refused_in_one_sentence_or_a_manifest(
    data: st.DataObject, handmade_bundle: Bundle
) -> None:
    """Never an error of Python's own."""
    whole = json.loads(handmade_bundle.manifest.to_json())
    part: Any = whole
    while True:
        key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    match data.draw(st.sampled_from(["replace", "add", "remove"])):
        case "replace":
            part[key] = data.draw(JSON)
        case "add" if isinstance(part, dict):
            part[data.draw(st.text(max_size=9))] = data.draw(JSON)
        case _:
            del part[key]
    reason = refusal(whole, handmade_bundle)
    if reason is not None:
        assert "\n" not in reason
        assert ", expected" in reason or "has bundle format" in reason
        reason.encode()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("missing", "is not a folder"), ("file", "is not a folder"), (".", "has no manifest.json")):
        with pytest.raises(BundleError, match=reason):
            Bundle(tmp_path / name)


ROW = np.ones((1, 96), np.float32)
REST = {"clip_std": ROW, "zero_image_embeds": ROW}


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def member(data: bytes) -> bytes:
    """An archive of the three names, of which one holds `data`."""
    stream = io.BytesIO(archive(**REST))
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("clip_mean.npy", data)
    return stream.getvalue()


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def test_constants_are_vectors_read_within_bounds_and_never_unpickled(bundle_copy: Path) -> None:
    for data, reason in (
        (
            archive(clip_mean=np.array([{"run": "code"}], dtype=object), **REST),
            "has clip_mean as object 1, expected float32 1x",
        ),
        (archive(clip_mean=ROW.astype(np.float64), **REST), "has clip_mean as float64 1x96, expected float32 1x96"),
        (archive(clip_mean=ROW[0], **REST), "has clip_mean as float32 96, expected float32 1x96"),
        (archive(clip_mean=ROW, clip_std=ROW), "lacks zero_image_embeds, which the prior needs"),
        (archive(clip_mean=ROW, more=ROW), "has an array 'more', expected only zero_image_embeds"),
        (archive(clip_mean=ROW * np.inf, **REST), "has numbers that are not finite in clip_mean"),
        (archive(clip_mean=np.zeros((1 << 23,), np.float32)), r"holds \d+ bytes under one name, expected at most"),
        (member(b"\x93NUMPY\x01\x00"), "cannot be read: clip_mean is no array of NumPy"),
        (
            member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1000000000)}")),
            "has clip_mean as float32 1x1000000000",
        ),
        (
            member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 96)}")),
            "cannot be read: clip_mean has 0 bytes",
        ),
        (member(npy("(" * 5000)), "cannot be read: clip_mean is no array"),
        (b"no archive", r"cannot be read \(File is not a zip file"),
        (b"", r"cannot be read \(File is not a zip file"),
    ):
        replace(bundle_copy / "constants.npz", data)
        relist(bundle_copy, "constants.npz")
        with pytest.raises(BundleError, match=rf"constants\.npz {reason}.*; export the bundle again\.$"):
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "tokenizer.json", "constants.npz", "onnx/movq_decoder.onnx", "onnx/movq_decoder.onnx.data"],
)
@pytest.mark.parametrize("size", [None, 0])
@pytest.mark.parametrize("kind", ["a pipe or device", "a folder", "a device"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    kind: str, size: int | None, name: str, bundle_copy: Path
) -> None:
    """Even where the manifest says that it has the bytes that a pipe has."""
    if size is not None and name != "manifest.json":
        edit(bundle_copy, lambda data: data["files"][name].__setitem__("bytes", size))
    path = bundle_copy / name
    path.unlink()
    if kind == "a pipe or device":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        kind = "a pipe or device"
        path.symlink_to("/dev/zero")
    with pytest.raises(
        BundleError, match=rf"{re.escape(name)} (is a |cannot be read \(Is a ).*, ?(expected|where)|: exp"
    ):
        Bundle(bundle_copy)
