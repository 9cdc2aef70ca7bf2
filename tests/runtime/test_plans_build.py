"""Plans built for real by TensorRT for RTX, which needs no GPU: handmade bundles in seconds."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from kandinsky22 import BackendError, InputError
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import builder, choice, library
from kandinsky22.backends.tensorrt.builder import Options
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.backends.tensorrt.records import PlanRecord
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, Role, TensorSpec
from kandinsky22.cli import main
from tests.runtime.plan_bundles import (
    GPU,
    SPECS,
    all_models,
    decoder_step,
    movq_decoder,
    text_encoder,
    write_bundle,
)

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no plan is built for real")
WIDE = Profile(64, 128, 256, 2)


@pytest.fixture(scope="module")
def rtx() -> library.Flavour:
    return library.flavour("tensorrt-rtx")


def build(bundle: Bundle, rtx: library.Flavour, profile: Profile = WIDE, **more: object) -> list[PlanRecord]:
    return plans.build(bundle, rtx, profile, progress=False, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "profile"), [("fp16", WIDE), ("fp32", WIDE), ("fp16", Profile(128, 128, 128))])
def test_every_component_is_built_in_the_types_of_its_graph(
    tmp_path: Path, rtx: library.Flavour, precision: str, profile: Profile
) -> None:
    bundle = write_bundle(tmp_path, all_models(precision), precision)
    records = build(bundle, rtx, profile)
    assert [record.component for record in records] == list(bundle.manifest.components)
    network = {"fp16": "Half", "fp32": "Float"}[precision]
    products = {"text_encoder": 4, "decoder_step": 1, "movq_decoder": 1}  # those that the graphs were written with
    for record in records:
        plan, _ = choice.verified_plan(bundle, record.component, rtx, GPU)
        assert len(plan) == record.bytes > record.weight_bytes
        assert record.report.products == {network: products[record.component]}
        assert network in record.report.layers
        assert record.warnings == ()
        assert record.peak_memory > 50 << 20
        assert record.seconds > 0
    text = records[0].report
    fused = 1 if precision == "fp16" else 0  # there are no fused kernels in fp32
    assert (text.attention, text.fusable, text.fused) == (1, fused, fused)


def test_a_plan_says_which_gpus_it_is_for(tmp_path: Path, rtx: library.Flavour) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    (everywhere,) = build(bundle, rtx)
    assert {"8.6", "8.9", "12.0"} <= set(everywhere.targets)
    assert "7.5" not in everywhere.targets
    (turing,) = build(bundle, rtx, options=Options(targets=("7.5",)))
    assert turing.targets == ("7.5",)
    assert turing.sha256 != everywhere.sha256
    with pytest.raises(InputError, match=r"no target '9\.9'; choose of 7\.5, 8\.0"):
        build(bundle, rtx, options=Options(targets=("9.9",)))


def test_attention_without_a_fused_kernel_is_a_fault_unless_allowed(
    tmp_path: Path, rtx: library.Flavour, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # TensorRT has no kernel for heads of 8. Were it to have one, it would have to be used.
    monkeypatch.setattr(builder, "FUSED_HEAD_SIZES", range(8, 257))
    bundle = write_bundle(
        tmp_path,
        {"text_encoder": text_encoder(head=8)},
        text_encoder=Component(
            role=Role.TEXT_ENCODER,
            files=("onnx/text_encoder.onnx", "onnx/text_encoder.onnx.data"),
            inputs=SPECS["text_encoder"][0],
            outputs=(TensorSpec("text_hidden", "float32", ("B", 7, 16)),),
            precision="fp16",
            parameters=1,
        ),
    )
    with pytest.raises(BackendError, match=r"no fused kernel for an attention of the graph.*--allow-unfused"):
        build(bundle, rtx)
    (allowed,) = build(bundle, rtx, options=Options(allow_unfused=True))
    assert (allowed.report.fusable, allowed.report.fused) == (1, 0)
    assert allowed.warnings == ("Only 0 of 1 attentions run in fused kernels.",)


def test_attention_that_can_never_be_fused_is_built_without_asking(tmp_path: Path, rtx: library.Flavour) -> None:
    """Heads of 512, as MoVQ's, in fp16."""
    bundle = write_bundle(
        tmp_path,
        {"text_encoder": text_encoder(head=512)},
        text_encoder=Component(
            role=Role.TEXT_ENCODER,
            files=("onnx/text_encoder.onnx", "onnx/text_encoder.onnx.data"),
            inputs=SPECS["text_encoder"][0],
            outputs=(TensorSpec("text_hidden", "float32", ("B", 7, 1024)),),
            precision="fp16",
            parameters=1,
        ),
    )
    (record,) = build(bundle, rtx)
    assert (record.report.attention, record.report.fusable, record.report.fused) == (1, 0, 0)


