"""The report: arithmetic against closed forms, subjects that take turns, and a report of made-up measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import arithmetic
import report
import workers
from kandinsky22.bench import Size


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
    """A worker that notes when it runs."""

    def __init__(self, name: str, log: list[str], seconds: float) -> None:
        self.name, self.spec, self.about = name, {"stage": "decoder_step"}, {"version": "1", "load_seconds": 2.0}
        self._log, self._seconds = log, seconds

    def prepare(self, size: Size) -> None:
        self._log.append(f"{self.name} {size}")

    def run(self) -> dict[str, Any]:
        self._log.append(self.name)
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


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"x ended with 1: KeyError: 'nothing' \(all of it in"):
        workers.Worker("x", {"kind": "nothing"}, tmp_path / "log")


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
    machine = {
        "processor": "Test CPU",
        "instructions": ["avx512_bf16"],
        "memory": 24 << 30,
        "gpu": "",
        "system": "Linux",
        "date": "2026-01-01",
        "commit": "abc",
        "checkpoint": "random",
        "command": "python benchmarks/run.py",
        "bundle": {"precision": "fp16", "files": {**files, "onnx/movq_decoder.onnx.data": 1 << 28}},
    }
    return {
        "machine": machine,
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
    path = report.write(made, tmp_path / "test")
    text = path.read_text()
    ours = next(line for line in text.splitlines() if line.startswith("| decoder_step | 512x512 | ours openvino"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    # Median 2 s for 2 TFLOP is 1 TFLOP/s, a quarter of the limit of 4, and half of the peer's 4 s.
    assert "| date; commits | 2026-01-01; abc, def |" in text
    assert cells[3:] == ["3", "2", "3", "3", "2", "1.000", "25%", "3.00", "3.0", "0.50"]
    assert "| 512x512 | ours, 25 prior + 20 DPM-Solver++ steps, low memory | measured | 102.0 |" in text
    # 4 s of the text encoder, 25 x 4 of the prior, 50 x 4 of the UNet, 4 of MoVQ.
    assert "| 512x512 | diffusers bf16, 25 prior + 50 DDPM steps | from the medians above | 308.0 |" in text
    for name in ("stages", "roofline", "growth", "memory"):
        assert f"![{name}](test-{name}.png)" in text
        assert (tmp_path / f"test-{name}.png").stat().st_size > 5000


def test_growth_goes_on_with_the_sizes_of_pictures_alone(tmp_path: Path) -> None:
    """A UNet's step is a twentieth of 40 s of 20 steps; sizes that stages were measured at are not told twice."""
    made = data()
    (painted,) = made["pictures"]
    large = {**painted, "settings": painted["settings"] | {"width": 1000, "height": 1000}}
    made["pictures"] = [painted, large]
    growth = report.write(made, tmp_path / "test").read_text().split("## Growth")[1].split("##")[0]
    assert "| decoder_step | 1000x1000, in a picture | 2 | 2 |" in growth
    assert "| movq_decoder | 1000x1000, in a picture | 2 | 2 |" in growth
    assert growth.count("in a picture") == 2


def test_a_picture_that_would_not_fit_is_told_with_its_reason(tmp_path: Path) -> None:
    made = data()
    (painted,) = made["pictures"]
    refused = {**painted, "settings": painted["settings"] | {"low_memory": False}, "refused": "It would take 24 GiB."}
    made["pictures"] = [refused, painted]
    text = report.write(made, tmp_path / "test").read_text()
    assert "| 512x512 | ours, all components held | refused |  | It would take 24 GiB. |" in text
    assert "steps, low memory | measured | 102.0 |" in text
    assert (tmp_path / "test-memory.png").exists()
