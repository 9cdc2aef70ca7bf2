"""A calibration that was stopped goes on: from what it found, and from nothing that is stale, damaged or foreign."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kandinsky22 import ExportError
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Manifest
from kandinsky22_export import cli, resuming, write_bundle
from kandinsky22_export.quantise import component, recording
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.quantise.ranges import Magnitudes, packed, unpacked
from kandinsky22_export.resuming import ARRAYS, RECORD, Saved, numbers_of
from kandinsky22_export.write_bundle import export

PROMPTS = ("a red circle", "a blue square")
CALIBRATION = Calibration(PROMPTS, seed=3, samples=6)
PAINTERS = ("text_encoder", "prior_step", "decoder_step", "movq_decoder")
QUANTISED = PAINTERS[1:]


def copied(bundle: Path, folder: Path) -> Manifest:
    """Stand-in for the export in floating point: the components that paint, of a bundle that is there."""
    manifest = Bundle(bundle).manifest
    names = {file for name in PAINTERS for file in manifest.components[name].files}
    for name in (*names, "tokenizer.json", "constants.npz"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(bundle / name, folder / name)
    components = {name: manifest.components[name] for name in PAINTERS}
    return write_bundle.finish(dataclasses.replace(manifest, name="out", components=components), folder)


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Runs of a few steps."""
    patch.setattr(recording, "DECODER_STEPS", 4)
    patch.setattr(recording, "PRIOR_STEPS", 4)


