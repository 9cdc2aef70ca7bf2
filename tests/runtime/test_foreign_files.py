"""What is not ours is neither written to nor deleted: by builds of plans, and where a file is replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from kandinsky22 import files
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import BundleError
from kandinsky22.images import writing
from tests.foreign import (
    DANGLING,
    FOLDER,
    HARD_LINK,
    LINK_TO_A_FILE,
    LINK_TO_A_FOLDER,
    LINKS,
    PIPE,
    Intruder,
    someones,
    state,
)
from tests.runtime.conftest import QUICK, Cli
from tests.runtime.plan_bundles import decoder_step, fake_build, fake_flavour, write_bundle

RTX = fake_flavour()
WIDE = Profile(64, 128, 256, 2)
PLANS = f"tensorrt/rtx-{RTX.version}-64-128-256-b2"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return someones(tmp_path / "outside")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", {"decoder_step": decoder_step()})


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "build_plan", fake_build(b"a plan"))


def build(bundle: Bundle, **more: Any) -> Path:
    """Build, and return the path of the plan."""
    (record,) = plans.build(bundle, RTX, WIDE, progress=False, **more)
    return bundle.path / PLANS / record.plan


NOT_FILES = (*LINKS, PIPE, FOLDER)
REFUSED = [
    *[("tensorrt", intruder) for intruder in (*LINKS, PIPE, HARD_LINK)],
    *[(PLANS, intruder) for intruder in (*LINKS, PIPE, HARD_LINK)],
    *[
        (name, intruder)
        for name in ("tensorrt/.lock", f"{PLANS}/decoder_step.json", f"{PLANS}/timing.cache")
        for intruder in NOT_FILES
    ],
]


@pytest.mark.parametrize(("name", "intruder"), REFUSED)
def test_a_build_refuses_what_no_build_has_made_before_it_writes(
    bundle: Bundle, outside: Path, name: str, intruder: Intruder
) -> None:
    path = bundle.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    intruder(path, outside)
    before = state(bundle.path.parent)
    with pytest.raises(
        BundleError, match=r" is a (link|file|folder|pipe or device), expected a \w+ of a build"
    ) as told:
        build(bundle)
    assert str(told.value).startswith(f"{path} is ")
    assert state(bundle.path.parent) == before


@pytest.mark.parametrize("intruder", [*LINKS, FOLDER, PIPE])
def test_a_plan_does_not_take_the_place_of_what_is_no_plan(bundle: Bundle, outside: Path, intruder: Intruder) -> None:
    plan = build(bundle)
    plan.unlink()
    intruder(plan, outside)
    before = state(bundle.path.parent)
    with pytest.raises(BundleError, match=r"\.plan is a .*, expected a file of a build"):
        build(bundle, rebuild=True)
    assert state(bundle.path.parent) == before


@pytest.mark.parametrize("name", ["tensorrt/.lock", f"{PLANS}/decoder_step.json", f"{PLANS}/timing.cache"])
def test_what_has_another_name_too_keeps_its_bytes(bundle: Bundle, outside: Path, name: str) -> None:
    (bundle.path / PLANS).mkdir(parents=True)
    HARD_LINK(bundle.path / name, outside)
    before = state(outside)
    assert build(bundle).read_bytes() == b"a plan"
    assert state(outside) == before


OURS = (
    "decoder_step-0123456789abcdef.plan",
    ".decoder_step.plan.0123456789abcdef.part",
    ".timing.cache.0123456789abcdef.part",
)
OTHERS = (
    "decoder_step.plan",
    "decoder_step-0123.plan",
    "notes.part",
    ".notes.part",
    ".x.0123456789ABCDEF.part",
    "x.plan.old",
    "notes.txt",
)


def test_a_sweep_removes_leftovers_of_builds_and_nothing_else(bundle: Bundle, outside: Path) -> None:
    folder = bundle.path / PLANS
    folder.mkdir(parents=True)
    for name in (*OURS, *OTHERS):
        (folder / name).write_text("?")
    for number, intruder in enumerate((*LINKS, PIPE, FOLDER)):
        intruder(folder / f"other-{number:016x}.plan", outside)
        intruder(folder / f".other.plan.{number:016x}.part", outside)
    before = state(bundle.path.parent)
    plan = build(bundle)
    after = state(bundle.path.parent)
    assert {Path(name).name for name in before.keys() - after.keys()} == set(OURS)
    assert {Path(name).name for name in after.keys() - before.keys()} == {".lock", plan.name, "decoder_step.json"}
    assert {name: after[name] for name in before.keys() & after.keys()} == {
        name: before[name] for name in before.keys() & after.keys()
    }


def test_a_plan_stays_whose_record_cannot_be_read_until_it_is_built_again(bundle: Bundle) -> None:
    old = build(bundle)
    record = old.with_name("decoder_step.json")
    record.rename(old.with_name("other.json"))  # which names a plan, and is no record of that component
    stranger = old.with_name("other-0123456789abcdef.plan")
    stranger.write_bytes(b"of another version")
    build(bundle)
    assert stranger.read_bytes() == b"of another version"


@pytest.mark.parametrize("intruder", [LINK_TO_A_FILE, DANGLING, HARD_LINK])
def test_a_picture_replaces_a_name_and_not_what_it_leads_to(tmp_path: Path, outside: Path, intruder: Intruder) -> None:
    path = tmp_path / "picture.png"
    intruder(path, outside)
    before = state(outside)
    writing.save(PIL.Image.new("RGB", (8, 8)), path, {}, overwrite=True)
    assert stat.S_ISREG(path.lstat().st_mode)
    assert PIL.Image.open(path).size == (8, 8)
    assert state(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "picture.png"]


@pytest.mark.parametrize("intruder", [LINK_TO_A_FOLDER, PIPE, FOLDER])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, outside: Path, intruder: Intruder) -> None:
    path = tmp_path / "picture.png"
    intruder(path, outside)
    before = state(tmp_path)
    with pytest.raises(OSError, match="only a file can be replaced, and this is none") as told:
        files.write_file(path, b"data")
    assert told.value.filename == str(path)
    assert state(tmp_path) == before


def test_a_link_to_a_device_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(os.devnull)
    with pytest.raises(OSError, match="only a file can be replaced"):
        files.write_file(tmp_path / "out", b"data")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("intruder", [*LINKS, PIPE, FOLDER, HARD_LINK])
def test_what_has_the_name_stays_where_nothing_is_to_be_replaced(
    tmp_path: Path, outside: Path, intruder: Intruder, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruder(tmp_path / "a", outside)
    before = state(tmp_path)
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "a", b"data", replace=False)

    def none(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", none)  # as file systems without links say
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "a", b"data", replace=False)
    assert state(tmp_path) == before


@pytest.mark.parametrize("intruder", [LINK_TO_A_FILE, DANGLING, HARD_LINK])
def test_generate_leaves_a_name_that_is_taken_and_replaces_it_alone_when_told(
    cli: Cli, shapes_bundle: Path, tmp_path: Path, outside: Path, intruder: Intruder
) -> None:
    path = tmp_path / "picture.png"
    intruder(path, outside)
    before = state(tmp_path)
    done = cli("generate", shapes_bundle, "a circle", *QUICK, "-o", path)
    assert (done.code, done.err) == (1, f"error: {path} exists; choose another name, or replace it with --force.\n")
    assert state(tmp_path) == before
    before = state(outside)
    assert cli("generate", shapes_bundle, "a circle", *QUICK, "-o", path, "--force").code == 0
    assert not path.is_symlink()
    assert PIL.Image.open(path).format == "PNG"
    assert state(outside) == before


@pytest.mark.parametrize("name", ["picture.png", "folder"])
def test_generate_refuses_to_replace_what_is_no_file_before_it_begins(
    cli: Cli, shapes_bundle: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "folder" / "a-circle-1.png" if name == "folder" else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    done = cli("generate", shapes_bundle, "a circle", *QUICK, "--seed", "1", "-o", tmp_path / name, "--force")
    assert (done.code, done.err) == (
        1,
        f"error: {path} is no file, and only a file is replaced; choose another name.\n",
    )
    assert stat.S_ISFIFO(path.lstat().st_mode)


@pytest.mark.parametrize("intruder", [*LINKS, PIPE, FOLDER])
def test_a_lock_and_a_file_that_is_read_are_files(tmp_path: Path, outside: Path, intruder: Intruder) -> None:
    intruder(tmp_path / "a", outside)
    before = state(tmp_path)
    with pytest.raises(OSError, match=r"this is a .*, expected a file"), files.locked(tmp_path / "a"):
        pass
    with pytest.raises(OSError, match=r"this is a .*, expected a file"):
        files.read_file(tmp_path / "a")
    assert state(tmp_path) == before


def test_a_lock_does_not_shorten_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("dear")
    with files.locked(tmp_path / "a") as first, files.locked(tmp_path / "a") as second:
        assert (first, second) == (True, False)
    assert files.read_file(tmp_path / "a") == b"dear"
    with files.locked_folder(tmp_path) as first, files.locked_folder(tmp_path) as second:
        assert (first, second) == (True, False)
