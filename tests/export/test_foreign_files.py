"""What is not ours is neither replaced nor deleted by an export, and what a killed one left goes with the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import ExportError
from kandinsky22_export import cli, export, replacing
from tests.foreign import (
    FOLDER,
    HARD_LINK,
    LINKS,
    PIPE,
    Intruder,
    someones,
    state,
)
from tests.runtime.plan_bundles import decoder_step, fake_build, fake_flavour, write_bundle

PROFILE = Profile(64, 128, 256, 2)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return someones(tmp_path / "outside")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder beside which nothing may stay."""
    (tmp_path / "engines").mkdir()
    return tmp_path / "engines"


@pytest.fixture
def bundle(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a plan."""
    monkeypatch.setattr(plans, "build_plan", fake_build(b"a plan"))
    opened = write_bundle(place / "out", {"decoder_step": decoder_step()})
    plans.build(opened, fake_flavour(), PROFILE, progress=False)
    return opened.path


def replace(destination: Path, force: bool = True, during: Callable[[], object] = lambda: None) -> None:
    """Write a little bundle, as an export does."""
    with replacing.replacing(destination, force) as folder:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "new.onnx").write_text("new")
        during()
        (folder / "manifest.json").write_text(json.dumps({"format_version": 2, "files": {"onnx/new.onnx": {}}}))


def is_new(destination: Path) -> bool:
    return sorted(state(destination)) == [".", "manifest.json", "onnx", "onnx/new.onnx"]


def plan_folder(bundle: Path) -> Path:
    (folder,) = (path for path in (bundle / "tensorrt").iterdir() if path.is_dir())
    return folder


def refused(destination: Path, message: str, force: bool = True) -> None:
    """The export is refused in one sentence, and nothing in reach is another."""
    everything = destination.parent.parent
    before = state(everything)
    with pytest.raises(ExportError, match=message) as told:
        replace(destination, force)
    assert str(told.value).count("\n") == 0
    assert state(everything) == before


# What is replaced.


def test_a_bundle_is_replaced_with_its_plans_and_what_builds_left(bundle: Path, outside: Path) -> None:
    before = state(outside)
    (bundle / "empty" / "within").mkdir(parents=True)
    (bundle / "onnx" / "decoder_step.onnx").unlink()
    HARD_LINK(bundle / "onnx" / "decoder_step.onnx", outside)
    for name in ("timing.cache", ".decoder_step.plan.0123456789abcdef.part", "decoder_step-0123456789abcdef.plan"):
        (plan_folder(bundle) / name).write_text("?")
    replace(bundle)
    assert is_new(bundle)
    assert os.listdir(bundle.parent) == ["out"]
    assert state(outside) == before


@pytest.mark.parametrize("version", [1, 2, 99])
def test_a_bundle_of_any_format_is_replaced(bundle: Path, version: int) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = manifest["files"]
    (bundle / "manifest.json").write_text(json.dumps({"format_version": version, "files": files, "more": "?"}))
    replace(bundle)
    assert is_new(bundle)


def test_a_bundle_that_lacks_files_is_replaced(bundle: Path) -> None:
    (bundle / "onnx" / "decoder_step.onnx").unlink()
    replace(bundle)
    assert is_new(bundle)


# What is not.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"manifest_version": 3, "name": "an extension of a browser"}',
        '{"format_version": 2}',
        '{"format_version": "2", "files": {}}',
        '{"format_version": true, "files": {}}',
        '{"format_version": 2, "files": ["letter"]}',
        '{"format_version": 2, "files": {"../outside/letter": {}}}',
        '{"format_version": 2, "files": {"/etc/passwd": {}}}',
        "[" * 100_000,
    ],
)
def test_a_folder_with_some_manifest_is_no_bundle(place: Path, outside: Path, text: str) -> None:
    folder = someones(place / "out")
    (folder / "manifest.json").write_text(text)
    refused(folder, "exists and is no bundle: it is not replaced")


@pytest.mark.parametrize("intruder", [*LINKS, PIPE, FOLDER])
def test_a_manifest_is_a_file(bundle: Path, outside: Path, intruder: Intruder) -> None:
    (bundle / "manifest.json").unlink()
    intruder(bundle / "manifest.json", outside)
    refused(bundle, "exists and is no bundle: it is not replaced")


@pytest.mark.parametrize("intruder", [*LINKS, PIPE, FOLDER, HARD_LINK])
@pytest.mark.parametrize("name", ["a", "onnx/a", "tensorrt/a", "tensorrt/{plans}/a", "tensorrt/{plans}/a.plan"])
def test_a_bundle_with_something_else_in_it_is_not_replaced(
    bundle: Path, outside: Path, name: str, intruder: Intruder
) -> None:
    path = bundle / name.format(plans=plan_folder(bundle).name)
    intruder(path, outside)
    first = r"(/\S+)?" if intruder is FOLDER else ""
    refused(bundle, rf"^{path}{first} is not of the bundle; move it away, or choose another folder with -o\.$")


@pytest.mark.parametrize("intruder", [*LINKS, PIPE, FOLDER])
@pytest.mark.parametrize(
    "name",
    ["onnx", "onnx/decoder_step.onnx", "tensorrt", "tensorrt/.lock", "tensorrt/{plans}", "tensorrt/{plans}/{plan}"],
)
def test_what_took_the_place_of_a_file_of_the_bundle_is_not_deleted(
    bundle: Path, outside: Path, name: str, intruder: Intruder
) -> None:
    folder = plan_folder(bundle)
    (plan,) = (path.name for path in folder.glob("*.plan"))
    path = bundle / name.format(plans=folder.name, plan=plan)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    intruder(path, outside)
    refused(bundle, "is not of the bundle; move it away")


def test_records_of_somebody_else_own_no_plans(bundle: Path, outside: Path) -> None:
    (plan_folder(bundle) / "mine.json").write_text('{"plan": "letter.plan"}')
    refused(bundle, r"mine\.json is not of the bundle")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("to", ["bundle", "letter", "nothing"])
def test_a_link_is_no_destination(bundle: Path, outside: Path, to: str, force: bool) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle if to == "bundle" else outside / to)
    refused(link, rf"^{link} is a link to .*: name the folder itself with -o\.$", force)


@pytest.mark.parametrize("intruder", [PIPE, HARD_LINK, FOLDER])
def test_what_is_no_folder_is_no_destination(place: Path, outside: Path, intruder: Intruder) -> None:
    intruder(place / "out", outside)
    refused(place / "out", "exists and is no bundle: it is not replaced")
    refused(place / "out", "exists: choose another place with -o", force=False)


def test_what_came_during_the_export_is_not_deleted(bundle: Path) -> None:
    before = state(bundle)
    with pytest.raises(ExportError, match=r"letter is not of the bundle; move it away"):
        replace(bundle, during=lambda: (bundle / "letter").write_text("dear"))
    assert {name: each for name, each in state(bundle).items() if name != "letter"} == before
    assert os.listdir(bundle.parent) == ["out"]


def test_a_name_that_was_taken_during_the_export_is_not_taken_from_it(place: Path) -> None:
    with pytest.raises(ExportError, match="exists: choose another place with -o"):
        replace(place / "out", force=False, during=lambda: someones(place / "out"))
    assert (place / "out" / "letter").read_text() == "dear"
    assert os.listdir(place) == ["out"]


# What a killed export leaves.

TOUCHING_FILES = {"mkdir", "open", "close", "write", "unlink", "rename", "chmod", "rmdir", "flock", "__exit__"}


def crash(destination: Path, at: int) -> None:
    """In a process of its own: replace a bundle, and be killed before call `at` that touches files."""
    count = 0

    def before_call(frame: Any, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_call" and function.__name__ in TOUCHING_FILES:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(before_call)
    replace(destination)
    sys.setprofile(None)


@pytest.mark.slow
def test_killed_at_any_call_that_touches_files_the_next_export_finds_a_bundle_and_clears_away(
    bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "kept")
    outcomes = set()
    for at in range(1, 300):
        shutil.rmtree(bundle)
        shutil.copytree(tmp_path / "kept", bundle)
        before = state(bundle)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                crash(bundle, at)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        with pytest.raises(ExportError, match="exists: choose another place with -o, or replace it with --force"):
            replace(bundle, force=False)
        assert state(bundle) == before or is_new(bundle)
        outcomes.add(is_new(bundle))
        replace(bundle)
        assert os.listdir(bundle.parent) == ["out"], at
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert 20 < at < 299
    assert outcomes == {False, True}


def test_an_old_bundle_without_its_name_gets_it_back(bundle: Path) -> None:
    before = state(bundle)
    bundle.rename(bundle.parent / ".out.a1b2c3_d.tmp.old")
    with pytest.raises(ExportError, match="exists: choose another place with -o, or replace it with --force"):
        replace(bundle, force=False)
    assert state(bundle) == before
    assert os.listdir(bundle.parent) == ["out"]


def test_an_old_bundle_stays_where_its_place_is_another_s(bundle: Path) -> None:
    bundle.rename(bundle.parent / ".out.a1b2c3_d.tmp.old")
    someones(bundle)
    refused(bundle, "exists and is no bundle")
    (bundle / "manifest.json").write_text('{"format_version": 2, "files": {"onnx/gone": {}}}')
    refused(bundle, "is not of the bundle")


def test_a_whole_bundle_that_never_got_its_name_goes(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / ".out.a1b2c3_d.tmp")
    replace(bundle)
    assert os.listdir(bundle.parent) == ["out"]


def _without_a_marker(leftover: Path, outside: Path) -> None:
    (leftover / "onnx").mkdir(parents=True)
    (leftover / "onnx" / "decoder_step.onnx").write_text("?")


def _with_something_else(leftover: Path, outside: Path) -> None:
    _without_a_marker(leftover, outside)
    (leftover / replacing.MARKER).write_bytes(replacing.MARK)
    (leftover / "letter").write_text("dear")


def _with_a_link(leftover: Path, outside: Path) -> None:
    _without_a_marker(leftover, outside)
    (leftover / replacing.MARKER).write_bytes(replacing.MARK)
    (leftover / "onnx" / "prior.onnx").symlink_to(outside / "letter")


def _with_a_folder_elsewhere(leftover: Path, outside: Path) -> None:
    leftover.mkdir()
    (leftover / replacing.MARKER).write_bytes(replacing.MARK)
    (outside / "a.onnx").write_text("dear")
    (leftover / "onnx").symlink_to(outside)


def _with_another_marker(leftover: Path, outside: Path) -> None:
    _without_a_marker(leftover, outside)
    (leftover / replacing.MARKER).write_text("a diary")


def _with_a_marker_elsewhere(leftover: Path, outside: Path) -> None:
    _without_a_marker(leftover, outside)
    (outside / "marker").write_bytes(replacing.MARK)
    (leftover / replacing.MARKER).symlink_to(outside / "marker")


@pytest.mark.parametrize("suffix", [".tmp", ".tmp.old"])
@pytest.mark.parametrize(
    "make",
    [
        *LINKS,
        PIPE,
        FOLDER,
        HARD_LINK,
        _without_a_marker,
        _with_something_else,
        _with_a_link,
        _with_a_folder_elsewhere,
        _with_another_marker,
        _with_a_marker_elsewhere,
    ],
)
def test_what_has_the_name_of_a_leftover_and_is_none_stays(
    place: Path, outside: Path, make: Intruder, suffix: str
) -> None:
    leftover = place / f".out.a1b2c3_d{suffix}"
    make(leftover, outside)
    before = state(place.parent)
    replace(place / "out")
    after = state(place.parent)
    assert {name: after.get(name) for name in before} == before
    assert is_new(place / "out")


@pytest.mark.parametrize("name", [".out.a1b2.tmp", ".out2.a1b2c3_d.tmp", "out.a1b2c3_d.tmp", ".out.a1b2c3_d.tmp.bak"])
def test_another_name_is_no_leftover(bundle: Path, name: str) -> None:
    shutil.copytree(bundle, bundle.parent / name)
    before = state(bundle.parent / name)
    replace(bundle)
    assert state(bundle.parent / name) == before


def test_the_folder_of_an_export_that_runs_is_no_leftover(place: Path) -> None:
    with pytest.raises(ExportError, match="exists: choose another place"):
        replace(place / "out", force=False, during=lambda: replace(place / "out", force=False))
    assert is_new(place / "out")
    replace(place / "out", during=lambda: replace(place / "out"))
    assert is_new(place / "out")
    assert os.listdir(place) == ["out"]


# What is said is what is.


@pytest.mark.usefixtures("no_tracing")
def test_ctrl_c_when_the_bundle_has_its_place_says_so(
    place: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_checkpoint / "decoder"), "-o", str(place / "out"), "--components", "movq_decoder"]
    assert cli.main(arguments) == 0
    remove, calls = replacing._remove, []

    def stopped(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(folder)

    monkeypatch.setattr(replacing, "_remove", stopped)
    capsys.readouterr()
    assert cli.main([*arguments, "movq_encoder", "--force"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"Stopped; {place / 'out'} is written."
    assert set(Bundle(place / "out").manifest.components) == {"movq_decoder", "movq_encoder"}
    assert os.listdir(place) == ["out"]


def test_an_old_bundle_that_cannot_be_removed_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(replacing, "_remove", denied)
    with pytest.raises(
        ExportError, match=r"out is written, but .*\.old, which it replaced, could not be removed: Perm"
    ):
        replace(bundle)
    assert is_new(bundle)
    monkeypatch.undo()
    replace(bundle)
    assert os.listdir(bundle.parent) == ["out"]


@pytest.mark.parametrize("stuck", [False, True])
def test_a_bundle_that_cannot_take_its_place_leaves_the_old_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    before = state(bundle)
    rename = Path.rename

    def denied(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp" or (stuck and path.suffix == ".old"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", denied)
    kept = r"the old bundle is in .*\.old, put it back" if stuck else "nothing of it was kept"
    with pytest.raises(ExportError, match=f"could not be written: Permission denied; {kept}"):
        replace(bundle)
    monkeypatch.undo()
    if stuck:
        with pytest.raises(ExportError, match="exists"):
            replace(bundle, force=False)
    assert state(bundle) == before
    assert os.listdir(bundle.parent) == ["out"]


@pytest.mark.usefixtures("no_tracing")
def test_an_exporter_killed_in_the_middle_leaves_nothing_to_the_next(
    place: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill is one of a process; what it leaves is looked at before it is cleared away."""
    source = str(tiny_checkpoint / "decoder")
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr("kandinsky22_export.records._records", lambda folder: os.kill(os.getpid(), 9))
            export(source, place / "out", components=["movq_decoder"])
        finally:
            os._exit(1)  # whatever is raised: a second pytest would go on from here
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = place.iterdir()
    assert {path.name for path in left.rglob("*.onnx*")} == {"movq_decoder.onnx", "movq_decoder.onnx.data"}
    export(source, place / "out", components=["movq_decoder"])
    assert os.listdir(place) == ["out"]
    assert replacing.MARKER not in os.listdir(place / "out")
