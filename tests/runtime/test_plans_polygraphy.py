"""The commands of docs/tensorrt.md that look into a bundle by Polygraphy, as far as they need no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install kandinsky22[inspect]")
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no graph is read by it")
DOCUMENT = Path(__file__).parents[2] / "docs" / "tensorrt.md"


@pytest.mark.slow
def test_the_documented_commands_work_on_a_bundle(shapes_bundle: Path, tmp_path: Path) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("## Looking inside")[1].split("On any machine:")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    script = block[1].replace("BUNDLE=engines/shapes", f"BUNDLE={shapes_bundle}")
    assert script.count("polygraphy ") == 4
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "{latents [dtype=float32, shape=('B', 4, 'h', 'w')]}" in done.stdout
    assert "PASSED | Output: 'image' | Difference is within tolerance" in done.stdout
    assert "Graph is fully supported by TensorRT" in done.stdout
