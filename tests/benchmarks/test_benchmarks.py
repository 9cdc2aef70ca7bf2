"""The report: arithmetic against closed forms, subjects that take turns, and a report of made-up measurements."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import onnx
import onnx.parser
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from benchmarks import (
    arithmetic,
    comparisons,
    latency,
    machine,
    markdown,
    plots,
    progress,
    run,
    subjects,
    tasks,
    workers,
)
from benchmarks.comparisons import Comparison
from benchmarks.latency import LatencyMeasurements
from kandinsky22.backends import Availability, onnxruntime
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import InputError
from kandinsky22.measure import timing
from kandinsky22.measure.timing import Size

from ..damaged import damaged


@pytest.mark.parametrize(
    ("body", "flop"),
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (x, kernel)", 2 * (3 * 5 * 7) * (4 * 3 * 3) * 2),
        ("y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, kernel)", 2 * (3 * 3 * 4) * (4 * 3 * 3) * 2),
        ("rows = Transpose <perm = [0, 2, 3, 1]> (x)\n y = MatMul (rows, matrix)", 2 * (2 * 5 * 7) * 4 * 6),
        ("rows = Reshape (x, flat)\n y = Attention (rows, rows, rows)", 2 * (2 * 1 * 20) * 20 * (7 + 7)),
        ("y = Relu (x)", 0),
    ],
)
def test_arithmetic_is_counted(tmp_path: Path, body: str, flop: int) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 23]> g (
        float[B,4,h,w] x, float[3,4,3,3] kernel, float[4,6] matrix
    ) => (float y) <int64[4] flat = {{0, 1, -1, 7}}> {{ {body} }}""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "g.onnx")
    shapes = {"x": (2, 4, 5, 7), "kernel": (3, 4, 3, 3), "matrix": (4, 6)}
    assert arithmetic.flop(tmp_path / "g.onnx", shapes) == flop


class Turn:
    """A worker that notes when it runs; it fails in a run of its own that `fails` counts from 0."""

    def __init__(self, name: str, log: list[str], seconds: float, fails: float = math.inf) -> None:
        self.name, self.spec = name, {"stage": "decoder_step"}
        self.about = {"version": "1", "precision": "fp32", "load_seconds": 2.0}
        self._log, self._seconds, self._left = log, seconds, fails

    def prepare(self, size: Size) -> None:
        self._log.append(f"{self.name} {size}")

    def run(self) -> dict[str, Any]:
        self._log.append(self.name)
        if self._left == 0:
            raise workers.WorkerError(f"{self.name} was killed")
        self._left -= 1
        return {"seconds": self._seconds, "peak_host_memory": 1 << 30, "device_memory": 0}


def test_subjects_take_turns() -> None:
    log: list[str] = []
    pair: Any = [Turn("a", log, 1.0), Turn("b", log, 2.0)]
    results = workers.take_turns(pair, Size(64, 64), 2, 100, lambda seconds: None)
    assert log == ["a 64x64", "a", "b 64x64", "b", "a", "b", "a", "b"]
    assert [result["seconds"] for result in results] == [[1.0, 1.0], [2.0, 2.0]]
    log.clear()
    impatient = workers.take_turns(pair, Size(64, 64), 5, 4, lambda seconds: None)
    assert len(impatient[0]["seconds"]) == 2


def test_a_subject_that_fails_drops_out() -> None:
    log: list[str] = []
    trio: Any = [Turn("a", log, 1.0), Turn("b", log, 1.0, fails=2), Turn("c", log, 1.0, fails=0)]
    first, second, third = workers.take_turns(trio, Size(64, 64), 3, 100, lambda seconds: None)
    assert first["seconds"] == [1.0] * 3
    assert "seconds" not in second
    assert (second["subject"], second["error"]) == ("b", "b was killed")
    assert (third["subject"], third["error"]) == ("c", "c was killed")
    assert log.count("b") == 3
    assert log.count("c") == 1


def test_a_worker_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found from any folder."""
    monkeypatch.chdir(tmp_path)
    elsewhere = [folder for folder in sys.path if folder and Path(folder) != Path(__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(elsewhere))
    with pytest.raises(workers.WorkerError, match=r"x ended with 1: KeyError: 'nothing' \(all of it in"):
        workers.Worker("x", {"kind": "nothing"}, tmp_path / "log")
    assert workers.why("x", -signal.SIGKILL, tmp_path / "log") == (
        "x was killed, which the system does where memory runs out"
    )


def test_a_task_that_fails_is_told_in_the_report_and_the_others_are_measured(
    handmade_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handmade bundle paints from text alone. What is measured is not measured again."""
    choice = ["--name", "m", "--sizes", "64", "--steps", "2", "--backend", "onnxruntime"]
    arguments = [str(handmade_bundle.path), *choice, "--reports", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *arguments, "--only", "text to image", "ControlNet"])
    tasks.main()
    text, hint = json.loads((tmp_path / "tasks-m.json").read_text())["results"]
    assert text["timings"]["decoder_step"] > 0
    assert text["peak"] > 0
    assert re.match(r"ControlNet ended with 1: .*hint_encoder.* \(all of it in tasks-m.log\)$", hint["error"])
    rows = [line.split(" | ") for line in (tmp_path / "tasks-m.md").read_text().splitlines() if "64x64" in line]
    assert [row[0] for row in rows] == ["| text to image", "| ControlNet"]
    assert f"decoder_step {text['timings']['decoder_step'] / 2:.1f}" in rows[0][2]
    assert rows[1][2] == hint["error"]
    monkeypatch.setattr(workers, "alone", lambda *arguments: pytest.fail("measured again"))
    tasks.main()


def test_the_memory_of_a_gpu_is_told_of_each_process_alone() -> None:
    """It takes 3 and 2 more, and gives 1 back; others take 7 in between."""
    held = [10]
    share = subjects.DeviceShare(lambda: held[0])
    for others, own, together in ((0, 3, 3), (7, 2, 5), (0, -1, 4)):
        held[0] += others
        with share.working():
            held[0] += own
        assert share.bytes == together


def options(**changed: Any) -> argparse.Namespace:
    asked = {
        "sizes": [(64, 64), (128, 64)],
        "growth": [(128, 128)],
        "batches": [2],
        "pictures": [(64, 64)],
        "steps": [2],
        "backends": ["onnxruntime"],
        "peers": ["diffusers bf16"],
        "slow_peers": ["diffusers fp32"],
        "fp32_bundle": None,
        "checkpoint": None,
        "bundle": Path("bundle"),
        "repeat": 2,
        "patience": 100.0,
        "name": "test",
    }
    return argparse.Namespace(**asked | changed)


@pytest.fixture
def store(handmade_bundle: Bundle, tmp_path: Path) -> Callable[[], LatencyMeasurements]:
    """The measurements as a run finds them, each time that it is called."""
    return lambda: LatencyMeasurements(tmp_path / "test.json", machine.describe(handmade_bundle))


class Process(Turn):
    """A worker that is never started; `deadly` are subjects that are killed while they load, or in their first run."""

    log: list[str]
    deadly: Mapping[str, str]

    def __init__(self, name: str, spec: Mapping[str, Any], log: Path) -> None:
        self.log.append(f"start {name}")
        if self.deadly.get(name) == "loading":
            raise workers.WorkerError(f"{name} was killed")
        super().__init__(name, self.log, 1.0, 0 if self.deadly.get(name) == "running" else math.inf)
        self.spec = dict(spec)

    def close(self) -> None:
        self.log.append(f"close {self.name}")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    """No processes; their log, and which of them fail."""
    monkeypatch.setattr(Process, "log", [], raising=False)
    monkeypatch.setattr(Process, "deadly", {}, raising=False)
    monkeypatch.setattr(workers, "Worker", Process)
    return Process


def measured(case: Comparison, store: LatencyMeasurements, bundle: Bundle, asked: argparse.Namespace) -> None:
    latency.measure_comparison(store, asked, bundle, case, progress.Progress({}))


def test_every_case_has_processes_of_its_own(
    handmade_bundle: Bundle, store: Callable[[], LatencyMeasurements], processes: type[Process], tmp_path: Path
) -> None:
    """So that the peak of a size has nothing of a larger one before."""
    for side in (128, 64):
        case = Comparison("movq_decoder", Size(side, side), ("ours onnxruntime",), 1)
        measured(case, store(), handmade_bundle, options(reports=tmp_path))
    runs = ["ours onnxruntime"] * 2
    assert processes.log == [
        *("start ours onnxruntime", "ours onnxruntime 128x128", *runs, "close ours onnxruntime"),
        *("start ours onnxruntime", "ours onnxruntime 64x64", *runs, "close ours onnxruntime"),
    ]


def test_a_subject_that_fails_is_kept_and_not_tried_again(
    handmade_bundle: Bundle, store: Callable[[], LatencyMeasurements], processes: type[Process], tmp_path: Path
) -> None:
    case = Comparison("movq_decoder", Size(64, 64), ("ours onnxruntime", "diffusers bf16", "diffusers fp32"), 2)
    asked = options(reports=tmp_path)
    processes.deadly = {"diffusers bf16": "loading", "diffusers fp32": "running"}
    measured(case, store(), handmade_bundle, asked)
    kept = {result["subject"]: result for result in store().data["stages"]}
    assert kept["ours onnxruntime"]["seconds"] == [1.0, 1.0]
    assert kept["diffusers bf16"]["error"] == "diffusers bf16 was killed"
    assert kept["diffusers fp32"]["error"] == "diffusers fp32 was killed"
    assert all(result["commit"] and result["stage"] == "movq_decoder" for result in kept.values())

    processes.log.clear()
    measured(case, store(), handmade_bundle, asked)
    assert processes.log == []

    processes.deadly = {}
    again = store()
    again.data["stages"] = [result for result in again.data["stages"] if "error" not in result]
    measured(case, again, handmade_bundle, asked)
    assert [(result["subject"], "error" in result) for result in store().data["stages"]] == [
        (subject, False) for subject in case.subjects
    ]


def test_a_picture_that_fails_is_kept_and_not_tried_again(
    store: Callable[[], LatencyMeasurements], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(reports=tmp_path, bundle=tmp_path / "nothing")
    (spec, _) = comparisons.pictures(asked)
    latency.measure_picture(store(), asked, spec, progress.Progress({}))
    (kept,) = store().data["pictures"]
    assert kept["settings"] == spec
    assert kept["error"].startswith("The picture ended with 1: kandinsky22.errors.BundleError: ")
    monkeypatch.setattr(workers, "alone", lambda *_: pytest.fail("it was tried again"))
    latency.measure_picture(store(), asked, spec, progress.Progress({}))


def arguments(monkeypatch: pytest.MonkeyPatch, line: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["run.py", *shlex.split(line)])
    return run._options()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--peers 'diffusers bf17'", "invalid choice: 'diffusers bf17'"),
        ("--slow-peers 'diffusers bf17'", "invalid choice: 'diffusers bf17'"),
        ("--backends openwino", "invalid choice: 'openwino'"),
        ("--sizes 512 huge", "invalid sides value: 'huge'"),
        ("--repeat 0", "--repeat is 0; expected more than 0"),
        ("--patience nan", "--patience is nan; expected more than 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    with pytest.raises(SystemExit):
        arguments(monkeypatch, f"{tmp_path} --reports {tmp_path} {line}")
    assert sentence in capsys.readouterr().err


def test_sizes_need_not_be_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handmade_bundle: Bundle) -> None:
    line = (
        f"{tmp_path} --reports {tmp_path} --sizes 128 256x64 --growth 64x128 --pictures 256x64 --slow-peers --batches 2"
    )
    asked = arguments(monkeypatch, line)
    sizes = [case.size for case in comparisons.comparisons(asked, handmade_bundle) if case.component == "movq_decoder"]
    assert list(map(str, sizes)) == ["128x128", "256x64", "64x128", "64x128 x 2"]
    assert {(spec["width"], spec["height"]) for spec in comparisons.pictures(asked)} == {(256, 64)}
    asked.growth = [(100, 64)]
    with pytest.raises(ValueError, match="The size 100 cannot be timed"):
        list(comparisons.comparisons(asked, handmade_bundle))


def test_the_command_can_be_run_again(monkeypatch: pytest.MonkeyPatch, handmade_bundle: Bundle) -> None:
    words = ["/somewhere/benchmarks/run.py", "my bundle", "--peers", "diffusers fp32 compiled"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(machine.describe(handmade_bundle)["command"]) == ["python", "-m", "benchmarks.run", *words[1:]]


@pytest.mark.parametrize(
    ("changed", "gpu", "devices"),
    [
        ({}, False, ["cpu"]),
        ({"slow_peers": ["diffusers fp16 compiled"]}, False, ["cpu", "cuda"]),
        ({}, True, ["cpu", "cuda"]),
        ({"peers": ["diffusers fp16"], "slow_peers": []}, True, ["cuda"]),
    ],
)
def test_limits_are_measured_where_subjects_run(
    handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], gpu: bool, devices: list[str]
) -> None:
    found = Availability("onnxruntime", True, "", "1", "bundle" if gpu else "fp32", gpu=gpu)
    monkeypatch.setattr(onnxruntime.BACKEND, "availability", lambda bundle=None: found)
    assert comparisons.devices(options(**changed), handmade_bundle) == devices


def test_a_limit_that_fails_does_not_end_the_run(
    store: Callable[[], LatencyMeasurements], processes: type[Process], tmp_path: Path
) -> None:
    asked = options(reports=tmp_path)
    processes.deadly = {"copy": "running", "matmul fp16 on the GPU": "loading"}
    latency.measure_ceilings(store(), asked, ["cpu", "cuda"], "before", progress.Progress({}))
    found = store().data["ceilings"]["before"]
    assert [name for name, limit in found.items() if limit is None] == ["copy", "matmul fp16 on the GPU"]
    assert found["matmul bf16"] == found["copy on the GPU"] == 1.0
    made = data() | {"ceilings": {"before": found}}
    text = markdown.write(made, tmp_path / "test").read_text()
    assert "| copy | failed |" in text
    assert "| copy on the GPU | 1 GB/s |" in text


def test_seconds_are_estimated_from_arithmetic() -> None:
    """1 TFLOP a turn at 0.1 TFLOP/s is 10 s: one turn that does not count and five that do, or until patience ends."""
    assert progress.estimated(progress.Pending(1e12, turns=5), 1e11) == 60
    assert progress.estimated(progress.Pending(1e12, turns=5, patience=25), 1e11) == 40
    assert progress.estimated(progress.Pending(1e12, turns=5, patience=1), 1e11) == 20
    assert progress.estimated(progress.Pending(1e12), 1e11) == 10
    assert progress.estimated(progress.Pending(0, turns=5, patience=60), 1e11) < 1
    results = [{"flop": 1e12, "seconds": [seconds, 9.0, 0.1]} for seconds in (1.0, 2.0, 4.0)]
    assert progress.rate([*results, {"error": "It was killed", "flop": 1e12}]) == 5e11
    assert progress.rate([]) == progress.rate([{"flop": 0, "seconds": [1.0]}]) == progress.ASSUMED


def test_what_is_pending_is_estimated(
    handmade_bundle: Bundle, store: Callable[[], LatencyMeasurements], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case counts a turn of all its subjects; a picture its steps; what is measured nothing."""
    flop = {"text_encoder": 1, "prior_step": 10, "decoder_step": 100, "movq_decoder": 1000}
    monkeypatch.setattr(latency, "flop", lambda bundle, name, size: flop[name])
    case = Comparison("decoder_step", Size(64, 64), ("a", "b"), 3)
    spec = {"height": 64, "width": 64, "steps": 20, "prior_steps": 25, "pictures": 2}
    found = latency.pending(store(), handmade_bundle, [case], [spec], 60.0)
    assert list(found.values()) == [progress.Pending(200, 3, 60.0), progress.Pending(2 * (1 + 250 + 2000 + 1000))]
    full = store()
    full.data["pictures"] = [{"settings": spec}]
    full.add(case, [{"subject": "a"}, {"subject": "b", "error": "It was killed"}], 1)
    assert latency.pending(full, handmade_bundle, [case], [spec], 60.0) == {}


def test_the_bar_tells_the_minutes_that_are_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress({"one": progress.Pending(60e12), "other": progress.Pending(120e12)})
    bar.begin("one", 1e11)
    assert "about 30 min left" in capsys.readouterr().err
    now[0] += 300
    bar.tell("2.00 s a run")
    assert "about 25 min left, 2.00 s a run" in capsys.readouterr().err
    bar.done("one")
    bar.begin("other", 2e11)
    assert "other" in (told := capsys.readouterr().err)
    assert "about 10 min left" in told
    bar.close()


def test_the_arithmetic_is_that_of_a_run(handmade_bundle: Bundle) -> None:
    """The text encoder's run has a text for each branch, as that of diffusers."""
    assert timing.shapes(handmade_bundle, "text_encoder", Size(64, 64, batch=3)) == {"input_ids": (6, 8)}


def data() -> dict[str, Any]:
    def result(stage: str, subject: str, side: int, seconds: float, case: int, batch: int = 1) -> dict[str, Any]:
        return {
            "case": f"{stage} {case}",
            "stage": stage,
            "subject": subject,
            "precision": "bf16",
            "commit": "abc",
            "version": "1.0",
            "height": side,
            "width": side,
            "batch": batch,
            "guided": True,
            "flop": 2e12,
            "load_seconds": 3.0,
            "seconds": [seconds, 2 * seconds, 3 * seconds],
            "peak_host_memory": 3 << 30,
            "device_memory": 0,
        }

    stages = []
    for index, stage in enumerate(("text_encoder", "prior_step", "decoder_step", "movq_decoder")):
        stages += [result(stage, "ours openvino", 512, 1.0, index), result(stage, "diffusers bf16", 512, 2.0, index)]
    stages += [result("decoder_step", "ours openvino", side, side / 100, side) for side in (1024, 2048)]
    stages += [result("decoder_step", "ours openvino", 512, 2.0, 9, batch=2)]
    limits = {f"{what} {name}": 4.0 for what in ("matmul", "convolution") for name in ("bf16", "fp32")}
    timings = {"load": 9.0, "text_encoder": 1.0, "prior_step": 50.0, "decoder_step": 40.0, "movq_decoder": 2.0}
    picture = {"timings": {**timings, "total": 102.0}, "peak_host_memory": 5 << 30, "ended": 103.0}
    settings = {"width": 512, "height": 512, "steps": 20, "prior_steps": 25, "low_memory": True}
    files = {f"onnx/{stage}.onnx.data": 1 << 30 for stage in ("text_encoder", "prior_step", "decoder_step")}
    about = {
        "processor": "Test CPU",
        "instructions": ["avx512_bf16"],
        "memory": 24 << 30,
        "gpu": "",
        "system": "Linux",
        "date": "2026-01-01",
        "commit": "abc",
        "checkpoint": "random",
        "command": "python -m benchmarks.run",
        "bundle": {"precision": "fp16", "files": {**files, "onnx/movq_decoder.onnx.data": 1 << 28}},
    }
    return {
        "machine": about,
        "ceilings": {"before": {**limits, "copy": 20.0}},
        "stages": stages,
        "pictures": [
            {
                "settings": settings,
                "commit": "def",
                "pictures": [picture],
                "imported": 0.1,
                "opened": 0.2,
                "memory": [[0.1, 1 << 30]] * 2,
            }
        ],
    }


def test_the_report_is_made_of_the_measurements(tmp_path: Path) -> None:
    made = json.loads(json.dumps(data()))
    path = markdown.write(made, tmp_path / "test")
    text = path.read_text()
    ours = next(line for line in text.splitlines() if line.startswith("| decoder_step | 512x512 | ours openvino"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    # Median 2 s for 2 TFLOP is 1 TFLOP/s, a quarter of the limit of 4, and half of the peer's 4 s.
    assert "| date; commits | 2026-01-01; abc, def |" in text
    assert cells[3:] == ["3", "2", "3", "3", "2", "1.000", "25%", "3.00", "3.0", "0.50"]
    assert "| 512x512 | ours, 25 prior + 20 DPM-Solver++ steps, low memory | measured | 102.0 |" in text
    # 4 s of the text encoder, 25 x 4 of the prior, 50 x 4 of the UNet, 4 of MoVQ.
    assert "| 512x512 | diffusers bf16, 25 prior + 50 DDPM steps | from the medians above | 308.0 |" in text
    # Ours take half of it; 20 steps of the UNet are 60 s less.
    assert "| 512x512 | ours openvino, 25 prior + 50 DDPM steps | from the medians above | 154.0 |" in text
    assert "| 512x512 | ours openvino, 25 prior + 20 DPM-Solver++ steps | from the medians above | 94.0 |" in text
    assert "1024x1024 | ours openvino, 25" not in text
    assert "GPU GiB" not in text
    assert "Failed" not in text
    for name in ("stages", "roofline", "growth", "memory"):
        assert f"![{name}](test-{name}.png)" in text
        assert (tmp_path / f"test-{name}.png").stat().st_size > 5000


def test_growth_goes_on_with_the_sizes_of_pictures_alone(tmp_path: Path) -> None:
    """A UNet's step is a twentieth of 40 s of 20 steps; sizes that stages were measured at are not told twice."""
    made = data()
    (painted,) = made["pictures"]
    large = {**painted, "settings": painted["settings"] | {"width": 1000, "height": 1000}}
    made["pictures"] = [painted, large]
    growth = markdown.write(made, tmp_path / "test").read_text().split("## Growth")[1].split("##")[0]
    assert "| decoder_step | 1000x1000, in a picture | 2 | 2 |" in growth
    assert "| movq_decoder | 1000x1000, in a picture | 2 | 2 |" in growth
    assert growth.count("in a picture") == 2


def test_a_picture_that_would_not_fit_is_told_with_its_reason(tmp_path: Path) -> None:
    made = data()
    (painted,) = made["pictures"]
    refused = {**painted, "settings": painted["settings"] | {"low_memory": False}, "refused": "It would take 24 GiB."}
    made["pictures"] = [refused, painted]
    text = markdown.write(made, tmp_path / "test").read_text()
    assert "| 512x512 | ours, all components held | refused |  | It would take 24 GiB. |" in text
    assert "steps, low memory | measured | 102.0 |" in text
    assert (tmp_path / "test-memory.png").exists()


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


REPORTS = Path(__file__).parents[2] / "benchmarks" / "reports"


def tables(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("name", ["xeon-2-cores", "zen4-2-cores"])
def test_published_latencies_are_read_and_told_as_they_were_published(name: str, tmp_path: Path) -> None:
    """They were measured with bundles of format 1, whose components had no roles."""
    (tmp_path / f"{name}.json").write_bytes((REPORTS / f"{name}.json").read_bytes())
    about = json.loads((REPORTS / f"{name}.json").read_text())["machine"] | {"commit": "abc", "date": "2026-12-24"}
    found = LatencyMeasurements(tmp_path / f"{name}.json", about)
    text = markdown.write(found.data, tmp_path / name).read_text()
    assert tables(text) == tables((REPORTS / f"{name}.md").read_text())
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in REPORTS.glob(f"{name}-*.png")}


def test_published_tasks_are_read_and_told_as_they_were_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handmade_bundle: Bundle
) -> None:
    (tmp_path / "tasks-xeon-2-cores.json").write_bytes((REPORTS / "tasks-xeon-2-cores.json").read_bytes())
    published = json.loads((REPORTS / "tasks-xeon-2-cores.json").read_text())
    monkeypatch.setattr(tasks, "describe", lambda bundle: published["machine"])
    monkeypatch.setattr(workers, "alone", lambda *arguments: pytest.fail("measured again"))
    words = [str(handmade_bundle.path), "--name", "xeon-2-cores", "--only", "inpainting", "--reports", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *words])
    tasks.main()
    text = (tmp_path / "tasks-xeon-2-cores.md").read_text()
    assert text == (REPORTS / "tasks-xeon-2-cores.md").read_text()


def test_a_damaged_report_of_tasks_is_read_and_told_or_refused_in_one_sentence(tmp_path: Path) -> None:
    good = json.loads((REPORTS / "tasks-xeon-2-cores.json").read_text())
    spec = good["results"][0]["spec"]
    good["results"][1:] = [{"commit": "abc", "spec": spec, "error": "It was killed"}]
    file, read, refused = tmp_path / "tasks.json", [], []
    for wrong in (good, *damaged(good)):
        file.write_text(json.dumps(wrong))
        try:
            found = machine.MachineMeasurements(file, good["machine"], {"results": []}, tasks.TasksRecord)
        except InputError as error:
            refused.append(str(error))
            continue
        read.append(wrong)
        tasks.markdown(found.data)
    assert good in read
    assert any("damaged: results[0].timings.total is" in why for why in refused)
    assert len(refused) > 300


def test_measurements_of_another_machine_or_bundle_are_refused_in_one_sentence(
    store: Callable[[], LatencyMeasurements], tmp_path: Path
) -> None:
    first = store()
    first.save()
    good = first.path.read_text() if first.path else ""
    for place, words in (("processor", "of another processor"), ("bundle", "of another bundle")):
        data = json.loads(good)
        data["machine"][place] = "Old CPU" if place == "processor" else data["machine"]["bundle"] | {"precision": "x"}
        (tmp_path / "test.json").write_text(json.dumps(data))
        with pytest.raises(InputError, match=rf"test.json has measurements {words} \(.*, not .*\); name another file"):
            store()


def whole_report() -> dict[str, Any]:
    """A report of few measurements with everything that one can have."""
    made = data()
    made["machine"]["bundle"] |= {"name": "test", "source": {}, "roles": {"decoder_step": "decoder"}}
    measured = next(each for each in made["stages"] if each["stage"] == "decoder_step") | {"settings": {}}
    kept = ("case", "settings", "stage", "subject", "height", "width", "batch", "guided", "commit", "flop")
    made["stages"] = [measured, {name: measured[name] for name in kept} | {"error": "It was killed"}]
    (entry,) = made["pictures"]
    how = {"bundle": "b", "backend": "openvino", "scheduler": "dpm++", "pictures": 1}
    size = {"width": 512, "height": 512, "batch": 1, "guided": True}
    entry["settings"] |= how
    entry["pictures"][0] |= {"begun": 0.2, "steps": 20, "prior_steps": 25, "device_memory": 0, **size}
    made["pictures"] = [entry, {"settings": entry["settings"], "commit": "abc", "refused": "It would not fit."}]
    return made


def test_a_damaged_report_is_read_and_told_or_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read serves all that is computed with it; drawing and writing are left out, which take long."""
    monkeypatch.setattr(markdown, "write_file", lambda path, text: None)
    axes = MagicMock()
    axes.__iter__.side_effect = lambda: iter((axes, axes))
    monkeypatch.setattr(plots, "pyplot", MagicMock(subplots=lambda *_, **__: (MagicMock(), axes)))
    file, good = tmp_path / "test.json", whole_report()
    read, refused = [], []
    for wrong in (good, *damaged(good)):
        file.write_text(json.dumps(wrong))
        try:
            found = LatencyMeasurements(file, good["machine"])
        except InputError as error:
            refused.append(str(error))
            continue
        read.append(wrong)
        markdown.write(found.data, tmp_path / "test")
        progress.rate(found.data["stages"])
    assert good in read
    assert all(why.startswith(str(file)) and why.endswith("; name another file, or remove it.") for why in refused)
    assert any("damaged: stages[0].seconds[0] is" in why for why in refused)
    assert len(refused) > 700


def test_the_best_peer_is_that_of_any_case(tmp_path: Path) -> None:
    """A slow peer in a case of its own takes 1.6 s where the one in turns with ours takes 4 s: ours with 2 s, 1.25."""
    made = data()
    like = next(each for each in made["stages"] if each["subject"] == "diffusers bf16" and "decoder" in each["stage"])
    other = {**like, "subject": "diffusers bf16 compiled", "case": "another", "seconds": [1.6]}
    elsewhere = {**other, "height": 1024, "width": 1024, "seconds": [0.1]}
    batch = {**other, "batch": 2, "seconds": [0.1]}
    made["stages"] += [other, elsewhere, batch]
    text = markdown.write(made, tmp_path / "test").read_text()
    assert row(text, "| decoder_step | 512x512 | ours openvino")[-1] == "1.25"
    assert "the lowest median of all peers at that stage and size" in text


def test_the_memory_of_a_gpu_has_a_column(tmp_path: Path) -> None:
    made = data()
    made["stages"][0] |= {"device_memory": 5 << 30, "device": "cuda", "precision": "fp16"}
    made["ceilings"]["before"] |= {"matmul fp16 on the GPU": 16.0, "copy on the GPU": 3000.0}
    text = markdown.write(made, tmp_path / "test").read_text()
    header = row(text, "| stage | size | subject")
    ours = dict(zip(header, row(text, "| text_encoder | 512x512 | ours openvino"), strict=True))
    peer = dict(zip(header, row(text, "| text_encoder | 512x512 | diffusers bf16"), strict=True))
    # 1 TFLOP/s of the GPU's 16, and of the processor's 4.
    assert (ours["GPU GiB"], ours["peak GiB"], ours["of the limit"]) == ("5.00", "3.00", "6%")
    assert (peer["GPU GiB"], peer["of the limit"]) == ("", "12%")
    assert "| copy on the GPU | 3e+03 GB/s |" in text
    assert row(text, "| stage | size | s |")[-1] == "GPU GiB"


def test_growth_is_of_our_first_backend(tmp_path: Path) -> None:
    """Also where that is ONNX Runtime, which on a GPU is what runs."""
    made = data()
    for result in made["stages"]:
        result["subject"] = result["subject"].replace("openvino", "onnxruntime")
    second = [
        each | {"subject": "ours openvino", "seconds": [4321.0]} for each in made["stages"] if "ours" in each["subject"]
    ]
    made["stages"] += second
    growth = markdown.write(made, tmp_path / "test").read_text().split("## Growth")[1].split("##")[0]
    assert row(growth, "| decoder_step | 512x512 |")[2] == "2"
    assert "| decoder_step | 2048x2048 |" in growth
    assert "4.32e+03" not in growth


def test_failures_are_told_beside_the_rest(tmp_path: Path) -> None:
    made = data()
    failed = {key: made["stages"][1][key] for key in ("case", "stage", "subject", "height", "width", "batch", "commit")}
    made["stages"][1] = {**failed, "error": "diffusers bf16 was killed"}
    (painted,) = made["pictures"]
    broken = {
        "settings": painted["settings"] | {"low_memory": False},
        "commit": "def",
        "error": "The picture was killed",
    }
    made["pictures"] = [broken, painted]
    text = markdown.write(made, tmp_path / "test").read_text()
    assert "Failed:\n\n- text_encoder, 512x512, diffusers bf16: diffusers bf16 was killed.\n" in text
    assert "| 512x512 | ours, all components held | failed |  | The picture was killed. |" in text
    assert "steps, low memory | measured | 102.0 |" in text
    assert row(text, "| text_encoder | 512x512 | ours openvino")[-1] == ""
