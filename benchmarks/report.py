"""Measurements as a Markdown report with plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from kandinsky22 import bench

Result = Mapping[str, Any]
PRIOR_STEPS = 25
OUR_STEPS, THEIR_STEPS = 20, 50
GIB, MIB = 1 << 30, 1 << 20
SHARES = {"text_encoder": 1, "prior_step": PRIOR_STEPS, "movq_decoder": 1}


def write(data: Mapping[str, Any], path: Path) -> Path:
    """Write `path`.md and its plots `path`-*.png; the path of the report."""
    stages = [_with_ceiling(result, data) for result in data["stages"]]
    parts = [
        f"# Latency and memory: {data['machine']['processor']}",
        _about(data),
        "## The machine's own limit\n\n" + _ceilings(data),
        "## Stages\n\n" + _stages(stages),
        "## Whole pictures\n\n" + _whole(stages, data),
        "## Growth\n\n" + _growth(stages, data),
        "## Start and memory\n\n" + _start(data),
    ]
    plots = {
        "stages": _plot_stages(stages, path),
        "roofline": _plot_roofline(stages, data, path),
        "growth": _plot_growth(stages, path),
        "memory": _plot_memory(data, path),
    }
    parts += [f"![{name}]({file.name})" for name, file in plots.items() if file is not None]
    report = path.with_suffix(".md")
    report.write_text("\n\n".join(part for part in parts if part) + "\n")
    return report


def median(result: Result) -> float:
    """Median of the seconds of a run."""
    return statistics.median(result["seconds"])


def commits(results: Iterable[Result]) -> str:
    """The commits that results were made at, in the order of their first."""
    return ", ".join(dict.fromkeys(result["commit"] for result in results))


def _with_ceiling(result: Result, data: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the limit that its precision has on this machine, in TFLOP/s."""
    kinds = [f"{what} {result['precision']}" for what in ("matmul", "convolution")]
    limits = [found[kind] for found in data["ceilings"].values() for kind in kinds]
    return {**result, "ceiling": max(limits, default=math.nan)}


def _about(data: Mapping[str, Any]) -> str:
    machine = data["machine"]
    bundle = machine["bundle"]
    versions = sorted({(result["subject"], result["version"]) for result in data["stages"]})
    rows = [
        ("processor", f"{machine['processor']}; {', '.join(machine['instructions'])}"),
        ("memory", f"{machine['memory'] / GIB:.0f} GiB"),
        ("GPU", machine["gpu"] or "none"),
        ("system", machine["system"]),
        ("date; commits", f"{machine['date']}; {commits((*data['stages'], *data['pictures']))}"),
        ("checkpoint", machine["checkpoint"]),
        ("bundle", f"{bundle['precision']}, {sum(bundle['files'].values()) / GIB:.2f} GiB on disk"),
        *((subject, version) for subject, version in versions),
        ("command", f"`{machine['command']}`"),
    ]
    lead = (
        "Every subject runs in a process of its own; at each size they take turns, one run each, and the first run of "
        "each does not count. Seconds are medians; with guidance (two branches) unless it says otherwise."
    )
    return lead + "\n\n" + table(("", ""), rows)


def _ceilings(data: Mapping[str, Any]) -> str:
    names = list(next(iter(data["ceilings"].values()), {}))
    rows = []
    for name in names:
        unit = "GB/s" if name == "copy" else "TFLOP/s"
        rows.append((name, *(f"{found[name]:.3g} {unit}" for found in data["ceilings"].values())))
    lead = "Best of seven runs, with torch (oneDNN): 4096³ products, 3x3 convolutions of 512 channels, 1 GiB copies."
    return lead + "\n\n" + table(("", *(f"{when} all else" for when in data["ceilings"])), rows)


def _stages(stages: Sequence[Result]) -> str:
    header = ("stage", "size", "subject", "turns", "p50 s", "p90 s", "p99 s", "TFLOP", "TFLOP/s", "of the limit")
    header += ("peak GiB", "load s", "of the best peer")
    rows = []
    for case in dict.fromkeys(result["case"] for result in stages):
        results = [result for result in stages if result["case"] == case]
        peers = [median(result) for result in results if not _is_ours(result)]
        for result in results:
            seconds, rate = median(result), result["flop"] / median(result) / 1e12
            rows.append(
                (
                    result["stage"],
                    _size(result),
                    result["subject"],
                    str(len(result["seconds"])),
                    *(f"{bench.percentile(result['seconds'], share):.3g}" for share in (50, 90, 99)),
                    f"{result['flop'] / 1e12:.3g}",
                    f"{rate:.3f}",
                    f"{rate / result['ceiling']:.0%}",
                    f"{result['peak_host_memory'] / GIB:.2f}",
                    f"{result['load_seconds']:.1f}",
                    f"{seconds / min(peers):.2f}" if peers and _is_ours(result) else "",
                )
            )
    note = (
        "TFLOP are those of our graphs, counted with OpenVINO's shapes; peers compute a little more for the same "
        "result, so that their share of the limit is a little higher than it says."
    )
    return table(header, rows) + "\n\n" + note