def test_a_graph_that_tensorrt_cannot_read_is_one_sentence(tmp_path: Path, rtx: library.Flavour) -> None:
    model = movq_decoder()
    model.graph.node[0].op_type = "NoSuchOperator"
    bundle = write_bundle(tmp_path, {"movq_decoder": model})
    with pytest.raises(
        BackendError, match=r"tensorrt-rtx [\d.]+ cannot read the graph of movq_decoder\.onnx: .*NoSuch"
    ):
        build(bundle, rtx)
    assert choice.refusal(bundle, "movq_decoder", rtx, GPU) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        TensorSpec("latents", "int64", ("B", 4, "h", "w")),
        TensorSpec("latents", "float32", ("B", 5, "h", "w")),
        TensorSpec("noise", "float32", ("B", 4, "h", "w")),
    ],
    ids=["type", "shape", "name"],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_not_built(
    tmp_path: Path, rtx: library.Flavour, wrong: TensorSpec
) -> None:
    bundle = write_bundle(
        tmp_path,
        {"movq_decoder": movq_decoder()},
        movq_decoder=Component(
            role=Role.MOVQ_DECODER,
            files=("onnx/movq_decoder.onnx", "onnx/movq_decoder.onnx.data"),
            inputs=(wrong,),
            outputs=SPECS["movq_decoder"][1],
            precision="fp16",
            parameters=1,
        ),
    )
    with pytest.raises(BackendError, match="the manifest says"):
        build(bundle, rtx)


def test_what_goes_wrong_in_the_progress_bar_stops_the_build_and_is_told(tmp_path: Path, rtx: library.Flavour) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    component = bundle.component("movq_decoder")
    shapes = {spec.name: WIDE.shapes(spec, component, 8) for spec in component.inputs}
    seen = []

    def on_progress(phase: str, done: int, known: int) -> None:
        seen.append((phase, done, known))
        if len(seen) == 4:
            raise ValueError("the terminal is gone")

    written = bytearray()
    with pytest.raises(ValueError, match="the terminal is gone"):
        builder.build_plan(
            rtx, bundle.graph("movq_decoder"), component, shapes, Options(), written.extend, b"", on_progress
        )
    assert len(seen) == 4
    assert not written


