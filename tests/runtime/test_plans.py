"""Plans are handed out only where every word of their record fits, and a build replaces them whole or not at all.

TensorRT has no part here: `build_plan` is replaced, and the plans are a few bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kandinsky22 import BackendError, BundleError
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.builder import Options
from kandinsky22.backends.tensorrt.profile import Profile, default_profile
from kandinsky22.backends.tensorrt.records import PlanRecord, Report
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Geometry
from tests.runtime.plan_bundles import (
    GPU,
    all_models,
    decoder_step,
    digest,
    fake_build,
    fake_flavour,
    movq_decoder,
    text_encoder,
    write_bundle,
)

RTX = fake_flavour()
WIDE = Profile(64, 128, 256, 2)
PLAN = b"a plan, were TensorRT to read it"

Build = Callable[..., list[PlanRecord]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", {"decoder_step": decoder_step()})


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`build_plan` replaced by one that gives PLAN; the graphs that it was called for."""
    calls: list[str] = []

    monkeypatch.setattr(plans, "build_plan", fake_build(PLAN, calls))
    return calls


def build(bundle: Bundle, flavour: library.Flavour = RTX, profile: Profile = WIDE, **more: Any) -> PlanRecord:
    """The record of the one plan that is built, with nothing printed."""
    (record,) = plans.build(bundle, flavour, profile, progress=False, **more)
    return record


def folder(bundle: Bundle) -> Path:
    (found,) = (path for path in (bundle.path / "tensorrt").iterdir() if path.is_dir())
    return found


def refused(bundle: Bundle, flavour: library.Flavour = RTX, device: Device = GPU, **more: Any) -> str:
    with pytest.raises(BundleError) as error:
        choice.verified_plan(bundle, "decoder_step", flavour, device, **more)
    return str(error.value)