def _whole(stages: Sequence[Result], data: Mapping[str, Any]) -> str:
    rows = []
    for entry in data["pictures"]:
        spec = entry["settings"]
        size = f"{spec['width']}x{spec['height']}"
        if "refused" in entry:
            held = "low memory" if spec["low_memory"] else "all components held"
            rows.append((size, f"ours, {held}", "refused", "", entry["refused"]))
            continue
        last = entry["pictures"][-1]
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in last["timings"].items() if name != "total")
        rows.append(
            (
                size,
                f"ours, {spec['prior_steps']} prior + {spec['steps']} DPM-Solver++ steps"
                + (", low memory" if spec["low_memory"] else ""),
                "measured",
                f"{last['timings']['total']:.1f}",
                parts,
            )
        )
    for size in sorted({_size(result) for result in stages if not _is_ours(result)}):
        for subject in dict.fromkeys(result["subject"] for result in stages if not _is_ours(result)):
            seconds = _composed(stages, subject, size)
            if seconds is not None:
                how = "from the medians above"
                rows.append(
                    (size, f"{subject}, {PRIOR_STEPS} prior + {THEIR_STEPS} DDPM steps", how, f"{seconds:.1f}", "")
                )
    note = (
        f"Those of diffusers are put together: the text encoder, {PRIOR_STEPS} steps of the prior, {THEIR_STEPS} of "
        "the UNet and the decoding, each at its median above; loading is left out."
    )
    return table(("size", "what", "how", "s", "of which"), rows) + "\n\n" + note


def _composed(stages: Sequence[Result], subject: str, size: str) -> float | None:
    """Seconds of a whole picture by a subject's medians; None where one is missing."""
    parts = _stage_seconds(stages, subject, size, THEIR_STEPS)
    return None if parts is None else sum(parts.values())


def _stage_seconds(stages: Sequence[Result], subject: str, size: str, steps: int) -> dict[str, float] | None:
    """Seconds of each stage of a picture with so many steps, by a subject's medians; None where one is missing."""
    parts = {}
    for stage, runs in {**SHARES, "decoder_step": steps}.items():
        found = [
            result
            for result in stages
            if (result["stage"], result["subject"]) == (stage, subject)
            and (_size(result) == size or stage in ("text_encoder", "prior_step"))
        ]
        if not found:
            return None
        parts[stage] = runs * median(found[0])
    return parts


def _growth(stages: Sequence[Result], data: Mapping[str, Any]) -> str:
    rows = []
    for stage in ("decoder_step", "movq_decoder"):
        measured = _grown(stages, stage)
        for result in measured:
            pixels = result["height"] * result["width"] * result["batch"]
            rows.append(
                (
                    stage,
                    _size(result),
                    f"{median(result):.3g}",
                    f"{median(result) / pixels * 1e6:.3g}",
                    f"{result['flop'] / pixels / 1e6:.3g}",
                    f"{result['flop'] / median(result) / 1e12:.3f}",
                    f"{result['peak_host_memory'] / GIB:.2f}",
                )
            )
        rows += _growth_of_pictures(data, stage, {_size(result) for result in measured})
    header = ("stage", "size", "s", "s per megapixel", "MFLOP per pixel", "TFLOP/s", "peak GiB")
    return table(header, rows)


def _growth_of_pictures(data: Mapping[str, Any], stage: str, known: set[str]) -> list[tuple[str, ...]]:
    """Rows of sizes that whole pictures alone were made in: a stage's seconds there, first run included."""
    rows = []
    for entry in _painted(data):
        spec, timings = entry["settings"], entry["pictures"][-1]["timings"]
        size = f"{spec['width']}x{spec['height']}"
        if size not in known:
            seconds = timings[stage] / (spec["steps"] if stage == "decoder_step" else 1)
            a_megapixel = seconds / (spec["width"] * spec["height"]) * 1e6
            rows.append((stage, f"{size}, in a picture", f"{seconds:.3g}", f"{a_megapixel:.3g}", "", "", ""))
    return rows


def _grown(stages: Sequence[Result], stage: str) -> list[Result]:
    """Our first backend's results of a stage, one a size, by pixels."""
    found: dict[tuple[int, int], Result] = {}
    for result in stages:
        if result["stage"] == stage and _is_ours(result) and "onnxruntime" not in result["subject"]:
            found.setdefault((result["height"], result["batch"]), result)
    return sorted(found.values(), key=lambda result: (result["batch"], result["height"]))


