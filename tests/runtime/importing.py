"""How long imports take: in processor time, each in a fresh interpreter."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path


def seconds(interpreter: str | Path, line: str, environment: Mapping[str, str]) -> float:
    """Of one line of code."""
    code = f"import time; start = time.process_time(); {line}; print(time.process_time() - start)"
    return float(subprocess.run([interpreter, "-c", code], capture_output=True, check=True, env=environment).stdout)


def pipelines_beside_numpys(interpreter: str | Path, environment: Mapping[str, str]) -> float:
    """The pipeline's import by NumPy's, which is most of it: the median of five turns.

    In turns, for seconds would be the machine's, and its speed changes within seconds.
    """
    lines = ("from kandinsky22 import Pipeline", "import numpy")
    turns = [[seconds(interpreter, line, environment) for line in lines] for _ in range(6)]
    turns = turns[1:]  # the first writes Python's bytecode
    print(", ".join(f"{ours:.3f} s ({ours / numpys:.1f} of NumPy)" for ours, numpys in turns))
    return statistics.median(ours / numpys for ours, numpys in turns)
