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

from kandinsky22.measure import timing

Result = Mapping[str, Any]
PRIOR_STEPS = 25
OUR_STEPS, THEIR_STEPS = 20, 50
SAMPLERS = {OUR_STEPS: "DPM-Solver++", THEIR_STEPS: "DDPM"}
GIB = 1 << 30
SHARES = {"text_encoder": 1, "prior_step": PRIOR_STEPS, "movq_decoder": 1}
STAGES = ("text_encoder", "prior_step", "decoder_step", "movq_decoder")
"""In the order in which a picture runs them."""


def write(data: Mapping[str, Any], path: Path) -> Path:
    """Write `path`.md and its plots `path`-*.png; the path of the report."""
    stages = [_with_ceiling(result, data) for result in data["stages"] if "error" not in result]
    stages.sort(key=lambda each: (STAGES.index(each["stage"]), each["batch"], each["width"] * each["height"]))
    failed = [result for result in data["stages"] if "error" in result]
    parts = [
        f"# Latency and memory: {data['machine']['processor']}",
        _about(stages, data),
        "## The machine's own limit\n\n" + _ceilings(data),
        "## Stages\n\n" + _stages(stages),
        _failed(failed),
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


def ceiling_name(what: str, precision: str, device: str) -> str:
    """What a limit of the machine is called: of "matmul", "convolution" or "copy", on "cpu" or "cuda"."""
    return f"{what} {precision}".strip() + (" on the GPU" if device == "cuda" else "")


def commits(results: Iterable[Result]) -> str:
    """The commits that results were made at, in the order of their first."""
    return ", ".join(dict.fromkeys(result["commit"] for result in results))


def _with_ceiling(result: Result, data: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the limit that its precision has on its device, in TFLOP/s; NaN where it was not measured."""
    kinds = [ceiling_name(what, result["precision"], _device(result)) for what in ("matmul", "convolution")]
    return {**result, "ceiling": _limit(data, kinds)}


def _limit(data: Mapping[str, Any], names: Sequence[str]) -> float:
    """The best of some limits, before all else and after; NaN where none was measured."""
    found = [limits.get(name) for limits in data["ceilings"].values() for name in names]
    return max((limit for limit in found if limit is not None), default=math.nan)


def _about(stages: Sequence[Result], data: Mapping[str, Any]) -> str:
    machine = data["machine"]
    bundle = machine["bundle"]
    versions = sorted({(result["subject"], result["version"]) for result in stages})
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
    measured = list(data["ceilings"].values())
    rows = []
    for name in dict.fromkeys(name for found in measured for name in found):
        unit = "GB/s" if name.startswith("copy") else "TFLOP/s"
        limits = [found.get(name) for found in measured]
        rows.append((name, *("failed" if limit is None else f"{limit:.3g} {unit}" for limit in limits)))
    lead = "Best of seven runs, with torch (oneDNN): 4096³ products, 3x3 convolutions of 512 channels, 1 GiB copies."
    return lead + "\n\n" + table(("", *(f"{when} all else" for when in data["ceilings"])), rows)


def _stages(stages: Sequence[Result]) -> str:
    header = ("stage", "size", "subject", "turns", "p50 s", "p90 s", "p99 s", "TFLOP", "TFLOP/s", "of the limit")
    gpu = _has_gpu(stages)
    header += ("peak GiB", *(["GPU GiB"] if gpu else []), "load s", "of the best peer")
    rows = []
    for case in dict.fromkeys(result["case"] for result in stages):
        for result in (result for result in stages if result["case"] == case):
            peer, rate = _best_peer(stages, result), result["flop"] / median(result) / 1e12
            rows.append(
                (
                    result["stage"],
                    _size(result),
                    result["subject"],
                    str(len(result["seconds"])),
                    *(f"{timing.percentile(result['seconds'], share):.3g}" for share in (50, 90, 99)),
                    f"{result['flop'] / 1e12:.3g}",
                    f"{rate:.3f}",
                    "" if math.isnan(result["ceiling"]) else f"{rate / result['ceiling']:.0%}",
                    *_memory(result, gpu),
                    f"{result['load_seconds']:.1f}",
                    f"{median(result) / peer:.2f}" if peer is not None and _is_ours(result) else "",
                )
            )
    note = (
        "TFLOP are those of our graphs, counted with OpenVINO's shapes; peers compute a little more for the same "
        "result, so that their share of the limit is a little higher than it says. Ours in OpenVINO fp32 computes less "
        "than is counted: wide convolutions take a quarter of the multiplications, by Winograd's algorithm, and the "
        'share may be above 100 %. "Of the best peer" is against the '
        "lowest median of all peers at that stage and size, also of one that took its turns in another case."
    )
    return table(header, rows) + "\n\n" + note


def _best_peer(stages: Sequence[Result], like: Result) -> float | None:
    """The lowest median of any peer at the stage and size of a result, in whichever case; None without one."""
    kind = ("stage", "height", "width", "batch", "guided")
    alike = [result for result in stages if all(result[key] == like[key] for key in kind)]
    return min((median(result) for result in alike if not _is_ours(result)), default=None)


def _memory(result: Result, gpu: bool) -> list[str]:
    """GiB of the process and, where a GPU was used at all, of the GPU."""
    cells = [f"{result['peak_host_memory'] / GIB:.2f}"]
    return [*cells, f"{result['device_memory'] / GIB:.2f}" if result["device_memory"] else ""] if gpu else cells


def _failed(results: Sequence[Result]) -> str:
    """What could not be measured, and why; nothing without any."""
    lines = [f"- {each['stage']}, {_size(each)}, {each['subject']}: {each['error']}." for each in results]
    return "Failed:\n\n" + "\n".join(dict.fromkeys(lines)) if lines else ""


def _whole(stages: Sequence[Result], data: Mapping[str, Any]) -> str:
    rows = []
    for entry in data["pictures"]:
        spec = entry["settings"]
        size = f"{spec['width']}x{spec['height']}"
        if not _is_painted(entry):
            held = "low memory" if spec["low_memory"] else "all components held"
            how = "refused" if "refused" in entry else "failed"
            rows.append((size, f"ours, {held}", how, "", entry.get("refused") or entry["error"] + "."))
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
    rows += [
        (
            size,
            f"{subject}, {PRIOR_STEPS} prior + {steps} {SAMPLERS[steps]} steps",
            "from the medians above",
            seconds,
            "",
        )
        for size, subject, steps, seconds in _composed(stages)
    ]
    note = (
        f"Those from the medians are put together: the text encoder, {PRIOR_STEPS} steps of the prior, the steps of "
        "the UNet and the decoding, each at its median above; loading is left out, for ours and for peers alike."
    )
    return table(("size", "what", "how", "s", "of which"), rows) + "\n\n" + note


def _composed(stages: Sequence[Result]) -> list[tuple[str, str, int, str]]:
    """Whole pictures by the medians of their stages: size, subject, steps and seconds; ours also with fewer steps."""
    sizes = {_size(result): result["width"] * result["height"] for result in stages if result["batch"] == 1}
    found = []
    for size in sorted(sizes, key=lambda size: sizes[size]):
        for subject in dict.fromkeys(result["subject"] for result in stages):
            for steps in (OUR_STEPS, THEIR_STEPS) if subject.startswith("ours") else (THEIR_STEPS,):
                parts = _stage_seconds(stages, subject, size, steps)
                if parts is not None:
                    found.append((size, subject, steps, f"{sum(parts.values()):.1f}"))
    return found


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
    gpu = _has_gpu(stages)
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
                    *_memory(result, gpu),
                )
            )
        in_pictures = _growth_of_pictures(data, stage, {_size(result) for result in measured})
        rows += [(*row, "") if gpu else row for row in in_pictures]
    header = ("stage", "size", "s", "s per megapixel", "MFLOP per pixel", "TFLOP/s", "peak GiB")
    return table((*header, "GPU GiB") if gpu else header, rows)


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
    """Our first backend's results of a stage, one a size, by pixels: the backend that our first result is of."""
    first = next((result["subject"] for result in stages if _is_ours(result)), None)
    found: dict[str, Result] = {}
    for result in stages:
        if (result["stage"], result["subject"]) == (stage, first):
            found.setdefault(_size(result), result)
    return sorted(found.values(), key=lambda result: (result["batch"], result["height"] * result["width"]))


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
    """Whole pictures that were made, without those that would not have fitted, and those that failed."""
    return [entry for entry in data["pictures"] if _is_painted(entry)]


def _is_painted(entry: Mapping[str, Any]) -> bool:
    return "refused" not in entry and "error" not in entry


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
    for stage in STAGES:
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
    intensities = [10**exponent for exponent in (0, 1, 2, 3, 4, 5)]
    limits = {(_device(result), result["precision"]): result["ceiling"] for result in stages}
    for (device, precision), limit in sorted(limits.items()):
        copy = _limit(data, [ceiling_name("copy", "", device)])
        name = ceiling_name("limit,", precision, device)
        axes.plot(intensities, [min(limit, each * copy / 1e3) for each in intensities], label=name)
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


def _has_gpu(stages: Sequence[Result]) -> bool:
    return any(result["device_memory"] for result in stages)


def _device(result: Result) -> str:
    """Where it ran, "cpu" or "cuda": the first in reports that do not say it."""
    return str(result.get("device", "cpu"))


def _is_ours(result: Result) -> bool:
    return bool(result["subject"].startswith("ours"))


def _size(result: Result) -> str:
    batch = f" x {result['batch']}" if result["batch"] > 1 else ""
    return f"{result['width']}x{result['height']}{batch}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
