"""Measuring: what is timed, how often, and what is told."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kandinsky22.arrays import Array
from kandinsky22.backends import Settings, onnxruntime
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli import bench as command
from kandinsky22.cli import main
from kandinsky22.errors import BackendError, InputError
from kandinsky22.measure import suite, timing
from kandinsky22.measure.report import Measurements
from kandinsky22.measure.timing import Memory, Size, Timing

from ..damaged import damaged
from .handmade import GRAPHS, MORE_GRAPHS, write_bundle


def timed(*seconds: float) -> Timing:
    return Timing("decoder_step", Size(64, 64), seconds, Memory(0, 0), load_seconds=1.0)


def test_percentiles_are_times_that_were_measured() -> None:
    ten = timed(*(float(i) for i in range(10, 0, -1)))
    assert [ten.percentile(share) for share in (50, 90, 99)] == [5.0, 9.0, 10.0]
    assert timed(3.0).percentile(50) == timed(3.0).percentile(99) == 3.0


class Sleeper:
    """A stage that takes long the first time, and then a set time."""

    name = "movq_decoder"
    load_seconds = 2.0

    def __init__(self) -> None:
        self.runs: list[float] = []

    def prepare(self, size: Size) -> None:
        self.size = size

    def run(self) -> float:
        self.runs.append(0.1 if not self.runs else 0.01)
        time.sleep(self.runs[-1])
        return self.runs[-1]


def test_the_first_run_does_not_count() -> None:
    told: list[float] = []
    stage = Sleeper()
    result = timing.time_stage(stage, Size(64, 128), repeat=3, on_run=told.append)  # type: ignore[arg-type]
    assert result.seconds == (0.01, 0.01, 0.01)
    assert told == [0.1, 0.01, 0.01, 0.01]
    assert stage.size == Size(64, 128)
    assert timing.as_json(result)["load_seconds"] == 2.0


def test_patience_ends_it_after_at_least_one_run() -> None:
    result = timing.time_stage(Sleeper(), Size(64, 64), repeat=100, patience=0.005)  # type: ignore[arg-type]
    assert result.seconds == (0.01,)


def test_the_highest_memory_of_a_block_is_that_of_the_block() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("NOT TESTED: this system does not tell the highest memory of a block")
    with timing.highest_memory() as memory:
        before = memory().host
    with timing.highest_memory() as memory:
        block = bytearray(200 << 20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert 150 << 20 < memory().host - before < 300 << 20
    with timing.highest_memory() as memory:
        pass
    assert memory().host - before < 100 << 20


@pytest.mark.parametrize("name", ["text_encoder", "prior_step", "decoder_step", "movq_decoder"])
def test_a_stage_runs_at_any_size(handmade_bundle: Bundle, name: str) -> None:
    stage = timing.Stage(handmade_bundle, name, onnxruntime.CPU, Settings(threads=1), steps=3)
    for size in (Size(64, 128), Size(128, 64, batch=2, guided=False)):
        assert timing.time_stage(stage, size, repeat=1).seconds[0] > 0
    stage.close()
    assert timing.depends_on_size(handmade_bundle, name) == (name in ("decoder_step", "movq_decoder"))


class Eater:
    """A loaded component that notes how many rows each run is given."""

    def __init__(self) -> None:
        self.coefficients: list[int] = []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (array,) = feeds.values()
        self.coefficients.append(len(array))
        return {}


@pytest.mark.parametrize("name", ["prior_step", "decoder_step", "decoder_step_inpaint"])
def test_a_step_graph_is_timed_with_what_changes_in_a_run_changing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A GPU is fed in every step what it is fed in a run."""
    told: list[Any] = []
    bundle = Bundle(write_bundle(tmp_path / "all", {**GRAPHS, **MORE_GRAPHS}))
    monkeypatch.setattr(onnxruntime.CPU, "load", lambda *_: SimpleNamespace(loop=lambda *given: told.append(given)))
    stage = timing.Stage(bundle, name, onnxruntime.CPU, Settings(), steps=3)
    stage.prepare(Size(64, 128))
    stage.run()
    ((state, per_step, constants),) = told
    assert state.keys() == {"latents", "x0_before"}
    assert per_step.keys() == {"timestep", "coefficients", "noise"} | ({"known_scales"} if "inpaint" in name else set())
    assert {len(rows) for rows in per_step.values()} == {3}
    assert {*state, *per_step, *constants} == {spec.name for spec in bundle.component(name).inputs}


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [
        # 2^20 pixels are four pictures of 512x512, or one of any size; six go in even parts.
        ("movq_decoder", Size(512, 512, batch=6), [3, 3]),
        ("movq_encoder", Size(512, 512, batch=6), [3, 3]),
        ("hint_encoder", Size(512, 512, batch=4), [4]),
        ("movq_decoder", Size(2048, 1024, batch=2), [1, 1]),
        ("image_encoder", Size(64, 64, batch=3), [1, 1, 1]),
        # A prompt and an empty one for each picture.
        ("text_encoder", Size(64, 64, batch=3), [6]),
        ("text_encoder", Size(64, 64, batch=3, guided=False), [3]),
    ],
)
def test_a_batch_is_run_as_the_pipeline_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: Size, rows: list[int]
) -> None:
    bundle, eater = Bundle(write_bundle(tmp_path / "all", {**GRAPHS, **MORE_GRAPHS})), Eater()
    monkeypatch.setattr(onnxruntime.CPU, "load", lambda *_: eater)
    stage = timing.Stage(bundle, name, onnxruntime.CPU, Settings())
    stage.prepare(size)
    stage.run()
    assert eater.coefficients == rows