def test_a_full_disk_stops_the_build_and_is_told(tmp_path: Path, rtx: library.Flavour) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    component = bundle.component("movq_decoder")
    shapes = {spec.name: WIDE.shapes(spec, component, 8) for spec in component.inputs}

    def full(data: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        builder.build_plan(rtx, bundle.graph("movq_decoder"), component, shapes, Options(), full)


def test_progress_counts_up_to_all_of_its_steps(tmp_path: Path, rtx: library.Flavour) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    component = bundle.component("movq_decoder")
    shapes = {spec.name: WIDE.shapes(spec, component, 8) for spec in component.inputs}
    seen: list[tuple[int, int]] = []
    builder.build_plan(
        rtx,
        bundle.graph("movq_decoder"),
        component,
        shapes,
        Options(),
        bytearray().extend,
        on_progress=lambda phase, done, known: seen.append((done, known)),
    )
    assert seen == sorted(seen)
    assert all(done <= known for done, known in seen)
    assert seen[-1][0] == seen[-1][1] > 20


# The command.


def test_the_command_prints_a_line_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path, all_models())
    arguments = ["build", str(bundle.path), "--flavour", "tensorrt-rtx", "--static", "128", "--batch", "2", "--quiet"]
    assert main.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["component", "text_encoder", "decoder_step", "movq_decoder"]
    assert lines[1].endswith("1 of 1")
    assert main.main([*arguments, "--json", "--component", "decoder_step"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["profile"] == {"minimum": 128, "optimum": 128, "maximum": 128, "batch": 2}
    (folder,) = (path.name for path in (bundle.path / "tensorrt").iterdir() if path.is_dir())
    assert re.fullmatch(r"rtx-[\d.]+-128-b2", folder)


@pytest.mark.parametrize(
    ("arguments", "profile"),
    [
        ([], Profile(384, 1024, 2048, 1)),
        (["--batch", "4"], Profile(384, 1024, 2048, 4)),
        (["--max", "768"], Profile(384, 768, 768, 1)),
        (["--min", "1536"], Profile(1536, 1536, 2048, 1)),
        (["--max", "128"], Profile(128, 128, 128, 1)),
        (["--min", "64", "--opt", "128", "--max", "256"], Profile(64, 128, 256, 1)),
        (["--static", "512"], Profile(512, 512, 512, 1)),
    ],
)
def test_what_the_options_leave_open_is_within_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], profile: Profile
) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    asked = []

    def build(bundle: Bundle, flavour: library.Flavour, profile: Profile, **_: object) -> list[PlanRecord]:
        asked.append(profile)
        return []

    monkeypatch.setattr(plans, "build", build)
    assert main.main(["build", str(bundle.path), "--flavour", "tensorrt-rtx", *arguments]) == 0
    assert asked == [profile]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--static", "512", "--min", "384"], "--static is one size alone"),
        (["--static", "500"], "expected multiples of 64"),
        (["--flavour", "cuda"], "no TensorRT flavour 'cuda'"),
        (["--component", "movq_encoder"], "no component 'movq_encoder'"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    bundle = write_bundle(tmp_path, {"movq_decoder": movq_decoder()})
    assert main.main(["build", str(bundle.path), "--flavour", "tensorrt-rtx", *arguments]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


# What Python destroys, and when.

GARBAGE_IN_A_CALL = """
import gc
import tensorrt_rtx
from kandinsky22.backends.tensorrt import library

gc.disable()
for make in (tensorrt_rtx.Builder, tensorrt_rtx.Runtime):
    cycle = [make(library.logger(tensorrt_rtx))]
    cycle.append(cycle)
    del cycle
    logger = library.logger(tensorrt_rtx)
    type(logger).log = lambda self, severity, message: gc.collect()
    make(logger)
"""


def test_garbage_that_is_collected_while_tensorrt_speaks_does_not_hang() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", GARBAGE_IN_A_CALL], env=environment, check=True, timeout=60)


def test_an_error_keeps_nothing_of_tensorrts(
    tmp_path: Path, rtx: library.Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders = []
    make = rtx.module.Builder

    def remembered(logger: object) -> object:
        builder = make(logger)
        builders.append(weakref.ref(builder))
        return builder

    monkeypatch.setattr(rtx.module, "Builder", remembered)
    with pytest.raises(BackendError) as kept:
        build(write_bundle(tmp_path, {"movq_decoder": text_encoder()}), rtx)
    assert [builder() for builder in builders] == [None]
    assert kept.value


# Builds that are stopped.


def command(bundle: Bundle, *arguments: str) -> subprocess.Popen[bytes]:
    """`kandinsky22 build` of every component in a process of its own."""
    line = f"build {bundle.path} --flavour tensorrt-rtx --min 64 --opt 128 --max 256 --batch 2 --quiet"
    return subprocess.Popen(
        [sys.executable, "-m", "kandinsky22", *line.split(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=bundle.path.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def wait_for_build(process: subprocess.Popen[bytes], bundle: Bundle) -> None:
    """Until the process has begun to build; its lock is the first thing that it makes."""
    while not (bundle.path / "tensorrt" / ".lock").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_ctrl_c_cancels_and_waits_for_the_end() -> None:
    cancelled, ended = threading.Event(), []

    def call() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled.wait(30)
        time.sleep(0.3)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        builder.run_watched(call, cancelled.set)
    assert ended


def test_ctrl_c_stops_a_build_and_leaves_nothing_half_written(tmp_path: Path, rtx: library.Flavour) -> None:
    """In the second of two plans, which takes seconds: the first is kept, and nothing is there of the second."""
    bundle = write_bundle(
        tmp_path / "bundle", {"text_encoder": text_encoder(), "movq_decoder": movq_decoder(layers=1500)}
    )
    process = command(bundle)
    while not (finished := [*bundle.path.glob("tensorrt/*/*.json")]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.3)
    assert [*bundle.path.glob("tensorrt/*/*.part")]
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (-signal.SIGINT, b"", b"Stopped.\n")
    assert [path.stem for path in finished] == ["text_encoder"]
    assert choice.refusal(bundle, "text_encoder", rtx, GPU) is None
    assert len(list(finished[0].parent.iterdir())) == 2


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_bundle_loads_as_before_or_as_after(
    tmp_path: Path, rtx: library.Flavour, moments: int
) -> None:
    """Every plan that was there is built anew from other weights, and the build is killed on the way."""
    old = write_bundle(tmp_path / "bundle", all_models())
    before = {record.component: record for record in build(old, rtx)}
    started = time.monotonic()
    build(old, rtx, rebuild=True)
    duration = time.monotonic() - started
    before = {name: choice.verified_plan(old, name, rtx, GPU)[1].record for name in before}
    dice = random.Random(moments)
    outcomes = set()
    for _ in range(moments):
        lock = old.path / "tensorrt" / ".lock"
        lock.unlink()
        process = command(old, "--rebuild")
        wait_for_build(process, old)
        time.sleep(dice.uniform(0, duration))
        process.kill()
        process.communicate()
        for name, earlier in before.items():
            _, plan = choice.verified_plan(old, name, rtx, GPU)
            outcomes.add(plan.record == earlier)
            before[name] = plan.record
    assert True in outcomes
    build(old, rtx)
    (folder,) = (path for path in (old.path / "tensorrt").iterdir() if path.is_dir())
    assert len(list(folder.iterdir())) == 2 * len(before)


# TensorRT itself.

LAB = """
import json, sys
from pathlib import Path
import tensorrt
from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
bundle, device = Bundle(sys.argv[1]), Device("NVIDIA Laboratory", (9, 0))
flavour = library.flavour("tensorrt")
plans.build(bundle, flavour, Profile(64, 128, 256, 2), device=device, progress=False)
again = plans.build(bundle, flavour, Profile(64, 128, 256, 2), device=device, progress=False)
for name in bundle.manifest.components:
    choice.verified_plan(bundle, name, flavour, device)
print(json.dumps([flavour.version, [record.component for record in again]]))
"""


def test_the_same_code_builds_through_tensorrt(tmp_path: Path) -> None:
    """With the TensorRT that imports here, or the one in the folder TRT_LAB_SITE, if it can build without a GPU."""
    site = os.environ.get("TRT_LAB_SITE", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [site, *sys.path]))}
    can = "import tensorrt; tensorrt.Builder(tensorrt.Logger())"
    if subprocess.run([sys.executable, "-c", can], env=environment, capture_output=True).returncode:
        pytest.skip("NOT TESTED: building through `import tensorrt` (it does not import, or has no GPU to build on)")
    bundle = write_bundle(tmp_path / "bundle", {"text_encoder": text_encoder(), "decoder_step": decoder_step()})
    done = subprocess.run(
        [sys.executable, "-c", LAB, str(bundle.path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, components = json.loads(done.stdout)
    assert components == ["text_encoder", "decoder_step"]
    (folder,) = (path for path in (bundle.path / "tensorrt").iterdir() if path.is_dir())
    assert folder.name == f"nvidia-laboratory-{version}-64-128-256-b2"
    assert (folder / "timing.cache").stat().st_size > 0
