"""Profiles and records, without TensorRT: shapes, checks, and a file that does not survive a flipped bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kandinsky22 import BundleError, InputError
from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import choice, records
from kandinsky22.backends.tensorrt.profile import Profile, default_profile
from kandinsky22.backends.tensorrt.records import PlanRecord, Report, from_json
from kandinsky22.bundle.manifest import Component, Role, TensorSpec
from kandinsky22.schema import MOST_BYTES, SchemaError
from tests.runtime import plan_bundles
from tests.runtime.plan_bundles import SPECS, STATE


def component(name: str) -> Component:
    role = plan_bundles.ROLES[name]
    return Component((), *SPECS[name], precision="fp16", parameters=1, role=role, state=STATE.get(name, {}))


def ranges(profile: Profile, name: str) -> dict[str, object]:
    each = component(name)
    return {spec.name: profile.shapes(spec, each, 8) for spec in each.inputs}


def test_a_step_takes_every_side_on_its_own_one_or_two_branches_and_up_to_the_batch() -> None:
    assert ranges(Profile(384, 1024, 2048, 4), "decoder_step") == {
        "latents": ((1, 4, 48, 48), (1, 4, 128, 128), (4, 4, 256, 256)),
        "guidance": ((1,), (2,), (2,)),
        "image_embeds": ((1, 1, 6), (2, 1, 6), (2, 4, 6)),
    }


def test_a_static_profile_leaves_only_branches_and_batch() -> None:
    assert ranges(Profile(1024, 1024, 1024), "decoder_step") == {
        "latents": ((1, 4, 128, 128),) * 3,
        "guidance": ((1,), (2,), (2,)),
        "image_embeds": ((1, 1, 6), (2, 1, 6), (2, 1, 6)),
    }


def test_text_has_a_prompt_and_a_negative_prompt_of_every_picture() -> None:
    assert ranges(Profile(384, 1024, 2048, 4), "text_encoder") == {"input_ids": ((1, 7), (1, 7), (8, 7))}


@pytest.mark.parametrize(
    ("profile", "most"),
    [
        (Profile(384, 1024, 2048, 4), 1),  # 2048 x 2048 pixels are more than are ever decoded at once
        (Profile(512, 512, 512, 4), 4),  # 4 x 512 x 512 are exactly as many
        (Profile(512, 512, 512, 8), 4),
        (Profile(64, 128, 256, 3), 3),
    ],
)
def test_whole_pictures_come_no_more_at_once_than_the_runtime_decodes(profile: Profile, most: int) -> None:
    smallest, tuned, largest = ranges(profile, "movq_decoder")["latents"]  # type: ignore[misc]
    assert (smallest[0], tuned[0], largest[0]) == (1, 1, most)


def test_a_component_that_does_not_exist_yet_needs_no_code() -> None:
    hint = TensorSpec("hint", "float32", ("B", 3, "8*h", "8*w"))
    latents = TensorSpec("latents", "float32", ("B", 4, "h", "w"))
    step = Component(
        (), (latents, hint), (latents,), "fp16", 1, role=Role.CONTROLNET_DECODER, state={"latents": "latents_next"}
    )
    assert Profile(384, 512, 1024, 4).shapes(hint, step, 8) == ((1, 3, 384, 384), (1, 3, 512, 512), (4, 3, 1024, 1024))


def test_a_dimension_that_no_profile_knows_is_refused() -> None:
    odd = TensorSpec("odd", "float32", ("B", "2*q"))
    with pytest.raises(BundleError, match=r"odd has a dimension '2\*q'"):
        Profile(64, 128, 256).shapes(odd, Component((), (odd,), (), "fp16", 1, role=Role.DECODER), 8)


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        (Profile(100, 1024, 2048), "multiples of 64"),
        (Profile(0, 1024, 2048), "multiples of 64"),
        (Profile(1024, 512, 2048), "the smallest first"),
        (Profile(512, 1024, 4096), "exported for 2048"),
        (Profile(512, 1024, 2048, 0), "batch is 0"),
    ],
)
def test_profiles_of_no_picture_are_refused(tmp_path: Path, profile: Profile, sentence: str) -> None:
    bundle = plan_bundles.write_bundle(tmp_path, {"movq_decoder": plan_bundles.movq_decoder()})
    with pytest.raises(InputError, match=sentence):
        plans.build(bundle, plan_bundles.fake_flavour(), profile)


def test_profiles_name_themselves_and_the_arguments_that_give_them() -> None:
    assert str(Profile(384, 1024, 2048, 4)) == "384-1024-2048-b4"
    assert str(Profile(512, 512, 512)) == "512-b1"
    assert Profile(384, 1024, 2048, 4).arguments() == "--min 384 --opt 1024 --max 2048 --batch 4"
    assert Profile(512, 512, 512).arguments() == "--static 512 --batch 1"


@pytest.mark.parametrize(
    ("trained", "largest", "profile"),
    [
        (512, 2048, Profile(384, 1024, 2048)),
        (None, 2048, Profile(384, 1024, 2048)),
        (768, 1024, Profile(384, 1024, 1024)),
        (128, 2048, Profile(128, 128, 2048)),
        (512, 256, Profile(256, 256, 256)),
    ],
)
def test_the_default_profile_takes_pictures_of_the_default_size(
    tmp_path: Path, trained: int | None, largest: int, profile: Profile
) -> None:
    bundle = plan_bundles.write_bundle(tmp_path, {"movq_decoder": plan_bundles.movq_decoder()})
    manifest = bundle.manifest
    bundle.manifest = dataclasses.replace(
        manifest,
        geometry=dataclasses.replace(manifest.geometry, default_size=trained),
        limits=dataclasses.replace(manifest.limits, max_size=largest),
    )
    assert default_profile(bundle) == profile


def record(**changes: object) -> PlanRecord:
    fields = {
        "component": "decoder_step",
        "flavour": "tensorrt",
        "version": "11.4.0",
        "device": Device("NVIDIA H100", (9, 0)),
        "targets": (),
        "profile": Profile(384, 1024, 2048, 4),
        "shapes": {"latents": ((1, 4, 48, 48), (1, 4, 128, 128), (4, 4, 256, 256)), "guidance": ((1,), (2,), (2,))},
        "onnx": {"onnx/decoder_step.onnx": "00ff"},
        "settings": {"tf32": False},
        "plan": "decoder_step-00.plan",
        "bytes": 12,
        "sha256": "ab" * 32,
        "weight_bytes": 10,
        "seconds": 1.5,
        "peak_memory": 7,
        "report": Report({"Half": {"gemm": 2}}, {"Half": 4}, 2, 2, 2),
        "warnings": ("a", "b"),
    }
    return PlanRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"device": None, "targets": ("8.6", "12.0")}])
def test_a_record_survives_json(changes: dict[str, object]) -> None:
    whole = record(**changes)
    assert from_json(whole.to_json().encode()) == whole


def test_no_bit_of_a_record_can_change_unnoticed() -> None:
    whole = record()
    good = whole.to_json().encode()
    for place in range(len(good)):
        changed = good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :]
        try:
            found = from_json(changed)
        except SchemaError:  # what read_record turns into a BundleError
            continue
        assert found == whole, f"byte {place}"


def test_a_record_of_another_format_says_so(tmp_path: Path) -> None:
    path = tmp_path / "decoder_step.json"
    path.write_text(dataclasses.replace(record(), format_version=7).to_json())
    with pytest.raises(BundleError, match="format 7, this kandinsky22 reads 1"):
        choice.read_record(path)


@pytest.mark.parametrize("plan", ["../../other.plan", "/etc/passwd", "..", ""])
def test_a_record_must_not_point_out_of_its_folder(tmp_path: Path, plan: str) -> None:
    path = tmp_path / "decoder_step.json"
    path.write_text(record(plan=plan).to_json())
    with pytest.raises(BundleError, match=r"plan is .*, expected the name of a plan in its folder"):
        choice.read_record(path)


def test_misfit_names_the_input_and_what_it_takes() -> None:
    whole = record()
    assert whole.misfit({"latents": (4, 4, 48, 256), "guidance": (1,)}) is None
    assert whole.misfit({"latents": (5, 4, 48, 48)}) == (
        "it takes latents from (1, 4, 48, 48) to (4, 4, 256, 256), not (5, 4, 48, 48)"
    )
    for wrong in ((1, 4, 40, 48), (1, 4, 48, 264), (1, 4, 48), (1, 5, 48, 48)):
        assert whole.misfit({"latents": wrong}) is not None


def changed(data: dict[str, Any], **changes: Any) -> bytes:
    """The record in which parts are replaced, or removed where they are None, with a checksum that is right."""
    data = {name: value for name, value in {**data, **changes}.items() if changes.get(name, 0) is not None}
    return json.dumps({**data, "checksum": records._checksum(data)}).encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bytes": "12"}, 'bytes is "12", expected a whole number'),
        ({"bytes": -1}, "bytes is -1, expected a number from 0"),
        ({"bytes": 10**300}, "bytes is a number of many digits, expected a number from 0"),
        ({"peak_memory": True}, "peak_memory is true, expected a whole number"),
        ({"seconds": 1e400}, "seconds is Infinity, expected a number"),
        ({"sha256": "ab"}, 'sha256 is "ab", expected a SHA-256'),
        ({"device": {"name": "GPU"}}, "device.compute_capability is missing"),
        ({"device": 7}, "device is 7, expected"),
        ({"targets": "8.6"}, 'targets is "8.6", expected a list'),
        ({"profile": []}, "profile is a list of 0, expected an object"),
        ({"shapes": {}}, "shapes is an object, expected something"),
        ({"shapes": {"latents": [[1], [2]]}}, "shapes.latents is a list of 2, expected a list of 3"),
        ({"shapes": {"latents": [[1], [2], []]}}, "expected shapes of as many sides"),
        ({"report": None}, "report is missing"),
        ({"more": 1}, "more is not known"),
        ({"component": "\ud800"}, "component is .*, expected a text of whole characters"),
        ({"plan": "a\0.plan"}, "expected the name of a plan in its folder"),
    ],
)
def test_a_record_of_wrong_parts_is_refused_in_a_sentence(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "decoder_step.json"
    path.write_bytes(changed(dataclasses.asdict(record()), **changes))
    with pytest.raises(BundleError, match=rf"decoder_step\.json is not the record of a plan \(.*{reason}"):
        choice.read_record(path)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"7", b"{", b"[" * 100_000, b"\xff\x00", b'{"format_version": true}', b" " * (MOST_BYTES + 1)]
)
def test_what_is_no_record_is_refused_in_a_sentence(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "decoder_step.json"
    path.write_bytes(text)
    with pytest.raises(BundleError, match=r"decoder_step\.json (is not the record of a plan|cannot be read) \(.*\)$"):
        choice.read_record(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_record_that_is_no_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "decoder_step.json"
    make(path)
    with pytest.raises(BundleError, match=r"decoder_step\.json cannot be read \(Is a"):
        choice.read_record(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_plan_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    bundle = plan_bundles.write_bundle(tmp_path, {"decoder_step": plan_bundles.decoder_step()})
    os.mkfifo(tmp_path / "decoder_step-00.plan")
    plan = choice.Plan(tmp_path / "decoder_step.json", record(bytes=0, sha256=hashlib.sha256(b"").hexdigest()))
    with pytest.raises(BundleError, match=r"decoder_step-00\.plan cannot be read \(Is a FIFO.*Build it: "):
        choice._read_plan(plan, bundle, plan_bundles.fake_flavour())


def test_a_record_of_other_inputs_than_the_graphs_is_refused(tmp_path: Path) -> None:
    bundle = plan_bundles.write_bundle(tmp_path, {"decoder_step": plan_bundles.decoder_step()})
    folder, flavour = tmp_path / "tensorrt" / "any", plan_bundles.fake_flavour()
    folder.mkdir(parents=True)
    onnx = choice.onnx_hashes(bundle, "decoder_step")
    about = {"flavour": flavour.name, "version": flavour.version, "device": plan_bundles.GPU, "onnx": onnx}
    (folder / "decoder_step.json").write_text(record(**about).to_json())
    with pytest.raises(BundleError, match="it takes latents, guidance, other inputs than the graph"):
        choice.choose_plan(bundle, "decoder_step", flavour, plan_bundles.GPU, {"image_embeds": (1, 1, 6)})
