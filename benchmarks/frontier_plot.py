"""The plot of the frontier: scores against seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.frontier_points import Point
from benchmarks.frontier_settings import DIFFUSERS, FLOAT, INT8, REFERENCE, SETTINGS, presets_of

COLOURS = {DIFFUSERS: "tab:grey", FLOAT: "tab:blue", INT8: "tab:orange"}
NEAR = 1.06
"""Seconds are near where they are not so many times as long."""
LEAST_SHOWN = 85
"""Percent: what is far below would press the others together at the top; the table has its numbers."""


def plot(points: Sequence[Point], best: Sequence[Point], path: Path) -> None:
    """Scores against seconds, with the frontier as a line; beside it the names of the points that have a number."""
    figure, (axis, names) = pyplot.subplots(
        1, 2, figsize=(14, 6.5), width_ratios=(2.4, 1), layout="constrained", squeeze=True
    )
    for subject, colour in COLOURS.items():
        own = [point for point in points if point.setting.subject == subject]
        if own:
            scores, lows, highs = zip(*((point.score, *point.interval) for point in own), strict=True)
            reach = [
                [a - b for a, b in zip(scores, lows, strict=True)],
                [b - a for a, b in zip(scores, highs, strict=True)],
            ]
            seconds = [point.seconds for point in own]
            axis.errorbar(
                seconds, scores, yerr=reach, fmt="o", color=colour, label=subject, elinewidth=0.5, markersize=5
            )
    line = [point.seconds for point in best], [point.score for point in best]
    axis.step(*line, where="post", color="black", linewidth=1, label="frontier")
    numbered = [point for point in points if point in best or presets_of(point.setting) or point.setting == REFERENCE]
    _number(axis, numbered)
    lowest = min((point.score for point in points if point.score >= LEAST_SHOWN), default=LEAST_SHOWN)
    axis.set(xscale="log", xlabel="seconds a picture, composed", ylim=(lowest - 2, 101.5))
    axis.set_ylabel("everything right, %, with its 95 % interval")
    axis.set_xticks(_ticks([point.seconds for point in points]))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    names.axis("off")
    names.text(0, 1, "\n".join(map(_line, numbered)), va="top", fontsize=9, linespacing=1.6)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _number(axis: Axes, points: Sequence[Point]) -> None:
    """Write the number of each point over it, higher where the one before is near."""
    before, height = 0.0, 0
    for point in sorted(points, key=lambda each: each.seconds):
        height = (height + 1) % 4 if before and point.seconds < before * NEAR else 0
        before = point.seconds
        place = (0, 7 + 11 * height)
        axis.annotate(
            " ".join([_numbers(point), *presets_of(point.setting)]),
            (point.seconds, point.score),
            place,
            textcoords="offset points",
            ha="center",
        )


def _numbers(point: Point) -> str:
    return str(SETTINGS.index(point.setting) + 1)


def _line(point: Point) -> str:
    """A numbered point in words."""
    presets = ", ".join(presets_of(point.setting))
    return f"{_numbers(point)}  {point.setting.name}" + (f"  [{presets}]" if presets else "")


def _ticks(seconds: Sequence[float]) -> list[float]:
    """Round numbers of seconds around some."""
    least, most = min(seconds) / 1.3, max(seconds) * 1.3
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [tick for power in powers for digit in (1, 2, 3, 5, 7) if least <= (tick := digit * 10.0**power) <= most]
