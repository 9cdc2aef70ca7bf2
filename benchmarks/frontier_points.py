"""The rules of the frontier: how sure a score is, which settings nobody beats, and which one each preset should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.frontier_seconds import parts
from benchmarks.frontier_settings import DIFFUSERS, SETTINGS, Setting
from benchmarks.frontier_store import find

WITHIN = {"fast": 1.0, "fastest": 5.0}
"""Points of score that a preset may give up against the reference.

One point is what 300 pictures can tell apart at best, so `fast` gives up nothing that was seen. Five are beyond chance
(15 of 300 pictures), and one picture in twenty more to throw away is what a draft may cost.
"""
_Z = 1.959964
"""Of the normal distribution, 95 % lie within so many deviations."""


@dataclass(frozen=True)
class Point:
    """A setting, the seconds of a picture at the published size, and how many of some pictures are right."""

    setting: Setting
    seconds: float
    right: int
    pictures: int

    @property
    def score(self) -> float:
        """Percent that are right."""
        return 100 * self.right / self.pictures

    @property
    def interval(self) -> tuple[float, float]:
        """The score's 95 % interval, in percent: see `wilson`."""
        low, high = wilson(self.right, self.pictures)
        return 100 * low, 100 * high


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927), which also holds where nearly all are right."""
    share, z2 = right / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    reach = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2)) / (1 + z2 / of)
    return min(middle - reach, share), max(middle + reach, share)  # at none and all, but for rounding


def points(data: Mapping[str, Any], settings: Sequence[Setting] = SETTINGS) -> list[Point]:
    """The settings that have both seconds and a score, in their order."""
    found = []
    for setting in settings:
        score = find(data, setting)
        seconds = score and parts(data, score)
        if score and seconds:
            right = score["pictures"] - len(set(score["wrong"]))
            found.append(Point(setting, sum(seconds.values()), right, score["pictures"]))
    return found


def frontier(of: Sequence[Point]) -> list[Point]:
    """The points that no other beats, from the fastest on: none is as fast and better, or faster and as good."""

    def beaten(point: Point) -> bool:
        return any(
            other.seconds <= point.seconds
            and other.score >= point.score
            and (other.seconds, other.score) != (point.seconds, point.score)
            for other in of
        )

    return sorted((point for point in of if not beaten(point)), key=lambda point: point.seconds)


def recommended(of: Sequence[Point], reference: Point, within: float) -> list[Point]:
    """The parameters for a preset: the fastest whose score is at most `within` points below the reference's.

    A preset does not know in which precision it will run. So parameters must have been judged in every precision that
    there is, their score is the lowest, and their seconds are the most. The points of the parameters that are chosen,
    one a precision; none where nothing is good enough.
    """
    ours = [point for point in of if point.setting.subject != DIFFUSERS]
    precisions = {point.setting.subject for point in ours}
    alike = [[each for each in ours if each.setting.given == point.setting.given] for point in ours]
    whole = [group for group in alike if {each.setting.subject for each in group} == precisions]
    # A hundredth of a point is no difference: it is rounding.
    good = [group for group in whole if min(each.score for each in group) >= reference.score - within - 1e-6]
    return min(good, key=lambda group: max(each.seconds for each in group), default=[])