def test_a_plan_that_fits_is_handed_out_with_its_record(bundle: Bundle, compiled: list[str]) -> None:
    record = build(bundle)
    plan, found = choice.verified_plan(bundle, "decoder_step", RTX, GPU, {"latents": (2, 4, 8, 32)})
    assert bytes(plan) == PLAN
    assert found.record == record
    assert choice.refusal(bundle, "decoder_step", RTX, GPU) is None
    assert record.sha256 == digest(PLAN)
    assert record.onnx == {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    assert record.weight_bytes == sum(entry.bytes for entry in bundle.manifest.files.values())
    assert folder(bundle).name == "rtx-1.7.0-64-128-256-b2"


def test_a_plan_of_tensorrt_lies_under_the_name_of_its_gpu(bundle: Bundle, compiled: list[str]) -> None:
    device = Device("NVIDIA H100 80GB HBM3", (9, 0))
    flavour = fake_flavour("tensorrt", "11.4.0")
    record = build(bundle, flavour, device=device)
    assert folder(bundle).name == "nvidia-h100-80gb-hbm3-11.4.0-64-128-256-b2"
    assert (record.device, record.targets) == (device, ())
    assert choice.verified_plan(bundle, "decoder_step", flavour, device)[1].record == record


def test_without_a_plan_the_command_that_builds_one_is_told(bundle: Bundle) -> None:
    sentence = refused(bundle)
    assert "has no plan of decoder_step for tensorrt-rtx" in sentence
    assert f"kandinsky22 build {bundle.path} --flavour tensorrt-rtx" in sentence


def test_a_component_that_the_bundle_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no component 'movq_encoder'"):
        choice.verified_plan(bundle, "movq_encoder", RTX, GPU)
    with pytest.raises(BundleError, match="no component 'movq_encoder'"):
        plans.build(bundle, RTX, WIDE, components=["movq_encoder"])


@pytest.mark.parametrize("place", [0, len(PLAN) // 2, len(PLAN) - 1])
def test_a_flipped_byte_is_refused(bundle: Bundle, compiled: list[str], place: int) -> None:
    record = build(bundle)
    path = folder(bundle) / record.plan
    path.write_bytes(PLAN[:place] + bytes([PLAN[place] ^ 1]) + PLAN[place + 1 :])
    sentence = refused(bundle)
    assert "is not the plan that was built (its SHA-256 differs)" in sentence
    assert sentence.endswith("--flavour tensorrt-rtx --min 64 --opt 128 --max 256 --batch 2")
    build(bundle)
    assert bytes(choice.verified_plan(bundle, "decoder_step", RTX, GPU)[0]) == PLAN


def test_a_cut_or_missing_plan_is_refused(bundle: Bundle, compiled: list[str]) -> None:
    path = folder_plan(bundle)
    path.write_bytes(PLAN[:-1])
    assert f"has {len(PLAN) - 1} bytes, its record says {len(PLAN)}" in refused(bundle)
    path.unlink()
    assert "cannot be read (No such file or directory)" in refused(bundle)


def folder_plan(bundle: Bundle) -> Path:
    record = build(bundle)
    return folder(bundle) / record.plan


def test_a_damaged_record_is_refused_and_built_again(bundle: Bundle, compiled: list[str]) -> None:
    build(bundle)
    path = folder(bundle) / "decoder_step.json"
    path.write_text(path.read_text().replace('"maximum": 256', '"maximum": 512'))
    assert "is not the record of a plan (its checksum differs)" in refused(bundle)
    build(bundle)
    assert compiled == ["decoder_step"] * 2
    assert choice.refusal(bundle, "decoder_step", RTX, GPU) is None


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing reads a plan: what differs is known from the records."""

    def read_bytes(path: Path) -> bytes:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.usefixtures("compiled", "unread")
def test_another_version_is_refused(bundle: Bundle) -> None:
    build(bundle)
    sentence = refused(bundle, fake_flavour(version="1.8.0"))
    assert "it was built by tensorrt-rtx 1.7.0, this is 1.8.0. Build it: kandinsky22 build" in sentence


@pytest.mark.usefixtures("compiled", "unread")
@pytest.mark.parametrize(
    "other", [Device("NVIDIA H200", (9, 0)), Device("NVIDIA H100", (10, 0))], ids=["name", "capability"]
)
def test_another_gpu_is_refused(bundle: Bundle, other: Device) -> None:
    flavour = fake_flavour("tensorrt", "11.4.0")
    build(bundle, flavour, device=Device("NVIDIA H100", (9, 0)))
    assert f"it was built for the GPU NVIDIA H100 (9.0), this is {other}." in refused(bundle, flavour, other)


@pytest.mark.usefixtures("compiled", "unread")
def test_a_gpu_that_rtx_plans_were_not_built_for_is_refused_with_what_helps(bundle: Bundle) -> None:
    build(bundle)
    turing = refused(bundle, device=Device("NVIDIA T4", (7, 5)))
    assert "built for the compute capabilities 8.6, 8.9, this is NVIDIA T4 (7.5)" in turing
    assert turing.endswith("--target 7.5")
    hopper = refused(bundle, device=Device("NVIDIA H100", (9, 0)))
    assert "TensorRT for RTX does not run on this GPU; use the flavour tensorrt." in hopper


@pytest.mark.usefixtures("compiled", "unread")
def test_a_plan_of_another_graph_or_other_weights_is_refused(bundle: Bundle) -> None:
    build(bundle)
    other = write_bundle(
        bundle.path, {"decoder_step": decoder_step(seed=1)}
    )  # the graph is the same: only weights differ
    assert "built from another ONNX graph (its SHA-256 is not the manifest's)" in refused(other)


@pytest.mark.usefixtures("compiled", "unread")
def test_the_other_flavour_s_plans_are_not_seen(bundle: Bundle) -> None:
    build(bundle)
    assert "has no plan of decoder_step for tensorrt." in refused(bundle, fake_flavour("tensorrt"))


@pytest.mark.usefixtures("compiled", "unread")
def test_inputs_that_a_plan_does_not_take_are_refused(bundle: Bundle) -> None:
    build(bundle)
    sentence = refused(bundle, shapes={"latents": (3, 4, 8, 8)})
    assert "it takes latents from (1, 4, 8, 8) to (2, 4, 32, 32), not (3, 4, 8, 8)" in sentence
    assert "--min … --max … --batch …" in sentence


@pytest.mark.usefixtures("compiled")
def test_of_several_plans_the_narrowest_that_takes_the_inputs_is_chosen(bundle: Bundle) -> None:
    static, wide = build(bundle, profile=Profile(128, 128, 128, 1)), build(bundle)
    widest = build(bundle, profile=Profile(64, 128, 512, 2))

    def chosen(shapes: dict[str, tuple[int, ...]] | None) -> PlanRecord:
        return choice.verified_plan(bundle, "decoder_step", RTX, GPU, shapes)[1].record

    assert chosen({"latents": (1, 4, 16, 16)}) == static
    assert chosen({"latents": (2, 4, 16, 16)}) == wide
    assert chosen({"latents": (1, 4, 16, 64)}) == widest
    assert chosen(None) == widest


@pytest.mark.usefixtures("compiled")
def test_a_plan_that_does_not_belong_here_does_not_hide_one_that_does(bundle: Bundle) -> None:
    build(bundle, fake_flavour(version="1.6.0"))
    good = build(bundle)
    (bundle.path / "tensorrt" / "broken").mkdir()
    (bundle.path / "tensorrt" / "broken" / "decoder_step.json").write_text("{")
    assert choice.verified_plan(bundle, "decoder_step", RTX, GPU)[1].record == good


def test_a_plan_replaced_while_it_is_read_is_read_again(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle)
    read, built = choice.open_regular, []

    def open_regular(path: Path, most: int) -> BufferedReader:
        if not built:
            built.append(True)
            monkeypatch.setattr(plans, "build_plan", fake_build(b"newer"))
            build(bundle, rebuild=True)
        return read(path, most)

    monkeypatch.setattr(choice, "open_regular", open_regular)
    assert bytes(choice.verified_plan(bundle, "decoder_step", RTX, GPU)[0]) == b"newer"


def test_a_build_goes_on_where_it_was(tmp_path: Path, compiled: list[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle", all_models())
    first = plans.build(bundle, RTX, WIDE, components=["decoder_step"])
    everything = plans.build(bundle, RTX, WIDE)
    assert compiled == ["decoder_step", "text_encoder", "movq_decoder"]
    assert [record.component for record in everything] == ["text_encoder", "decoder_step", "movq_decoder"]
    assert everything[1] == first[0]
    plans.build(bundle, RTX, WIDE)
    assert len(compiled) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"rebuild": True},
        {"options": Options(allow_unfused=True)},
        {"options": Options(targets=("8.6",))},
    ],
)
def test_what_would_be_another_plan_is_built_again(bundle: Bundle, compiled: list[str], change: dict[str, Any]) -> None:
    build(bundle)
    build(bundle, **change)
    assert compiled == ["decoder_step"] * 2


def test_after_an_export_only_what_changed_is_built_again(tmp_path: Path, compiled: list[str]) -> None:
    models = all_models()
    plans.build(write_bundle(tmp_path, models), RTX, WIDE)
    compiled.clear()
    plans.build(write_bundle(tmp_path, {**models, "decoder_step": decoder_step(seed=1)}), RTX, WIDE)
    assert compiled == ["decoder_step"]


def test_an_altered_graph_is_not_built(bundle: Bundle, compiled: list[str]) -> None:
    path = bundle.path / "onnx" / "decoder_step.onnx.data"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder_step.onnx.data is not the file that was exported"):
        build(bundle)
    assert compiled == []


# The two states that a crash may leave: the plan as before, or as after.


TOUCHING_FILES = {"open", "write", "flush", "fsync", "close", "rename", "replace", "unlink", "mkdir", "__exit__"}


def crash(bundle: Path, at: int) -> None:
    """In a process of its own: build "newer" over what is there, and be killed before call `at` that touches files."""
    count = 0

    def before_call(frame: Any, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_call" and function.__name__ in TOUCHING_FILES:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    plans.build_plan = fake_build(b"newer")
    opened = Bundle(bundle)
    sys.setprofile(before_call)
    build(opened, rebuild=True)
    sys.setprofile(None)


def test_killed_at_any_call_that_touches_files_the_plan_is_as_before_or_as_after(
    bundle: Bundle, compiled: list[str]
) -> None:
    before = build(bundle)
    seen = []
    for at in range(1, 300):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                crash(bundle.path, at)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        plan, chosen = choice.verified_plan(bundle, "decoder_step", RTX, GPU)
        assert bytes(plan) in (PLAN, b"newer")
        assert (chosen.record == before) == (bytes(plan) == PLAN)
        seen.append(bytes(plan))
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert 20 < len(seen) < 299
    assert seen[0] == PLAN
    assert seen[-1] == b"newer"
    assert seen == sorted(seen)  # "a plan" comes before "newer": once it is new it stays
    assert sorted(path.name for path in folder(bundle).iterdir()) == [
        f"decoder_step-{digest(b'newer')[:16]}.plan",
        "decoder_step.json",
    ]


def test_a_new_plan_leaves_nothing_of_the_old(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(bundle)
    monkeypatch.setattr(plans, "build_plan", fake_build(b"newer"))
    new = build(bundle, rebuild=True)
    assert old.plan != new.plan
    assert {path.name for path in folder(bundle).iterdir()} == {new.plan, "decoder_step.json"}


def test_a_failed_build_leaves_what_was_there(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(bundle)
    files = sorted(folder(bundle).iterdir())

    def fails(*arguments: Any) -> Any:
        fake_build(b"a part of a plan")(*arguments)
        raise BackendError("no")

    monkeypatch.setattr(plans, "build_plan", fails)
    with pytest.raises(BackendError, match="no"):
        build(bundle, rebuild=True)
    assert choice.verified_plan(bundle, "decoder_step", RTX, GPU)[1].record == before
    assert sorted(folder(bundle).iterdir()) == files


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(bundle)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot be written .*No space left on device"):
        build(bundle, rebuild=True)
    assert choice.verified_plan(bundle, "decoder_step", RTX, GPU)[1].record == before


def test_two_builds_of_one_bundle_do_not_meet(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finish = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        assert finish.wait(30)
        return fake_build(PLAN)(*arguments)

    monkeypatch.setattr(plans, "build_plan", slow)
    first = threading.Thread(target=build, args=(bundle,))
    first.start()
    assert started.wait(30)
    with pytest.raises(BundleError, match="Another build runs in"):
        build(bundle)
    finish.set()
    first.join()
    assert choice.refusal(bundle, "decoder_step", RTX, GPU) is None


def test_too_little_memory_is_told_before_building(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "available_memory", lambda: 100 << 20)
    with pytest.raises(BackendError, match=r"Building decoder_step takes about \d+ MiB of memory, 100 MiB are"):
        build(bundle)
    assert compiled == []
    build(bundle, force=True)
    assert compiled == ["decoder_step"]


def test_too_little_disk_is_told_before_building(
    bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(BundleError, match="has room for 0"):
        build(bundle)
    assert compiled == []


@pytest.mark.parametrize(
    ("size", "weights", "fusable", "fused", "products", "doubts"),
    [
        (2440, 2500, 22, 22, "Half", []),
        (40, 1, 22, 22, "Half", []),
        (5000, 2500, 22, 22, "Half", ["The plan has 5000 MiB and its weights 2500"]),
        (100, 2500, 22, 22, "Half", ["The plan has 100 MiB and its weights 2500"]),
        (2500, 2500, 22, 21, "Half", ["Only 21 of 22 attentions"]),
        (2500, 2500, 18, 18, "Half", ["4 of 22 attentions have heads of a size"]),
        (2500, 2500, 22, 22, "Float", ["4 of its products are computed in fp32"]),
    ],
)
def test_a_plan_of_an_odd_size_or_with_slow_layers_is_doubted(
    size: int, weights: int, fusable: int, fused: int, products: str, doubts: list[str]
) -> None:
    report = Report({"Half": {"gemm": 1}}, {products: 4}, attention=22, fusable=fusable, fused=fused)
    warnings = plans._warnings(size << 20, weights << 20, "fp16", report)
    assert [warning[: len(doubt)] for warning, doubt in zip(warnings, doubts, strict=True)] == doubts


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU here")
def test_tensorrt_without_a_gpu_is_refused_with_the_way_out(bundle: Bundle, compiled: list[str]) -> None:
    with pytest.raises(BackendError, match=r"no NVIDIA GPU here .*--flavour tensorrt-rtx") as error:
        build(bundle, fake_flavour("tensorrt", "11.4.0"))
    assert str(error.value).count(".") < 6
    assert compiled == []


def test_a_flavour_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert library.flavours() == []
    with pytest.raises(
        BackendError, match=r"pip install kandinsky22\[tensorrt\] or pip install kandinsky22\[tensorrt-rtx"
    ):
        library.flavour("auto")
    with pytest.raises(BackendError, match=r"flavour tensorrt-rtx .* pip install kandinsky22\[tensorrt-rtx\]\.$"):
        library.flavour("tensorrt-rtx")
    with pytest.raises(BackendError, match="no TensorRT flavour 'rtx'; choose one of auto, tensorrt, tensorrt-rtx"):
        library.flavour("rtx")


def test_importing_plans_imports_nothing_heavy() -> None:
    code = (
        "import sys, kandinsky22.backends.tensorrt.build, kandinsky22.cli.build\n"
        "print(*{'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'cuda', 'polygraphy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_bundle_without_a_decoder_has_plans_too(tmp_path: Path, compiled: list[str]) -> None:
    bundle = write_bundle(tmp_path, {"text_encoder": text_encoder()})
    bundle.manifest = dataclasses.replace(bundle.manifest, geometry=Geometry(embedding_dim=6))
    plans.build(bundle, RTX, default_profile(bundle), progress=False)
    assert choice.choose_plan(bundle, "text_encoder", RTX, GPU, {"input_ids": (2, 7)}).rows == 2


def test_movq_s_plan_is_found_by_what_the_runtime_feeds_it(tmp_path: Path, compiled: list[str]) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    plans.build(bundle, RTX, Profile(512, 512, 512, 8), progress=False)
    assert choice.choose_plan(bundle, "movq_decoder", RTX, GPU, {"latents": (4, 4, 64, 64)}).rows == 4
    with pytest.raises(BundleError, match=r"it takes latents from \(1, 4, 64, 64\) to .* not \(1, 4, 64, 72\)"):
        choice.choose_plan(bundle, "movq_decoder", RTX, GPU, {"latents": (4, 4, 64, 72)})


@pytest.mark.usefixtures("compiled")
def test_rows_beyond_every_plan_take_the_one_that_takes_most_at_once(tmp_path: Path) -> None:
    """Whatever is run in parts goes through one plan: no part is worth loading another."""
    bundle = write_bundle(tmp_path, {"text_encoder": text_encoder()})
    for profile in (Profile(128, 128, 128, 1), Profile(64, 64, 128, 3), Profile(64, 128, 256, 2)):
        plans.build(bundle, RTX, profile, progress=False)

    def rows(count: int) -> int:
        return choice.choose_plan(bundle, "text_encoder", RTX, GPU, {"input_ids": (count, 7)}).rows

    assert [rows(count) for count in (1, 2, 3, 5, 6, 7, 100)] == [2, 2, 6, 6, 6, 6, 6]


# Which flavour "auto" builds.


@pytest.mark.parametrize(
    ("installed", "has_gpu", "expected"),
    [
        (("tensorrt", "tensorrt-rtx"), True, "tensorrt"),
        (("tensorrt", "tensorrt-rtx"), False, "tensorrt-rtx"),
        (("tensorrt",), True, "tensorrt"),
        (("tensorrt",), False, "tensorrt"),  # whose build then says what it needs, and the way out
        (("tensorrt-rtx",), True, "tensorrt-rtx"),
        (("tensorrt-rtx",), False, "tensorrt-rtx"),
    ],
)
def test_auto_builds_what_can_be_built_here(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], has_gpu: bool, expected: str
) -> None:
    def device() -> Device:
        if not has_gpu:
            raise BackendError("There is no NVIDIA GPU here (cudaErrorNoDevice).")
        return GPU

    monkeypatch.setattr(library, "flavours", lambda: [fake_flavour(name) for name in installed])
    monkeypatch.setattr(gpu, "gpu", device)
    assert plans.flavour_to_build("auto").name == expected
    for name in installed:
        assert plans.flavour_to_build(name).name == name
