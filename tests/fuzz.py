"""Every test of random input, again and again with other seeds, until the minutes are over: `make fuzz MINUTES=30`."""

from __future__ import annotations

import os
import resource
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = 300
"""Examples of a test in one round: a minute or so of each file."""
MOST_BYTES = 6 << 30
"""Memory of a round: what takes more fails. Most of it is torch's and transformers' own."""
HANGS_SECONDS = 900
"""After which a test that goes on says where it is, and fails."""


def main(minutes: float) -> int:
    """Run; the exit code, 1 at the first failure."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_fuzz_*.py"))
    ends, rounds = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < ends:
        seed = secrets.randbelow(1 << 32)
        for file in files:
            if time.monotonic() >= ends:
                break
            if not passes(file, seed):
                return 1
        rounds += 1
    print(f"{rounds} rounds of {len(files)} files, {EXAMPLES} examples a test, in {minutes:g} minutes: nothing found.")
    return 0


def passes(file: str, seed: int) -> bool:
    """Whether the tests of a file hold; how to see a failure again is printed."""
    variables = {"KANDINSKY22_FUZZ_EXAMPLES": str(EXAMPLES), "OMP_NUM_THREADS": "1"}
    options = ("-q", "-x", f"--hypothesis-seed={seed}", "-o", f"faulthandler_timeout={HANGS_SECONDS}")
    words = ["-m", "pytest", file, *options, "-o", "faulthandler_exit_on_timeout=true"]
    code = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **variables}, preexec_fn=bound_memory
    ).returncode
    if code == 0:
        return True
    told = [*(f"{name}={value}" for name, value in variables.items()), *map(shlex.quote, [sys.executable, *words])]
    print(f"\nFailed. To see it again:\n  {' '.join(told)}", flush=True)
    return False


def bound_memory() -> None:
    """Refuse the process more memory than MOST_BYTES."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
