"""The published sizes with random weights: the memory that the issue allows, in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = {"text_encoder": 0.69e9, "prior_step": 1.026e9, "decoder_step": 1.253e9, "movq_decoder": 0.040e9}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_published_sizes_are_exported_within_nine_gigabytes(tmp_path: Path, precision: str) -> None:
    arguments = ["--architecture", "kandinsky-2.2", "--random-weights", "0", "--precision", precision, "--json"]
    process = subprocess.run(
        [sys.executable, "-m", "kandinsky22_export.cli", *arguments, "-o", str(tmp_path / "full")],
        env={"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'export'}", "HOME": str(tmp_path)},
        check=True,
        stdout=subprocess.PIPE,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert peak < 9, f"{peak:.1f} GiB"
    components = json.loads(process.stdout)["manifest"]["components"]
    assert {name: component["parameters"] for name, component in components.items()} == pytest.approx(COUNTS, rel=0.01)
