"""Bad input to `kandinsky22 generate`: one clear sentence, an exit code that is not 0, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli import doctor
from kandinsky22.components import Run
from kandinsky22.images import writing

from .conftest import QUICK, Cli

SEEDS = 2**63


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(cli: Cli, folder: Path, *arguments: object) -> str:
    """The one sentence that `generate` refuses `arguments` with, having written nothing below `folder`."""
    before = listing(folder)
    done = cli("generate", *arguments)
    assert done.code in (1, 2), done
    assert done.out == ""
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    assert listing(folder) == before
    return done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "no prompt"),
        (("a\udcff",), "not valid Unicode"),
        (("a", "--negative-prompt", "a\udcff"), "not valid Unicode"),
        (("a", "--steps", "0"), "--steps: '0' is no whole number from 1 to 1000"),
        (("a", "--steps", "1001"), "from 1 to 1000"),
        (("a", "--steps", "2.5"), "--steps: '2.5'"),
        (("a", "--prior-steps", "zero"), "--prior-steps: 'zero'"),
        (("a", "--guidance", "nan"), "--guidance: 'nan' is no finite number"),
        (("a", "--guidance", "-1"), "--guidance"),
        (("a", "--prior-guidance", "inf"), "--prior-guidance: 'inf'"),
        (("a", "--output=--"), "--output: the value is --, which ends the flags; expected another one"),
        (("a", "-o=--"), "-o: the value is --"),
        (("a", "--size", "0x64"), "width is 0; expected a whole number from 1 to"),
        (("a", "--size", "64x100000"), "height is 100000; expected a whole number from 1 to"),
        (("a", "--size", "big"), "--size: 'big' is no size; expected width and height"),
        (("a", "--size", "9" * 5000 + "x64"), "--size: '9999"),
        (("a", "--size", "64x64x64"), "--size: '64x64x64' is no size"),
        (("a", "--height", "0"), "--height is 0"),
        (("a", "--width", "-64"), "width is -64"),
        (("a", "--width", "wide"), "--width: invalid int value: 'wide'"),
        (("a", "--size", "64x64", "--width", "64"), "leave --width and --height out"),
        (("a", "--seed", "-1"), "--seed: '-1' is no whole number from 0 to"),
        (("a", "--seed", SEEDS), "--seed"),
        (("a", "--seed", "x"), "--seed: 'x'"),
        (("a", "b", "--seed", SEEDS - 1), "seed of the last picture"),
        (("a", "--num-images", "0"), "--num-images: '0'"),
        (("a", "--batch-size", "0"), "--batch-size: '0'"),
        (("a", "--threads", "0"), "--threads: '0'"),
        (("a", "--scheduler", "euler"), "--scheduler: invalid choice: 'euler'"),
        (("a", "--prior-scheduler", "ddpm"), "--prior-scheduler: invalid choice: 'ddpm'"),
        (("a", "--scheduler", "ddim", "--eta", "2"), "eta"),
        (("a", "--scheduler", "ddim", "--eta", "nan"), "eta"),
        (("a", "--scheduler", "ddpm", "--eta", "0.5"), "eta"),
        (("a", "--backend", "torch"), "no backend 'torch'; choose one of auto"),
        (("a", "--backend", "onnxruntime", "--precision", "bf16"), "have no bf16"),
        (("a", "--precision", "int4"), "--precision: invalid choice"),
        (("a", "--quality", "0"), "--quality: '0'"),
        (("a", "--format", "gif"), "--format: invalid choice: 'gif'"),
        (("a", "-o", "a.gif"), ".gif is none of .png"),
        (("a", "-o", "a.png", "--format", "webp"), "contradict each other"),
        (("a", "b", "-o", "a.png"), "one file for several of the 2 pictures"),
        (("a", "a", "-o", "{prompt}.png"), "one file for several of the 2 pictures"),
        (("a", "-o", "{number}.png"), "expected {prompt}, {seed} or {index}"),
        (("a", "--loud"), "unrecognized arguments: --loud"),
        (("a" * 70_000, "--format", "jpeg"), "too long to be stored"),
    ],
)
def test_an_impossible_argument_is_refused(
    arguments: tuple[object, ...], reason: str, cli: Cli, shapes_bundle: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refused(cli, tmp_path, shapes_bundle, *arguments)


def test_bundle_and_prompt_cannot_be_left_out(cli: Cli, tmp_path: Path) -> None:
    assert "BUNDLE" in refused(cli, tmp_path)


def test_a_file_of_prompts_has_prompts_in_text(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("Schöne Grüße".encode("latin-1"))
    for name, reason in (("blank.txt", "no prompt"), ("latin.txt", "UTF-8"), ("missing.txt", "No such file")):
        assert reason in refused(cli, tmp_path, shapes_bundle, "--prompts-file", tmp_path / name)


def test_what_is_no_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "manifest.json").write_text("{")
    for name, reason in (
        ("missing", "is not a folder"),
        ("empty", "has no manifest.json"),
        ("garbage", "is not a manifest"),
    ):
        assert reason in refused(cli, tmp_path, tmp_path / name, "a", *QUICK, "-o", tmp_path / "out")


def test_a_bundle_without_a_component_says_which_before_the_work(
    cli: Cli, shapes_bundle: Path, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Run, "use")
    whole = json.loads((bundle_copy / "manifest.json").read_text())
    for role in doctor.TASKS["text to image"]:
        component = Bundle(shapes_bundle).manifest.name_of(role)
        manifest = whole | {"components": whole["components"] | {}}
        del manifest["components"][component]
        if component == "decoder_step":  # as a checkpoint without a decoder is exported
            del manifest["components"]["decoder_forecast"]
            manifest["schedulers"] = {name: each for name, each in whole["schedulers"].items() if name != "decoder"}
        (bundle_copy / "manifest.json").unlink()
        (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
        reason = refused(cli, tmp_path, bundle_copy, "a", *QUICK, "-o", tmp_path / "out")
        assert f"has no component for the role '{role}'" in reason


def test_altered_or_truncated_weights_are_refused(cli: Cli, bundle_copy: Path, tmp_path: Path) -> None:
    weights = bundle_copy / "onnx" / "decoder_step.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    reason = refused(cli, tmp_path, bundle_copy, "a", *QUICK, "-o", tmp_path / "out")
    assert "SHA-256 differs" in reason
    weights.write_bytes(data[:-1])
    reason = refused(cli, tmp_path, bundle_copy, "a", *QUICK, "-o", tmp_path / "out")
    assert "decoder_step.onnx.data has" in reason


def test_a_place_that_takes_no_files_is_refused(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken.png").write_text("mine")
    for place, reason in (
        ("file/out/", "No picture can be written to"),
        ("file", "No picture can be written to"),
        ("taken.png", "exists; choose another name, or replace it with --force"),
    ):
        assert reason in refused(cli, tmp_path, shapes_bundle, "a", *QUICK, "-o", f"{tmp_path}/{place}")
    assert (tmp_path / "taken.png").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "Permission denied" in refused(cli, tmp_path, shapes_bundle, "a", *QUICK, "-o", tmp_path / "locked")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be made here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_picture_on_a_full_disk_is_absent(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with pytest.raises(OSError, match=r"No space left on device: .*noise\.png"):
        writing.save(PIL.Image.fromarray(noise), small_disk / "noise.png", {})
    assert not os.listdir(small_disk)


def test_a_disk_that_fills_up_keeps_the_pictures_before(cli: Cli, shapes_bundle: Path, small_disk: Path) -> None:
    done = cli("generate", shapes_bundle, "a", *QUICK, "--seed=1", "--num-images=50", "-o", small_disk)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.endswith(": No space left on device.\n")
    assert done.err.count("\n") == 1
    written = done.out.splitlines()
    assert written
    assert sorted(written) == sorted(str(path) for path in small_disk.iterdir())
    assert [writing.read_parameters(path)["arguments"]["seed"] for path in written] == list(range(1, 1 + len(written)))


def test_a_full_disk_is_noticed_before_the_work(
    cli: Cli, shapes_bundle: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Pipeline, "__call__")
    (small_disk / "filler").write_bytes(bytes(24 * 1024))
    assert "No space left on device" in refused(cli, small_disk, shapes_bundle, "a", *QUICK, "-o", small_disk)