def test_sizes_go_from_small_to_large(handmade_bundle: Bundle) -> None:
    found = timing.sizes(handmade_bundle, [(256, 256), (64, 64), (128, 64), (64, 64)], [4, 1])
    assert list(map(str, found)) == ["64x64", "128x64", "64x64 x 4", "128x64 x 4", "256x256", "256x256 x 4"]


def test_a_size_is_one_number_or_two() -> None:
    assert timing.sides("1024") == (1024, 1024)
    assert timing.sides("1024X768") == (1024, 768)
    for text in ("", "x", "1x2x3", "-64", "64.5"):
        with pytest.raises(InputError, match="expected pixels such as 1024 or 1024x768"):
            timing.sides(text)


def test_what_is_left_is_told_in_minutes() -> None:
    assert timing.left(59) == "less than a minute left"
    assert timing.left(12.4 * 60) == "about 12 min left"


def test_sizes_that_no_graph_takes_are_refused(handmade_bundle: Bundle) -> None:
    assert timing.sizes(handmade_bundle, [(128, 64)], [1, 2]) == [Size(64, 128), Size(64, 128, 2)]
    for side in (100, 0, 1 << 20):
        with pytest.raises(InputError, match="expected multiples of 64 up to"):
            timing.sizes(handmade_bundle, [(side, 64)], [1])


