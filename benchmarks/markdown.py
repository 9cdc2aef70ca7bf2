"""The latency report in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.results import (
    GIB,
    GROWING,
    OUR_STEPS,
    PRIOR_STEPS,
    THEIR_STEPS,
    Result,
    all_pixels,
    best_peer,
    commits,
    composed,
    grown,
    has_gpu,
    is_ours,
    is_painted,
    median,
    of_components,
    painted,
    pixels,
    seconds_by_role,
    size_of,
    speed,
)
from kandinsky22.bundle.manifest import Role
from kandinsky22.files import write_file
from kandinsky22.measure import timing

SAMPLERS = {OUR_STEPS: "DPM-Solver++", THEIR_STEPS: "DDPM"}


def write(data: Mapping[str, Any], path: Path) -> Path:
    """Write `path`.md and its plots `path`-*.png; the path of the report."""
    results = of_components(data)
    failed = [result for result in data["stages"] if "error" in result]
    parts = [
        f"# Latency and memory: {data['machine']['processor']}",
        _about(results, data),
        "## The machine's own limit\n\n" + _ceilings(data),
        "## Stages\n\n" + _components(results),
        _failed(failed),
        "## Whole pictures\n\n" + _whole(results, data),
        "## Growth\n\n" + _growth(results, data),
        "## Start and memory\n\n" + _start(data),
    ]
    parts += [f"![{name}]({file.name})" for name, file in plots.draw(results, data, path).items()]
    report = path.with_name(f"{path.name}.md")
    write_file(report, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return report


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _about(results: Sequence[Result], data: Mapping[str, Any]) -> str:
    machine = data["machine"]
    bundle = machine["bundle"]
    versions = sorted({(result["subject"], result["version"]) for result in results})
    rows = [
        ("processor", f"{machine['processor']}; {', '.join(machine['instructions'])}"),
        ("memory", f"{machine['memory'] / GIB:.0f} GiB"),
        ("GPU", machine["gpu"] or "none"),
        ("system", machine["system"]),
        ("date; commits", f"{machine['date']}; {commits((*data['stages'], *data['pictures']))}"),
        ("checkpoint", machine["checkpoint"]),
        ("bundle", f"{bundle['precision']}, {sum(bundle['files'].values()) / GIB:.2f} GiB on disk"),
        *versions,
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
    lead = (
        "Best of seven runs, with torch (oneDNN): 4096³ products, 3x3 convolutions of 512 channels, 1 GiB copies; "
        "smaller ones in a precision that is emulated, where a run would take minutes."
    )
    return lead + "\n\n" + table(("", *(f"{when} all else" for when in data["ceilings"])), rows)


def _components(results: Sequence[Result]) -> str:
    gpu = has_gpu(results)
    header = ["stage", "size", "subject", "turns", "p50 s", "p90 s", "p99 s", "TFLOP", "TFLOP/s", "of the limit"]
    header += ["peak GiB", *(["GPU GiB"] if gpu else []), "load s", "of the best peer"]
    cases = dict.fromkeys(result["case"] for result in results)
    rows = [_component(result, results, gpu) for case in cases for result in results if result["case"] == case]
    note = (
        "TFLOP are those of our graphs, counted with OpenVINO's shapes; peers compute a little more for the same "
        "result, so that their share of the limit is a little higher than it says. Ours in OpenVINO fp32 computes less "
        "than is counted: wide convolutions take a quarter of the multiplications, by Winograd's algorithm, and the "
        'share may be above 100 %. "Of the best peer" is against the '
        "lowest median of all peers at that stage and size, also of one that took its turns in another case."
    )
    return table(header, rows) + "\n\n" + note


def _component(result: Result, results: Sequence[Result], gpu: bool) -> tuple[str, ...]:
    """A line of the table of components."""
    peer = best_peer(results, result) if is_ours(result) else None
    return (
        result["stage"],
        size_of(result),
        result["subject"],
        str(len(result["seconds"])),
        *(f"{timing.percentile(result['seconds'], share):.3g}" for share in (50, 90, 99)),
        f"{result['flop'] / 1e12:.3g}",
        f"{speed(result):.3f}",
        "" if math.isnan(result["ceiling"]) else f"{speed(result) / result['ceiling']:.0%}",
        *_memory(result, gpu),
        f"{result['load_seconds']:.1f}",
        "" if peer is None else f"{median(result) / peer:.2f}",
    )


def _memory(result: Result, gpu: bool) -> list[str]:
    """GiB of the process and, where a GPU was used at all, of the GPU."""
    cells = [f"{result['peak_host_memory'] / GIB:.2f}"]
    return [*cells, f"{result['device_memory'] / GIB:.2f}" if result["device_memory"] else ""] if gpu else cells


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    """What could not be measured, and why; nothing without any."""
    lines = [f"- {each['stage']}, {size_of(each)}, {each['subject']}: {each['error']}." for each in failed]
    return "Failed:\n\n" + "\n".join(dict.fromkeys(lines)) if lines else ""


def _whole(results: Sequence[Result], data: Mapping[str, Any]) -> str:
    rows = [_picture(entry) if is_painted(entry) else _untold(entry) for entry in data["pictures"]]
    rows += [
        (
            picture.size,
            f"{picture.subject}, {PRIOR_STEPS} prior + {picture.steps} {SAMPLERS[picture.steps]} steps",
            "from the medians above",
            f"{sum(picture.seconds.values()):.1f}",
            "",
        )
        for picture in composed(results)
    ]
    note = (
        f"Those from the medians are put together: the text encoder, {PRIOR_STEPS} steps of the prior, the steps of "
        "the UNet and the decoding, each at its median above; loading is left out, for ours and for peers alike."
    )
    return table(("size", "what", "how", "s", "of which"), rows) + "\n\n" + note


def _picture(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a picture that was made."""
    settings, timings = entry["settings"], entry["pictures"][-1]["timings"]
    low = ", low memory" if settings["low_memory"] else ""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in timings.items() if name != "total")
    what = f"ours, {settings['prior_steps']} prior + {settings['steps']} DPM-Solver++ steps{low}"
    return size_of(settings), what, "measured", f"{timings['total']:.1f}", parts


