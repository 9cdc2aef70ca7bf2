"""`kandinsky22 doctor`: what can run here, and whether a bundle is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kandinsky22
from kandinsky22 import backends
from kandinsky22.backends import Availability
from kandinsky22.bundle.manifest import SHALLOWS
from kandinsky22.cli import doctor

from .conftest import Cli


def test_the_machine_is_described(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["kandinsky22"] == kandinsky22.__version__
    assert report["processor"]["cores"] >= 1
    assert report["disk"]["free"] > 0
    assert report["memory"] is None or 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert [each["name"] for each in report["backends"]] == list(backends.PREFERENCE)
    usable = [each["name"] for each in report["backends"] if each["usable"]]
    assert report["auto"] == usable[0]


def test_it_reads_well(cli: Cli, shapes_bundle: Path) -> None:
    done = cli("doctor", shapes_bundle)
    assert (done.code, done.err) == (0, "")
    for text in ("auto takes it", "every file is as it was exported", "text to image: yes", "component    prior_step"):
        assert text in done.out


def test_without_a_backend_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    none = [Availability(name, False, "No module named 'it'") for name in backends.PREFERENCE]
    monkeypatch.setattr(backends, "survey", lambda bundle: none)
    done = cli("doctor")
    assert done.code == 1
    assert done.err == "error: No backend can run here; install one: pip install kandinsky22[cpu].\n"
    assert "cannot run here: No module named 'it'" in done.out


def test_a_sound_bundle_says_what_it_can_do(cli: Cli, shapes_bundle: Path) -> None:
    bundle = json.loads(cli("doctor", shapes_bundle, "--json").out)["bundle"]
    assert bundle["problems"] == []
    missing = {task: roles for task, roles in bundle["missing_for"].items() if roles}
    assert missing == {  # what a bundle has where it was asked for
        "text to image, with shallow steps": ["decoder_shallow"],
        "inpainting, with shallow steps": ["inpaint_shallow"],
        "depth to image, with shallow steps": ["controlnet_shallow"],
    }
    roles = {component["role"] for component in bundle["components"].values()}
    assert roles == {role for needed in doctor.TASKS.values() for role in needed} - set(SHALLOWS.values())
    assert bundle["bytes"] == sum(path.stat().st_size for path in files(shapes_bundle)) - manifest_size(shapes_bundle)


def test_a_bundle_with_shallow_steps_lacks_nothing(cli: Cli, shallow_bundle: Path) -> None:
    assert not any(json.loads(cli("doctor", shallow_bundle, "--json").out)["bundle"]["missing_for"].values())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def manifest_size(folder: Path) -> int:
    return (folder / "manifest.json").stat().st_size


def rewrite(bundle: Path, without: set[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in without:
        del manifest["components"][name]
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_without_a_prior_decodes_only(cli: Cli, bundle_copy: Path) -> None:
    rewrite(bundle_copy, {"text_encoder", "prior_step"})
    done = cli("doctor", bundle_copy)
    assert (done.code, done.err) == (0, "")
    assert "text to image: no, it lacks text_encoder, prior" in done.out
    assert "embedding to image: yes" in done.out


def test_a_bundle_that_can_do_nothing_is_unusable(cli: Cli, bundle_copy: Path) -> None:
    rewrite(bundle_copy, {"text_encoder", "decoder_step"})
    done = cli("doctor", bundle_copy)
    assert done.code == 1
    assert "can do nothing" in done.err


def test_every_damaged_file_is_named(cli: Cli, bundle_copy: Path) -> None:
    for name in ("tokenizer.json", "onnx/prior_step.onnx.data"):
        data = bytearray((bundle_copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle_copy / name).unlink()
        (bundle_copy / name).write_bytes(data)
    done = cli("doctor", bundle_copy)
    assert done.code == 1
    assert "damaged or unusable" in done.out
    first, second = done.err.splitlines()
    assert "onnx/prior_step.onnx.data is not the file that was exported" in first
    assert "tokenizer.json is not the file that was exported" in second


def test_what_is_no_bundle_is_told_beside_the_machine(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", tmp_path / "missing", "--json")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    report = json.loads(done.out)
    assert report["auto"]
    assert report["bundle"]["problems"]