def test_the_command_tells_stages_and_pictures(handmade_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --size 128x64 --batch 1 --batch 2"
    line += " --repeat 2 --steps 2 --prior-steps 2"
    assert main.main([*line.split(), "--json", "--quiet"]) == 0
    (backend,) = json.loads(capsys.readouterr().out)["backends"]
    assert backend["name"] == "onnxruntime"
    stages = [(each["stage"], each["width"], each["batch"]) for each in backend["stages"]]
    assert stages.count(("decoder_step", 128, 2)) == 1
    assert len([stage for stage, _, _ in stages if stage == "decoder_step"]) == 4
    assert len([stage for stage, _, _ in stages if stage == "prior_step"]) == 2  # once a batch
    for each in backend["stages"]:
        assert len(each["seconds"]) == 2
        assert min(each["seconds"]) == each["p50"] <= each["p90"] == each["p99"] == max(each["seconds"])
        assert each["peak_host_memory"] > 10 << 20
    assert len(backend["pictures"]) == 8
    assert [each["first"] for each in backend["pictures"]] == [True, False] * 4
    assert all(each["timings"]["total"] > each["timings"]["decoder_step"] > 0 for each in backend["pictures"])

    assert main.main([*line.split(), "--quiet"]) == 0
    out = capsys.readouterr().out
    size = sum(record.bytes for record in handmade_bundle.manifest.files.values()) / 1e9
    assert out.startswith(f"handmade, fp32, {size:.2g} GB on disk\n")
    assert "p99 ms" in out
    assert "decoder_step  128x64 x 2" in out
    assert out.count("first") == 4
    assert out.count("next") == 4


def test_a_first_picture_is_the_first_of_its_pipeline(
    handmade_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one component in memory at a time, every picture loads."""
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --repeat 1 --steps 2 --prior-steps 2"
    assert main.main([*line.split(), "--low-memory", "--pictures", "3", "--quiet"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if row.startswith(("first", "next"))] == ["first", "next", "next"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--size 100", "The size 100 cannot be timed; expected multiples of 64"),
        ("--size huge", "The size is 'huge'; expected pixels such as 1024 or 1024x768."),
        ("--repeat 0", "repeat is 0; expected a whole number from 1"),
        ("--batch 0", "batch is 0"),
        ("--steps 0", "steps is 0; expected a whole number from 1"),
        ("--steps 20 --steps 1001", "steps is 1001"),
        ("--prior-steps 1", "prior_steps is 1; expected a whole number from 2"),
        ("--scheduler euler", "The scheduler must be DDPM, DDIM, DPM++ or DPM++ Karras, not 'euler'."),
        ("--threads 0", "threads is 0; expected a whole number from 1"),
        ("--patience 0", "patience is 0.0; expected a number above 0"),
        ("--component nothing", "no component 'nothing'"),
        ("--component decoder_step --component nothing", "no component 'nothing'"),
        ("--backend nothing", "no backend 'nothing'"),
        ("--backend onnxruntime --backend nothing", "no backend 'nothing'"),
        ("--backend onnxruntime --precision bf16", "ONNX Runtime's CPU kernels have no bf16"),
        ("--report /nowhere/bench.json", "/nowhere/bench.json"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_measured(
    handmade_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    sentence: str,
) -> None:
    for name in ("time_stage", "time_picture"):
        monkeypatch.setattr(timing, name, lambda *_, **__: pytest.fail("it was measured"))
    assert main.main(["bench", str(handmade_bundle.path), *arguments.split(), "--quiet"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert sentence in error
    assert error.count("\n") == 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements are made up, and listed here. A picture of 13 steps fails."""
    made: list[str] = []

    def time_stage(stage: timing.Stage, size: Size, **_: object) -> Timing:
        made.append(f"{stage.name} {size}")
        return Timing(stage.name, size, (0.5,), Memory(1 << 30, 0), stage.load_seconds)

    def time_picture(pipe: object, size: Size, *, steps: int, prior_steps: int, first: bool, **_: object) -> object:
        made.append(f"picture {size} {steps}")
        if steps == 13:
            raise BackendError("The thirteenth step has failed.")
        return timing.Picture(size, steps, prior_steps, {"total": 9.0}, Memory(1 << 30, 0), first)

    monkeypatch.setattr(timing, "time_stage", time_stage)
    monkeypatch.setattr(timing, "time_picture", time_picture)
    return made


def test_every_size_is_loaded_anew(
    handmade_bundle: Bundle, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a component keeps of one size is not the memory of the next."""
    log: list[str] = []

    class Noted(timing.Stage):
        def __init__(self, bundle: Bundle, name: str, *rest: object) -> None:
            super().__init__(bundle, name, *rest)  # type: ignore[arg-type]
            log.append(f"load {name}")

        def close(self) -> None:
            super().close()
            log.append(f"close {self.name}")

    monkeypatch.setattr(timing, "Stage", Noted)
    line = f"bench {handmade_bundle.path} --backend onnxruntime --component movq_decoder --size 128 --size 64 --quiet"
    assert main.main(line.split()) == 0
    assert log == ["load movq_decoder", "close movq_decoder"] * 2
    assert measured == ["movq_decoder 64x64", "movq_decoder 128x128"]


def test_all_components_go_from_small_to_large(
    handmade_bundle: Bundle, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No component is measured in what another has left of a larger size; the table has them together again."""
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 128 --size 64 --pictures 0 --quiet"
    assert main.main(line.split()) == 0
    small = [f"{name} 64x64" for name in GRAPHS]
    assert measured == [*small, "decoder_step 128x128", "movq_decoder 128x128"]
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "decoder" in line]
    assert rows == [[name, size] for name in ("decoder_step", "movq_decoder") for size in ("64x64", "128x128")]


def test_what_was_measured_is_printed_where_the_rest_fails(
    handmade_bundle: Bundle, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --steps 2 --steps 13 --quiet"
    assert main.main([*line.split(), "--json"]) == 1
    out, error = capsys.readouterr()
    (backend,) = json.loads(out)["backends"]
    assert len(backend["stages"]) == 4
    assert [each["steps"] for each in backend["pictures"]] == [2, 2]
    assert error == "error: The thirteenth step has failed.\n"
    assert main.main(line.split()) == 1
    out, error = capsys.readouterr()
    assert out.count("500.0") == 4 * 3
    assert out.count(" 9.0") == 2  # and what opening the pipeline took
    assert error == "error: The thirteenth step has failed.\n"


def test_a_report_goes_on_where_it_was(
    handmade_bundle: Bundle, measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in the file is not measured again; pictures of a pipeline that failed are, from the first."""
    file = tmp_path / "bench.json"
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --report {file} --quiet"
    assert main.main([*line.split(), "--steps", "2", "--steps", "13"]) == 1
    assert measured == [f"{name} 64x64" for name in GRAPHS] + ["picture 64x64 2"] * 2 + ["picture 64x64 13"]
    (backend,) = json.loads(file.read_text())["backends"]
    assert (len(backend["stages"]), len(backend["pictures"])) == (4, 2)
    backend["pictures"].pop()
    stored = json.loads(file.read_text()) | {"backends": [backend]}
    file.write_text(json.dumps(stored))

    measured.clear()
    capsys.readouterr()
    assert main.main([*line.split(), "--steps", "2", "--size", "128", "--json"]) == 0
    assert measured == [
        "decoder_step 128x128",
        "movq_decoder 128x128",
        *["picture 64x64 2"] * 2,
        *["picture 128x128 2"] * 2,
    ]
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("--scheduler ddim", "has measurements with other settings (scheduler None, not ddim); name another file"),
        ("bundle", "has measurements of another bundle (manifest_sha256 0, not "),
        ("version", "is of another onnxruntime or machine; name another file"),
        (
            "text",
            "is no report of this command, or damaged: the whole is a list of 0, expected an object",
        ),
    ],
)
def test_other_measurements_are_not_mixed(
    handmade_bundle: Bundle,
    measured: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    sentence: str,
) -> None:
    file = tmp_path / "bench.json"
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --steps 2 --report {file} --quiet"
    assert main.main(line.split()) == 0
    data = json.loads(file.read_text())
    if change == "bundle":
        data["bundle"]["manifest_sha256"] = "0"
    if change == "version":
        data["backends"][0]["version"] = "0"
    file.write_text("[]" if change == "text" else json.dumps(data))
    before = file.read_text()
    measured.clear()
    assert main.main([*line.split(), *(change.split() if change.startswith("--") else ())]) == 1
    assert sentence in capsys.readouterr().err
    assert measured == []
    assert file.read_text() == before


def test_a_damaged_report_is_read_or_refused_in_one_sentence(
    handmade_bundle: Bundle, measured: list[str], tmp_path: Path
) -> None:
    """What is read serves all that is computed with it: tables, estimates, and where a backend's results go."""
    file = tmp_path / "bench.json"
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --steps 2 --report {file} --quiet"
    assert main.main([*line.split(), "--component", "decoder_step"]) == 0
    data = json.loads(file.read_text())
    (entry,) = data["backends"]
    size = Size(64, 64)
    picture = timing.Picture(size, 2, 25, {"total": 9.0, "load": 0.5}, Memory(1 << 30, 0), True)
    entry["pictures"] = [timing.as_json(picture)]
    asked = command._suite(handmade_bundle, parsed(line))
    availability = onnxruntime.CPU.availability(handmade_bundle)
    read, refused = [], []
    for wrong in (data, *damaged(data)):
        file.write_text(json.dumps(wrong))
        try:
            found = suite.entry_of(suite.open_report(asked, file), availability)
        except InputError as error:
            refused.append(str(error))
            continue
        read.append(wrong)
        command._tables(found)
        suite.guessed(found["stages"], "decoder_step", size, 10, 60.0)
        suite.estimated(handmade_bundle, found["stages"], size, 2, 25)
    assert data in read
    assert any(
        f"or damaged: backends[0].stages[0].{name} is " in why
        for name in ("width", "seconds[0]", "p50")
        for why in refused
    )
    assert all(
        why.startswith(str(file)) and why.endswith((", or remove it.", "; name another file.")) for why in refused
    )
    assert len(refused) > 300


def parsed(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(line.split()[1:])


def test_what_is_pending_is_guessed_from_the_component_at_another_size() -> None:
    """Twice the pixels are 2 s a run: 3 s of loading, a run that does not count, and 4 or until 5 s are over."""
    last = timing.as_json(Timing("decoder_step", Size(64, 64), (1.0,), Memory(0, 0), load_seconds=3.0))
    assert suite.guessed([last], "decoder_step", Size(64, 128), 4, 60.0) == 3 + 2 * 5
    assert suite.guessed([last], "decoder_step", Size(64, 128), 4, 5.0) == 3 + 2 * 4
    assert suite.guessed([last], "movq_decoder", Size(64, 128), 4, 60.0) == math.inf


def test_what_was_measured_before_ctrl_c_is_kept(
    handmade_bundle: Bundle, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up = timing.time_stage

    def time_stage(stage: timing.Stage, size: Size, **how: Any) -> Timing:
        if measured:
            raise KeyboardInterrupt
        return made_up(stage, size, **how)

    monkeypatch.setattr(timing, "time_stage", time_stage)
    file = tmp_path / "bench.json"
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --report {file} --quiet"
    assert main.main(line.split()) == 130
    (backend,) = json.loads(file.read_text())["backends"]
    assert [each["stage"] for each in backend["stages"]] == ["text_encoder"]


def test_a_pictures_seconds_are_estimated_from_its_components(handmade_bundle: Bundle) -> None:
    """1 of the text encoder, 25 x 2 of the prior, 20 x 4 of the UNet at this size, 8 of MoVQ: 139."""

    def result(stage: str, side: int, seconds: float, batch: int = 1) -> dict[str, object]:
        return timing.as_json(Timing(stage, Size(side, side, batch), (seconds,), Memory(0, 0), 0.0))

    stages = [
        result("text_encoder", 64, 1.0),
        result("text_encoder", 64, 100.0, batch=2),
        result("prior_step", 64, 2.0),
        result("decoder_step", 64, 100.0),
        result("decoder_step", 128, 4.0),
        result("movq_decoder", 128, 8.0),
        result("image_encoder", 64, 100.0),
    ]
    assert suite.estimated(handmade_bundle, stages, Size(128, 128), 20, 25) == 139


@dataclass(frozen=True)
class Anything:
    """A report of this shape alone."""

    results: tuple[int, ...]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "cannot be read as a report (Is a FIFO, where a regular file was expected)"),
        (Path.mkdir, "cannot be read as a report (Is a directory)"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read as a report (Is a device"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "cannot be read as a report (Is larger than 64 MiB"),
        (lambda path: path.write_bytes(b"["), "is no report of this command, or damaged: the text is not JSON"),
        (lambda path: path.write_bytes(b"[" * 100_000), "lists and objects lie more than 32 deep"),
        (lambda path: path.write_bytes(b"\x00\xff"), "the text is not JSON"),
        (lambda path: path.write_text('{"results": ["\\ud800"]}'), 'results[0] is "\\ud800", expected a whole number'),
        (lambda path: path.write_text('{"results": [' + "9" * 5000 + "]}"), "the text is not JSON"),
        (lambda path: path.write_text('{"results": [1.5]}'), "results[0] is 1.5, expected a whole number"),
    ],
)
def test_what_is_no_report_is_refused_in_a_sentence_and_not_waited_for(
    make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    make(path)
    with pytest.raises(InputError, match=rf"bench\.json .*{re.escape(reason)}.*; name another file, or remove it\.$"):
        Measurements(path, {}, {"results": []}, Anything, {})