def _untold(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a picture that was refused, or failed."""
    held = "low memory" if entry["settings"]["low_memory"] else "all components held"
    how = "refused" if "refused" in entry else "failed"
    return size_of(entry["settings"]), f"ours, {held}", how, "", entry.get("refused") or entry["error"] + "."


def _growth(results: Sequence[Result], data: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    gpu = has_gpu(results)
    for role in GROWING:
        measured = grown(results, role)
        for result in measured:
            per_pixel = result["flop"] / all_pixels(result) / 1e6
            rows.append(
                (
                    result["stage"],
                    size_of(result),
                    *_pace(median(result), all_pixels(result)),
                    f"{per_pixel:.3g}",
                    f"{speed(result):.3f}",
                    *_memory(result, gpu),
                )
            )
        known = {size_of(result) for result in measured}
        rows += [(*row, "") if gpu else row for row in _growth_of_pictures(data, role, known)]
    header = ("stage", "size", "s", "s per megapixel", "MFLOP per pixel", "TFLOP/s", "peak GiB")
    return table((*header, "GPU GiB") if gpu else header, rows)


def _growth_of_pictures(data: Mapping[str, Any], role: Role, known: set[str]) -> list[tuple[str, ...]]:
    """Rows of sizes that whole pictures alone were made in: a component's seconds there, first run included."""
    rows: list[tuple[str, ...]] = []
    for entry in painted(data):
        size, found = size_of(entry["settings"]), seconds_by_role(data, entry).get(role)
        if size not in known and found is not None:
            name, seconds = found
            rows.append((name, f"{size}, in a picture", *_pace(seconds, pixels(entry["settings"])), "", "", ""))
    return rows


def _pace(seconds: float, its_pixels: int) -> tuple[str, str]:
    """Seconds, and seconds a megapixel."""
    return f"{seconds:.3g}", f"{seconds / its_pixels * 1e6:.3g}"


def _start(data: Mapping[str, Any]) -> str:
    rows = []
    for entry in painted(data):
        settings, first = entry["settings"], entry["pictures"][0]
        peak = max(picture["peak_host_memory"] for picture in entry["pictures"])
        rows.append(
            (
                size_of(settings) + (", low memory" if settings["low_memory"] else ""),
                f"{entry['imported']:.2f}",
                f"{entry['opened'] - entry['imported']:.2f}",
                f"{first['timings'].get('load', 0):.1f}",
                f"{first['ended']:.1f}",
                f"{peak / GIB:.2f}",
            )
        )
    return table(("picture", "import s", "open s", "load s", "first picture s", "peak GiB"), rows)