@pytest.fixture
def arguments(
    shapes_checkpoint: Path, shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What `export` is called with, to `tmp_path/out`; the export in floating point is copied."""
    hasten(monkeypatch)
    monkeypatch.setattr(write_bundle, "_write", lambda *_: copied(shapes_bundle, _[6]))
    asked = {"precision": "int8", "components": PAINTERS, "calibration": CALIBRATION}
    return {"source": str(shapes_checkpoint / "decoder"), "destination": tmp_path / "out", **asked}


@pytest.fixture
def no_painting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded, at once."""
    monkeypatch.setattr(recording, "_paint", lambda *_: None)


class Work:
    """Counts what takes long, and stops where it is told."""

    def __init__(self, stop_at: str = "") -> None:
        self.told: list[str] = []
        self._stop_at = stop_at

    def note(self, name: str, stage: str) -> None:
        self.told.append(f"{name}: {stage}")
        if self.told[-1] == self._stop_at:
            raise KeyboardInterrupt

    def done(self) -> list[str]:
        """What was painted, calibrated and measured, and not found."""
        long = re.compile(r".*: (painting|calibrating|finding|choosing).*")
        return [each for each in self.told if long.fullmatch(each)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path, shapes_bundle: Path
) -> tuple[dict[str, bytes], list[str]]:
    """The files of an export that ran through, and what it did."""
    folder, work = tmp_path_factory.mktemp("whole"), Work()
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        patch.setattr(write_bundle, "_write", lambda *_: copied(shapes_bundle, _[6]))
        export(
            str(shapes_checkpoint / "decoder"),
            folder / "out",
            precision="int8",
            components=PAINTERS,
            calibration=CALIBRATION,
            note=work.note,
        )
    assert os.listdir(folder) == ["out"]  # and no folder of a calibration
    return files(folder / "out"), work.told


def stopped(arguments: dict[str, Any], at: str) -> list[str]:
    """Names of the parts that are kept where an export was stopped at a stage."""
    with pytest.raises(KeyboardInterrupt) as caught:
        export(**arguments, note=Work(at).note)
    folder = arguments["destination"].with_name("out.calibration")
    assert not arguments["destination"].exists()
    assert [path.name for path in folder.parent.iterdir()] == ["out.calibration"]
    sentence = f"{folder} keeps what was calibrated so far: the same command goes on from it."
    assert caught.value.__notes__ == [sentence]
    return sorted(path.name.split("-")[0] for path in folder.iterdir() if path.name != RECORD)


RANGES = [f"prior_step_range_{number}" for number in (1, 2, 3)]
PAINTED = ["painted_1", "painted_2"]


@pytest.mark.parametrize(
    ("stop", "kept", "left"),
    [
        ("calibration: painting 2 of 2", PAINTED[:1], "calibration: painting 2 of 2"),
        ("prior_step in int8: computing references", PAINTED, "prior_step in int8: calibrating 1 of 6"),
        ("prior_step in int8: calibrating 4 of 6", [*PAINTED, *RANGES[:1]], "prior_step in int8: calibrating 3 of 6"),
        ("prior_step in int8: finding sensitive layers", [*PAINTED, *RANGES], ""),
        (
            "decoder_step in int8: computing references",
            [*PAINTED, "prior_step_effects", "prior_step_errors", *RANGES],
            "decoder_step in int8: calibrating 1 of 6",
        ),
    ],
)
def test_after_a_stop_it_goes_on_to_the_same_bundle(
    stop: str, kept: list[str], left: str, arguments: dict[str, Any], whole: tuple[dict[str, bytes], list[str]]
) -> None:
    expected, told = whole
    assert stopped(arguments, stop) == kept
    work, everything = Work(), Work()
    everything.told = told
    export(**arguments, note=work.note)
    assert work.done() == everything.done()[everything.done().index(left or stop) :]
    assert files(arguments["destination"]) == expected
    assert os.listdir(arguments["destination"].parent) == ["out"]


def test_what_was_found_before_is_told(arguments: dict[str, Any]) -> None:
    stopped(arguments, "decoder_step in int8: finding sensitive layers")
    work = Work()
    export(**arguments, note=work.note)
    for told in (
        "calibration: painted before: 2 of 2",
        "prior_step in int8: calibrated before: 4 of 6",
        "prior_step in int8: sensitive layers found before",
        "prior_step in int8: effects of rounding found before",
        "decoder_step in int8: calibrated before: 6 of 6",
    ):
        assert told in work.told


def test_stopped_at_the_very_end_nothing_is_done_twice(
    arguments: dict[str, Any], whole: tuple[dict[str, bytes], list[str]]
) -> None:
    """After the last component, when its file is compared; the bundle is not whole yet."""
    stopped(arguments, "movq_decoder in int8: comparing with what it was")
    work = Work()
    export(**arguments, note=work.note)
    assert work.done() == []
    assert files(arguments["destination"]) == whole[0]


def test_shallow_steps_go_on_as_well(arguments: dict[str, Any]) -> None:
    arguments |= {"precision": "fp32", "shallow": True}
    whole = {**arguments, "destination": arguments["destination"].with_name("whole") / "out"}
    export(**whole)
    expected = files(whole["destination"])
    shutil.rmtree(whole["destination"].parent)
    assert stopped(arguments, "decoder_step: choosing where its shallow step is cut") == PAINTED
    work = Work()
    export(**arguments, note=work.note)
    assert work.done() == ["decoder_step: choosing where its shallow step is cut"]
    assert "calibration: painted before: 2 of 2" in work.told
    assert files(arguments["destination"]) == expected


def test_prompts_are_painted_once_for_quantised_graphs_and_shallow_steps(
    arguments: dict[str, Any], whole: tuple[dict[str, bytes], list[str]]
) -> None:
    """And what is quantised is what it is without shallow steps, but for the features that decoders hand out."""
    expected, told = whole
    work, everything = Work(), Work()
    everything.told = told
    export(**arguments, shallow=True, note=work.note)
    assert [each for each in work.done() if "painting" in each] == [
        "calibration: painting 1 of 2",
        "calibration: painting 2 of 2",
    ]
    assert [each for each in work.done() if "choosing" not in each] == everything.done()
    found = files(arguments["destination"])
    weights = [name for name in expected if name.endswith(".onnx.data")]
    assert {name: found[name] for name in weights} == {name: expected[name] for name in weights}


@pytest.mark.usefixtures("no_painting")
@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ({"calibration": dataclasses.replace(CALIBRATION, prompts=("a green ring", *PROMPTS[1:]))}, "prompts"),
        ({"calibration": dataclasses.replace(CALIBRATION, seed=4)}, "seed"),
        ({"calibration": dataclasses.replace(CALIBRATION, samples=8)}, "samples"),
        ({"precision": "fp8"}, "precision"),
        ({"shallow": True}, "shallow"),
    ],
)
def test_what_was_found_for_another_export_is_not_used(
    changed: dict[str, Any], other: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stopped(arguments, "calibration: painting 2 of 2")
    before = set(files(arguments["destination"].with_name("out.calibration")))
    assert stopped({**arguments, **changed}, "calibration: painting 2 of 2") == ["painted_1"]
    assert set(files(arguments["destination"].with_name("out.calibration"))) & before == {RECORD}
    assert f"out.calibration is begun anew: it was for other {other}" in caplog.text


@pytest.mark.usefixtures("no_painting")
@pytest.mark.parametrize(
    ("what", "other"), [("weights", "weights"), ("scheduler", "bundle"), ("version", "versions"), ("ours", "another v")]
)
def test_what_was_found_with_something_else_is_not_used(
    what: str,
    other: str,
    arguments: dict[str, Any],
    shapes_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped(arguments, "calibration: painting 2 of 2")

    def altered(*given: Any) -> Manifest:
        manifest = copied(shapes_bundle, given[6])
        if what == "weights":
            path = given[6] / "onnx" / "movq_decoder.onnx"
            model = onnx.load(path, load_external_data=False)
            model.doc_string = "another"
            path.write_bytes(model.SerializeToString())
        if what == "scheduler":
            others = {**manifest.schedulers, "prior": {**manifest.schedulers["prior"], "clip_sample_range": 4}}
            manifest = dataclasses.replace(manifest, schedulers=others)
        return write_bundle.finish(manifest, given[6])

    monkeypatch.setattr(write_bundle, "_write", altered)
    if what == "version":
        monkeypatch.setattr("kandinsky22_export.versions._version", lambda package: "another")
    if what == "ours":
        monkeypatch.setattr(resuming, "FORMAT_VERSION", resuming.FORMAT_VERSION + 1)
    assert stopped(arguments, "calibration: painting 2 of 2") == ["painted_1"]
    assert f"is begun anew: it was for {other if what == 'ours' else 'other ' + other}" in caplog.text


@pytest.mark.usefixtures("no_painting")
def test_where_torch_was_near_is_no_matter(
    arguments: dict[str, Any], shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files were compared with torch on as many threads as were free."""
    stopped(arguments, "calibration: painting 2 of 2")

    def checked_anew(*given: Any) -> Manifest:
        manifest = copied(shapes_bundle, given[6])
        others = {
            name: dataclasses.replace(
                each, checks=tuple(dataclasses.replace(check, error=check.error / 2) for check in each.checks)
            )
            for name, each in manifest.components.items()
        }
        return write_bundle.finish(dataclasses.replace(manifest, components=others), given[6])

    monkeypatch.setattr(write_bundle, "_write", checked_anew)
    work = Work("calibration: painting 2 of 2")
    with pytest.raises(KeyboardInterrupt):
        export(**arguments, note=work.note)
    assert work.done() == ["calibration: painting 2 of 2"]


@pytest.mark.parametrize("how", ["a bit", "cut short", "of another part"])
def test_a_part_that_is_damaged_is_made_anew(
    how: str,
    arguments: dict[str, Any],
    whole: tuple[dict[str, bytes], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped(arguments, "prior_step in int8: calibrating 3 of 6")
    first, second, _ = sorted(arguments["destination"].with_name("out.calibration").glob("*.npz"))
    data = second.read_bytes()
    match how:
        case "a bit":
            second.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
        case "cut short":
            second.write_bytes(data[:-1])
        case _:
            second.write_bytes(first.read_bytes())
    work = Work()
    export(**arguments, note=work.note)
    assert work.done()[:2] == ["calibration: painting 2 of 2", "prior_step in int8: calibrating 3 of 6"]
    assert f"{second} is damaged: it is made anew" in caplog.text
    assert files(arguments["destination"]) == whole[0]


def put(what: str, folder: Path) -> Path:
    """Something foreign in a folder, or in its place."""
    match what:
        case "a file":
            (folder / "notes.txt").write_text("mine")
            return folder / "notes.txt"
        case "a link":
            (part,) = folder.glob("painted_1-*")
            part.rename(folder.parent / "elsewhere")
            part.symlink_to(folder.parent / "elsewhere")
            return part
        case "a folder":
            (folder / "inner").mkdir()
            return folder / "inner"
        case "a record that is none":
            (folder / RECORD).write_text('{"mine": 1}')
            return folder / RECORD
        case "a file in its place":
            shutil.rmtree(folder)
            folder.write_text("mine")
        case "a link in its place":
            folder.rename(folder.parent / "elsewhere")
            folder.symlink_to(folder.parent / "elsewhere")
        case "others may write":
            folder.chmod(0o777)
    return folder


@pytest.mark.usefixtures("no_painting")
@pytest.mark.parametrize(
    "what",
    [
        "a file",
        "a link",
        "a folder",
        "a record that is none",
        "a file in its place",
        "a link in its place",
        "others may write",
    ],
)
def test_a_folder_with_anything_foreign_is_refused_at_once_and_left_alone(what: str, arguments: dict[str, Any]) -> None:
    stopped(arguments, "calibration: painting 2 of 2")
    foreign = put(what, arguments["destination"].with_name("out.calibration"))
    before = files(arguments["destination"].parent)
    work = Work()
    with pytest.raises(ExportError, match=rf"^{re.escape(str(foreign))} is .*; move .*, or choose another -o\.$"):
        export(**arguments, note=work.note)
    assert work.told == ["checkpoint: reading"]
    assert files(arguments["destination"].parent) == before


def test_what_comes_into_the_folder_meanwhile_stays(
    arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = arguments["destination"].with_name("out.calibration")

    def note(name: str, stage: str) -> None:
        if "comparing" in stage:
            (folder / "notes.txt").write_text("mine")

    export(**arguments, note=note)
    assert arguments["destination"].is_dir()
    assert "notes.txt" in files(folder)
    assert "out.calibration is no longer needed, and stays: something in it is not of a calibration" in caplog.text


@pytest.mark.usefixtures("no_painting")
def test_two_exports_do_not_share_a_folder(arguments: dict[str, Any]) -> None:
    message = r"out\.calibration is another export's, which runs now; wait for it, or choose another -o\.$"

    def note(name: str, stage: str) -> None:
        if stage == "painting 2 of 2":
            with pytest.raises(ExportError, match=message):
                export(**arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(**arguments, note=note)
    assert arguments["destination"].with_name("out.calibration").is_dir()


@pytest.mark.usefixtures("no_painting")
def test_stopped_before_anything_is_found_nothing_is_left(arguments: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        export(**arguments, note=Work("calibration: painting 1 of 2").note)
    assert not hasattr(caught.value, "__notes__")
    assert os.listdir(arguments["destination"].parent) == []


@pytest.mark.usefixtures("no_painting")
def test_a_disk_that_is_full_is_one_sentence_and_what_there_is_stays(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = arguments["destination"].with_name("out.calibration"), resuming.write_file

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("painted_2"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    monkeypatch.setattr(resuming, "write_file", full)
    with pytest.raises(ExportError, match=rf"^{folder} cannot be written: the disk is full\.\n") as caught:
        export(**arguments)
    (told,) = caught.value.__notes__
    assert told.startswith(f"{folder} keeps what was calibrated so far")
    monkeypatch.setattr(resuming, "write_file", write)
    work = Work("calibration: painting 2 of 2")
    with pytest.raises(KeyboardInterrupt):
        export(**arguments, note=work.note)
    assert work.done() == ["calibration: painting 2 of 2"]


@pytest.mark.usefixtures("no_painting")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(arguments: dict[str, Any]) -> None:
    stopped(arguments, "calibration: painting 2 of 2")
    folder = arguments["destination"].with_name("out.calibration")
    folder.chmod(0o500)
    try:
        with pytest.raises(ExportError, match=rf"^{folder} cannot be written: Permission denied\.\n"):
            export(**arguments)
    finally:
        folder.chmod(0o700)


def test_the_command_says_what_is_kept_and_goes_on(
    arguments: dict[str, Any],
    whole: tuple[dict[str, bytes], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    destination = arguments["destination"]
    prompts = destination.with_name("prompts.txt")
    prompts.write_text("\n".join(PROMPTS))
    words = [arguments["source"], "-o", str(destination), "--precision", "int8", "--calibration", str(prompts)]
    words += ["--calibration-seed", "3", "--calibration-samples", "6", "--components", *PAINTERS]
    paint, painted = recording._paint, []

    def terminated(*given: Any) -> None:
        painted.append(given[2])
        if len(painted) == 2:
            signal.raise_signal(signal.SIGTERM)
        paint(*given)

    monkeypatch.setattr(recording, "_paint", terminated)
    assert cli.main(words) == 143
    folder = f"{destination}.calibration"
    sentence = f"Stopped; {folder} keeps what was calibrated so far: the same command goes on from it."
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert cli.main(words) == 0
    assert painted == [*PROMPTS, PROMPTS[1]]
    assert files(destination) == whole[0]
    assert sorted(os.listdir(destination.parent)) == ["out", "prompts.txt"]


KILLED = """
import sys
from pathlib import Path
from kandinsky22_export import cli, write_bundle
from tests.export.test_resuming import copied, hasten
import pytest
hasten(pytest.MonkeyPatch())
write_bundle._write = lambda *given: copied(Path(sys.argv[1]), given[6])
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_after_a_kill_it_goes_on_to_the_same_bundle(
    shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path, whole: tuple[dict[str, bytes], list[str]]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = [str(shapes_checkpoint / "decoder"), "-o", str(tmp_path / "out"), "--precision", "int8"]
    words += ["--calibration", str(tmp_path / "prompts.txt"), "--calibration-seed", "3", "--calibration-samples", "6"]
    command = [sys.executable, "-c", KILLED, str(shapes_bundle), *words, "--components", *PAINTERS]
    folder = tmp_path / "out.calibration"
    first = functools.partial(subprocess.Popen, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root / "runtime", root / "export", root)))}
    process = first(env=environment)
    deadline = time.monotonic() + 300
    while not list(folder.glob("prior_step_range_1-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"promp", "out.c", ".out."}
    process = first(env=environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "painted before: 2 of 2" in err
    assert "painting" not in err
    assert files(tmp_path / "out") == whole[0]
    assert sorted(os.listdir(tmp_path)) == ["out", "prompts.txt"]


# Parts, one by one.


def key(**more: object) -> dict[str, object]:
    return {"what": "a test", **more}


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "a.calibration")
    saved.begin(key())

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (tmp_path / "trap").write_text, ("sprung",)

    def packed_trap(_: object) -> bytes:
        path = tmp_path / "trap.npz"
        np.savez(path, a=np.array([Trap()], object))
        return path.read_bytes()

    forged = dataclasses.replace(ARRAYS, write=packed_trap)
    saved.get("part", forged, lambda: {"a": np.zeros(1)}, lambda: None)
    made = saved.get("part", ARRAYS, lambda: {"a": np.ones(1)}, lambda: pytest.fail("it was read"))
    assert made["a"] == 1
    assert not (tmp_path / "trap").exists()


def test_what_is_compressed_is_not_read(tmp_path: Path) -> None:
    """A few bytes may say that they are gigabytes."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100))
    with pytest.raises(ValueError, match="compressed"):
        ARRAYS.read((tmp_path / "a.npz").read_bytes())


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', '{"a": 1, "b": "2"}', '{"a": 1, "b": NaN}', "{", '{"a":1,"c":2}'])
def test_numbers_are_those_that_are_asked_for(text: str) -> None:
    form = numbers_of(["a", "b"])
    assert form.read(form.write({"a": 0.1 + 0.2, "b": -1e-300})) == {"a": 0.1 + 0.2, "b": -1e-300}
    with pytest.raises(ValueError, match=r"expected|not JSON"):
        form.read(text.encode())


def test_arrays_come_back_as_they_were() -> None:
    arrays = {"a/0/x": np.arange(6.0).reshape(2, 3).T, "b": np.array(3, np.int64), "c": np.zeros((0, 2), np.float32)}
    found = ARRAYS.read(ARRAYS.write(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_magnitudes_come_back_as_they_were() -> None:
    seen = {name: Magnitudes() for name in ("a", "b/c", "nothing")}
    seen["a"].add(np.random.default_rng(0).standard_normal(1000, np.float32))
    seen["b/c"].add(np.array([0.0, 1e-38, 3e38], np.float32))
    found = unpacked(ARRAYS.read(ARRAYS.write(packed(seen))))
    assert list(found) == list(seen)
    for name, each in seen.items():
        np.testing.assert_array_equal(found[name].counts, each.counts)
        assert found[name].largest == each.largest


def test_a_folder_that_a_kill_left_half_made_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "a.calibration"
    folder.mkdir(0o700)
    (folder / f".{RECORD}.0123456789abcdef.part").write_bytes(b"{")
    with resuming.resuming(tmp_path / "a") as saved:
        saved.begin(key())
        assert json.loads((folder / RECORD).read_text())["format_version"] == resuming.FORMAT_VERSION
        assert [path.name for path in folder.iterdir()] == [RECORD]
    assert not folder.exists()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved, made = Saved(), []
    saved.begin(key())
    for _ in range(2):
        saved.get("part", numbers_of([]), lambda: made.append(1) or {}, lambda: pytest.fail("it was kept"))
    assert len(made) == 2
    assert not os.listdir(tmp_path)


def test_scales_are_asked_of_no_session_where_all_is_known(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(arguments, "prior_step in int8: writing")
    monkeypatch.setattr(component, "_Activations", lambda *_: pytest.fail("a session was made"))
    stopped(arguments, "prior_step in int8: writing")


def test_a_part_of_another_key_is_not_used_even_under_its_name(tmp_path: Path) -> None:
    """As where somebody copies files from one folder to another."""
    folder, form = tmp_path / "a.calibration", numbers_of(["x"])

    def got(number: float, **more: object) -> float:
        found = 0.0
        with contextlib.suppress(KeyboardInterrupt), resuming.resuming(tmp_path / "a") as saved:
            saved.begin(key(**more))
            for path in tmp_path.glob("part-*"):
                shutil.copy(path, folder)
            found = saved.get("part", form, lambda: {"x": number}, lambda: None)["x"]
            raise KeyboardInterrupt
        return found

    assert got(1) == got(2) == 1
    (part,) = folder.glob("part-*")
    shutil.copy(part, tmp_path)
    assert got(3, other=1) == 3


def test_ctrl_c_when_the_bundle_has_its_place_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the folder is removed, it goes all the same."""
    clear, stops = resuming._clear, [KeyboardInterrupt()]

    def stopped_once(folder: Path) -> None:
        if stops and any(folder.glob("part-*")):
            raise stops.pop()
        clear(folder)

    monkeypatch.setattr(resuming, "_clear", stopped_once)
    with contextlib.ExitStack() as inside:
        saved = inside.enter_context(resuming.resuming(tmp_path / "a"))
        saved.begin(key())
        saved.get("part", numbers_of([]), dict, lambda: None)
        with pytest.raises(KeyboardInterrupt) as caught:
            inside.close()
    assert caught.value.__notes__ == [f"{tmp_path / 'a'} is written."]
    assert not os.listdir(tmp_path)
    assert not caplog.text


def test_ctrl_c_just_after_the_bundle_has_its_place_leaves_no_folder(tmp_path: Path) -> None:
    """`replacing` gives it a note then."""
    stop = KeyboardInterrupt()
    stop.add_note("It is written.")

    def export_nothing() -> None:
        with resuming.resuming(tmp_path / "a") as saved:
            saved.begin(key())
            saved.get("part", numbers_of([]), dict, lambda: None)
            raise stop

    with pytest.raises(KeyboardInterrupt):
        export_nothing()
    assert stop.__notes__ == ["It is written."]
    assert not os.listdir(tmp_path)
