"""How many examples a test of random input takes."""

from __future__ import annotations

import os


def examples(fast: int) -> int:
    """`fast` in the fast suite; KANDINSKY22_FUZZ_EXAMPLES says how many where somebody looks for longer."""
    return int(os.environ.get("KANDINSKY22_FUZZ_EXAMPLES", fast))