def _start(data: Mapping[str, Any]) -> str:
    rows = []
    for entry in _painted(data):
        spec, first = entry["settings"], entry["pictures"][0]
        peak = max(picture["peak_host_memory"] for picture in entry["pictures"])
        rows.append(
            (
                f"{spec['width']}x{spec['height']}" + (", low memory" if spec["low_memory"] else ""),
                f"{entry['imported']:.2f}",
                f"{entry['opened'] - entry['imported']:.2f}",
                f"{first['timings'].get('load', 0):.1f}",
                f"{first['ended']:.1f}",
                f"{peak / GIB:.2f}",
            )
        )
    return table(("picture", "import s", "open s", "load s", "first picture s", "peak GiB"), rows)


def _painted(data: Mapping[str, Any]) -> list[Any]:
    """Whole pictures that were made, without those that would not have fitted."""
    return [entry for entry in data["pictures"] if "refused" not in entry]


def _plot_stages(stages: Sequence[Result], path: Path) -> Path | None:
    """Whole pictures as stacked stages: ours with 20 steps and with 50, peers with 50."""
    sizes = [size for size in dict.fromkeys(map(_size, stages)) if " x " not in size]
    bars: list[tuple[str, dict[str, float]]] = []
    for size in sizes:
        for subject in dict.fromkeys(result["subject"] for result in stages):
            for steps in (OUR_STEPS, THEIR_STEPS) if subject.startswith("ours") else (THEIR_STEPS,):
                parts = _stage_seconds(stages, subject, size, steps)
                if parts is not None:
                    bars.append((f"{subject}, {steps} steps, {size}", parts))
    if not bars:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(bars) + 1.5), layout="constrained")
    left = [0.0] * len(bars)
    for stage in ("text_encoder", "prior_step", "decoder_step", "movq_decoder"):
        widths = [parts[stage] for _, parts in bars]
        axes.barh([name for name, _ in bars], widths, left=left, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds a picture")
    axes.legend()
    return _save(figure, path, "stages")


def _plot_roofline(stages: Sequence[Result], data: Mapping[str, Any], path: Path) -> Path | None:
    """Arithmetic a second against arithmetic a byte of weights, the least that a run must read."""
    if not data["ceilings"] or not stages:
        return None
    files = data["machine"]["bundle"]["files"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    copy = max(found["copy"] for found in data["ceilings"].values())
    for precision in sorted({result["precision"] for result in stages}):
        limit = max(result["ceiling"] for result in stages if result["precision"] == precision)
        intensities = [10**exponent for exponent in (0, 1, 2, 3, 4, 5)]
        axes.plot(intensities, [min(limit, each * copy / 1e3) for each in intensities], label=f"limit, {precision}")
    for subject in dict.fromkeys(result["subject"] for result in stages):
        points = [result for result in stages if result["subject"] == subject]
        weights = [files[f"onnx/{result['stage']}.onnx.data"] for result in points]
        axes.scatter(
            [result["flop"] / size for result, size in zip(points, weights, strict=True)],
            [result["flop"] / median(result) / 1e12 for result in points],
            label=subject,
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of weights", ylabel="TFLOP/s")
    axes.legend()
    return _save(figure, path, "roofline")


def _plot_growth(stages: Sequence[Result], path: Path) -> Path | None:
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    drawn = False
    for stage in ("decoder_step", "movq_decoder"):
        for batched in (False, True):
            points = [result for result in _grown(stages, stage) if (result["batch"] > 1) == batched]
            if len(points) < 2:
                continue
            pixels = [result["height"] * result["width"] * result["batch"] / 1e6 for result in points]
            name = stage + (f", batches of {points[0]['width']}x{points[0]['height']}" if batched else "")
            time.plot(pixels, [median(result) for result in points], marker="o", label=name)
            memory.plot(pixels, [result["peak_host_memory"] / GIB for result in points], marker="o", label=name)
            drawn = True
    if not drawn:
        pyplot.close(figure)
        return None
    time.set(xscale="log", yscale="log", xlabel="megapixels", ylabel="seconds")
    memory.set(xscale="log", xlabel="megapixels", ylabel="peak GiB")
    time.legend()
    return _save(figure, path, "growth")


def _plot_memory(data: Mapping[str, Any], path: Path) -> Path | None:
    if not _painted(data):
        return None
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for entry in _painted(data):
        spec = entry["settings"]
        name = f"{spec['width']}x{spec['height']}" + (", low memory" if spec["low_memory"] else "")
        axes.plot(*zip(*((at, size / GIB) for at, size in entry["memory"]), strict=True), label=name)
    axes.set(xlabel="seconds since the start of Python", ylabel="resident GiB")
    axes.legend()
    return _save(figure, path, "memory")


def _save(figure: Any, path: Path, name: str) -> Path:
    file = path.with_name(f"{path.name}-{name}.png")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _is_ours(result: Result) -> bool:
    return bool(result["subject"].startswith("ours"))


def _size(result: Result) -> str:
    batch = f" x {result['batch']}" if result["batch"] > 1 else ""
    return f"{result['width']}x{result['height']}{batch}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
