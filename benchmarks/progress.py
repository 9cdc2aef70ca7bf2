"""How long a report will still take: what is pending in FLOP, at the rate of what is done."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from kandinsky22.measure import timing

ASSUMED = 2e11
"""FLOP a second before anything is measured: those of two cores without bf16."""


@dataclass(frozen=True)
class Pending:
    """A measurement: FLOP of one turn of all its subjects, turns that count, and seconds after which they end."""

    flop: float
    turns: int = 0
    patience: float = math.inf


def estimated(pending: Pending, rate: float) -> float:
    """Seconds of a measurement at `rate` FLOP a second: the turn that does not count, and those that do."""
    turn = max(pending.flop / rate, 1e-3)  # what has no arithmetic takes a moment all the same
    return turn * (1 + math.ceil(min(pending.turns, pending.patience / turn)))


def rate(results: Iterable[Mapping[str, Any]]) -> float:
    """FLOP a second, the median of all results that did not fail and have some; `ASSUMED` without any."""
    counted = [result for result in results if "error" not in result and result["flop"] > 0]
    rates = [result["flop"] / statistics.median(result["seconds"]) for result in counted]
    return statistics.median(rates) if rates else ASSUMED


class Progress:
    """A bar in seconds: those that have passed, of those that it will take by the estimate."""

    def __init__(self, pending: Mapping[Hashable, Pending]) -> None:
        self._pending = dict(pending)
        self._started, self._total = time.monotonic(), 1.0
        self._bar = tqdm(total=self._total, bar_format="{desc} |{bar}| {elapsed}{postfix}", dynamic_ncols=True)

    def begin(self, what: str, at: float) -> None:
        """Tell what is measured next, and estimate the rest anew, `at` FLOP a second."""
        self._bar.set_description_str(what, refresh=False)
        self._total = self._bar.total = self._passed() + sum(estimated(each, at) for each in self._pending.values())
        self.tell()

    def done(self, key: Hashable) -> None:
        """Take something from what is pending."""
        self._pending.pop(key, None)

    def tell(self, note: str = "") -> None:
        """Show how far it is, with a note."""
        passed = min(self._passed(), self._total)
        self._bar.n = passed
        self._bar.set_postfix_str(", ".join(filter(None, (timing.left(self._total - passed), note))))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _passed(self) -> float:
        return time.monotonic() - self._started
