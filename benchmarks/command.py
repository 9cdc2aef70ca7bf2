"""What the programs of this package share: where reports go, and mistakes in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kandinsky22.errors import KandinskyError

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""
REPORTS = ROOT / "benchmarks" / "reports"


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """End the program with the sentence of a mistake that the user can mend, instead of a traceback."""
    try:
        yield
    except KandinskyError as error:
        raise SystemExit(f"error: {error}") from error
