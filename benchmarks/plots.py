"""The plots of the latency report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.results import (
    GIB,
    GROWING,
    Result,
    all_pixels,
    ceiling_name,
    composed,
    device_of,
    grown,
    limit,
    median,
    painted,
    size_of,
    speed,
)
from kandinsky22.measure.suite import PICTURE_ROLES

INTENSITIES = [10**exponent for exponent in (0, 1, 2, 3, 4, 5)]


def draw(results: Sequence[Result], data: Mapping[str, Any], path: Path) -> dict[str, Path]:
    """Draw what there is something of, into `path`-*.png; the files by the plots' names."""
    plots = {
        "stages": _plot_components(results, path),
        "roofline": _plot_roofline(results, data, path),
        "growth": _plot_growth(results, path),
        "memory": _plot_memory(data, path),
    }
    return {name: file for name, file in plots.items() if file is not None}


def _plot_components(results: Sequence[Result], path: Path) -> Path | None:
    """Whole pictures as stacked components: ours with 20 steps and with 50, peers with 50."""
    pictures = composed(results)
    if not pictures:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(pictures) + 1.5), layout="constrained")
    names = [f"{picture.subject}, {picture.steps} steps, {picture.size}" for picture in pictures]
    left = [0.0] * len(pictures)
    for role in PICTURE_ROLES:
        widths = [picture.seconds[role] for picture in pictures]
        label = next(result["stage"] for result in results if result["role"] == role)
        axes.barh(names, widths, left=left, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds a picture")
    axes.legend()
    return _save(figure, path, "stages")


def _plot_roofline(results: Sequence[Result], data: Mapping[str, Any], path: Path) -> Path | None:
    """Arithmetic a second against arithmetic a byte of weights, the least that a run must read."""
    if not data["ceilings"] or not results:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    limits = {(device_of(result), result["precision"]): result["ceiling"] for result in results}
    for (device, precision), best in sorted(limits.items()):
        copy = limit(data, [ceiling_name("copy", "", device)])
        name = ceiling_name("limit,", precision, device)
        axes.plot(INTENSITIES, [min(best, each * copy / 1e3) for each in INTENSITIES], label=name)
    weights = data["machine"]["bundle"]["files"]
    for subject in dict.fromkeys(result["subject"] for result in results):
        mine = [result for result in results if result["subject"] == subject]
        points = [
            (result["flop"] / size, speed(result))
            for result in mine
            if (size := weights.get(f"onnx/{result['stage']}.onnx.data"))
        ]
        axes.scatter([x for x, _ in points], [y for _, y in points], label=subject)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of weights", ylabel="TFLOP/s")
    axes.legend()
    return _save(figure, path, "roofline")


def _plot_growth(results: Sequence[Result], path: Path) -> Path | None:
    """Seconds and memory against pixels; None where nothing was measured at two sizes."""
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    drawn = False
    for role in GROWING:
        for batched in (False, True):
            points = [result for result in grown(results, role) if (result["batch"] > 1) == batched]
            if len(points) < 2:
                continue
            megapixels = [all_pixels(result) / 1e6 for result in points]
            alone = {key: points[0][key] for key in ("width", "height")}
            name = points[0]["stage"] + (f", batches of {size_of(alone)}" if batched else "")
            time.plot(megapixels, [median(result) for result in points], marker="o", label=name)
            memory.plot(megapixels, [result["peak_host_memory"] / GIB for result in points], marker="o", label=name)
            drawn = True
    if not drawn:
        pyplot.close(figure)
        return None
    time.set(xscale="log", yscale="log", xlabel="megapixels", ylabel="seconds")
    memory.set(xscale="log", xlabel="megapixels", ylabel="peak GiB")
    time.legend()
    return _save(figure, path, "growth")


def _plot_memory(data: Mapping[str, Any], path: Path) -> Path | None:
    """Memory over time. A picture that was ready before the first sample has no line."""
    entries = [entry for entry in painted(data) if entry["memory"]]
    if not entries:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for entry in entries:
        settings = entry["settings"]
        seconds = [at for at, _ in entry["memory"]]
        name = size_of(settings) + (", low memory" if settings["low_memory"] else "")
        axes.plot(seconds, [resident / GIB for _, resident in entry["memory"]], label=name)
    axes.set(xlabel="seconds since the start of Python", ylabel="resident GiB")
    axes.legend()
    return _save(figure, path, "memory")


def _save(figure: Any, path: Path, name: str) -> Path:
    file = path.with_name(f"{path.name}-{name}.png")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
