"""The published sizes with random weights: export, then a picture, each within the memory that the issue allows."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = {
    "text_encoder": 0.69e9,
    "prior_step": 1.026e9,
    "decoder_step": 1.283e9,
    "decoder_forecast": 0,
    "movq_encoder": 0.0274e9,
    "movq_decoder": 0.0431e9,
}
LARGEST = 9.0  # GiB


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_published_sizes_are_exported_and_run_within_nine_gigabytes(tmp_path: Path, precision: str) -> None:
    bundle, picture = tmp_path / "full", tmp_path / "picture.png"
    sizes = ["--architecture", "kandinsky-2.2", "--random-weights", "0", "--precision", precision]
    components = json.loads(_run("kandinsky22_export.cli", *sizes, "--json", "-o", bundle))["manifest"]["components"]
    assert {name: component["parameters"] for name, component in components.items()} == pytest.approx(COUNTS, rel=0.01)
    quick = ["--size", "512x512", "--steps", "2", "--prior-steps", "2", "--seed", "0"]
    _run("kandinsky22", "generate", bundle, "a fox", *quick, "--backend", "openvino", "--low-memory", "-o", picture)
    assert picture.stat().st_size > 1000


TASKS = {
    "image_encoder": 1.84e9,
    "hint_encoder": 0.36e6,
    "decoder_step_controlnet": 1.283e9,
    "decoder_step_inpaint": 1.283e9,
    "movq_encoder": 0.0274e9,
}


@pytest.mark.slow
@pytest.mark.parametrize("component", TASKS)
def test_the_components_of_the_other_tasks_are_exported_within_nine_gigabytes(tmp_path: Path, component: str) -> None:
    arguments = ["--architecture", "kandinsky-2.2-all", "--random-weights", "0", "--precision", "fp16", "--json"]
    out = _run("kandinsky22_export.cli", *arguments, "--components", component, "-o", tmp_path / "bundle")
    components = json.loads(out)["manifest"]["components"]
    assert {name: each["parameters"] for name, each in components.items()} == {
        component: pytest.approx(TASKS[component], rel=0.01)
    }


def _run(module: str, *arguments: object) -> str:
    """Run a module in a process of its own; its stdout. No process of the session so far may have taken more memory."""
    process = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'export'}", "HOME": str(Path.home())},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert peak < LARGEST, f"{module}: {peak:.1f} GiB"
    return process.stdout
