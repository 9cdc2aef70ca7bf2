"""The report of the frontier: a table, the presets by their rules, and what is composed beside what is measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import frontier_plot, frontier_points
from benchmarks.frontier_points import WITHIN, Point
from benchmarks.frontier_seconds import parts
from benchmarks.frontier_settings import (
    DIFFUSERS,
    REFERENCE,
    SETTINGS,
    Setting,
    picture_settings,
    presets_of,
)
from benchmarks.frontier_store import find, runs_of
from benchmarks.machine import role_of
from benchmarks.markdown import table
from benchmarks.results import GIB, commits, is_painted, size_of
from kandinsky22.bundle.manifest import Role
from kandinsky22.files import write_file
from kandinsky22.request.presets import PRESETS


def write(data: Mapping[str, Any], path: Path, refused: Mapping[str, str]) -> Path:
    """Write `path`.md and, where there are points, `path`.png; the path of the report.

    `refused` are settings by name that could not be run, and why.
    """
    points = frontier_points.points(data)
    best = frontier_points.frontier(points)
    texts = [
        f"# Seconds against quality: {data['machine']['processor']}",
        _about(data),
        f"![Seconds against quality]({path.name}.png)" if points else "",
        "## Settings\n\n" + _settings(data, points, best),
        _refused(refused),
        "## Presets\n\n" + _presets(points),
        "## Composed and measured\n\n" + _composed(data),
        "## Components\n\n" + _components(data),
    ]
    if points:
        frontier_plot.plot(points, best, path.with_name(f"{path.name}.png"))
    report = path.with_name(f"{path.name}.md")
    write_file(report, ("\n\n".join(filter(None, texts)) + "\n").encode())
    return report


def _about(data: Mapping[str, Any]) -> str:
    machine, settings = data["machine"], data["settings"]
    size = size_of(settings)
    lead = (
        f"**Seconds** are those of one picture of {size} by {machine['checkpoint']}, from the prompt to the pixels, "
        "without loading. They are composed: how often the setting runs each component, by the median of that "
        "component's runs, which were measured in turns with diffusers. **Everything right** is the share of "
        f"{settings['prompts']} unseen prompts of checkpoints/shapes of which the classifier reads shape, colours, "
        "size and position as asked, with its 95 % interval after Wilson; every setting begins with the same noise. "
        "Two settings whose intervals overlap widely are not told apart. **Distance** is the root mean square, of "
        "255, to 500 steps of DDIM in fp32, where the sampler adds no noise of its own. Quality is that of a tiny "
        "checkpoint: it tells which settings come to the same picture, not what is good enough for another."
    )
    rows = [
        ("processor", f"{machine['processor']}; {', '.join(machine['instructions'])}"),
        ("memory", f"{machine['memory'] / GIB:.0f} GiB"),
        ("system", machine["system"]),
        ("date; commits", f"{machine['date']}; {commits((*data['stages'], *data['pictures'], *data['scores']))}"),
        *((f"bundle, {name}", f"{each['name']}, {each['precision']}") for name, each in settings["bundles"].items()),
        *sorted({(each["subject"], f"{each['version']}, {each['precision']}") for each in _measured(data)}),
        ("command", f"`{machine['command']}`"),
    ]
    return lead + "\n\n" + table(("", ""), rows)


def _seconds(seconds: float) -> str:
    """Seconds in three digits, or to a tenth."""
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.3g}"


def _measured(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result for result in data["stages"] if "error" not in result]


def _settings(data: Mapping[str, Any], points: Sequence[Point], best: Sequence[Point]) -> str:
    header = ("", "setting", "UNet runs", "s", "times as fast", "everything right", "lost, won", "distance")
    rows = []
    for setting in SETTINGS:
        score = find(data, setting)
        if score is not None:
            point = next((each for each in points if each.setting == setting), None)
            rows.append(_setting(data, setting, score, point, points, on_frontier=point in best))
    note = (
        '"UNet runs" are steps with guidance (two branches), without (one), and skipped ones. "Times as fast" is '
        f"against {REFERENCE.name}. Lost are pictures that are right in it and wrong here, won the other way round. "
        "The settings in bold are on the frontier: no other is as fast and better, or faster and as good."
    )
    return table((*header, "preset"), rows) + "\n\n" + note


def _setting(
    data: Mapping[str, Any],
    setting: Setting,
    score: Mapping[str, Any],
    point: Point | None,
    points: Sequence[Point],
    *,
    on_frontier: bool,
) -> tuple[str, ...]:
    """A line of the table of settings."""
    mark = "**" if on_frontier else ""
    reference, base = find(data, REFERENCE), next((each for each in points if each.setting == REFERENCE), None)
    wrong, right = set(score["wrong"]), score["pictures"] - len(set(score["wrong"]))
    low, high = frontier_points.wilson(right, score["pictures"])
    compared = reference and reference["pictures"] == score["pictures"]
    theirs = set(reference["wrong"]) if reference and compared else set()
    return (
        str(SETTINGS.index(setting) + 1),
        f"{mark}{setting.name}{mark}",
        _unet_runs(data, score),
        _seconds(point.seconds) if point else "",
        f"{base.seconds / point.seconds:.1f}" if base and point else "",
        f"{100 * right / score['pictures']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{len(wrong - theirs)}, {len(theirs - wrong)}" if compared else "",
        "" if score["distance"] is None else f"{score['distance']:.2f}",
        ", ".join(presets_of(setting)),
    )


def _unet_runs(data: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """Steps with guidance, without, and skipped ones: of components that are for something else than all steps."""
    guided = unguided = skipped = 0
    for run, times in runs_of(score).items():
        role = role_of(data["machine"], run.component)
        if role is Role.DECODER:
            guided, unguided = guided + times * run.guided, unguided + times * (not run.guided)
        elif role not in (Role.TEXT_ENCODER, Role.PRIOR, Role.MOVQ_DECODER):
            skipped += times
    return f"{guided} + {unguided}" + (f" + {skipped}" if skipped else "")


def _refused(refused: Mapping[str, str]) -> str:
    lines = [f"- {name}: {why}" for name, why in refused.items()]
    return "Settings that these bundles cannot run:\n\n" + "\n".join(lines) if lines else ""


def _presets(points: Sequence[Point]) -> str:
    reference = next((point for point in points if point.setting == REFERENCE), None)
    if reference is None:
        return f"The rules need {REFERENCE.name}, which is not measured."
    rows = []
    for preset, within in WITHIN.items():
        chosen = frontier_points.recommended(points, reference, within)
        rule = f"the fastest at most {within:g} point{'s' if within > 1 else ''} below {reference.score:.1f} %"
        now = [point for point in points if preset in presets_of(point.setting)]
        rows.append((f"`{preset}`", rule, *_words(chosen), *_words(now)))
    note = (
        "Of parameters that were judged in every precision that there is, by the lower score and the more seconds: a "
        "preset does not know the bundle. Among so many settings the fastest that is good enough owes some of its "
        f"score to chance. The presets are in `kandinsky22.request.presets`; `{next(iter(PRESETS))}` is the default, "
        "whatever is fast."
    )
    header = ("preset", "rule", "by the rule", "s; right", "is now", "s; right")
    return table(header, rows) + "\n\n" + note


def _words(points: Sequence[Point]) -> tuple[str, str]:
    """The parameters of some points, which are alike, and what each precision gives."""
    if not points:
        return "none", ""
    each = (f"{point.setting.subject} {_seconds(point.seconds)} s, {point.score:.1f} %" for point in points)
    return points[0].setting.words, "; ".join(each)


def _composed(data: Mapping[str, Any]) -> str:
    """Whole pictures that were made, beside what their setting is composed to."""
    rows: list[tuple[str, ...]] = []
    for entry in data["pictures"]:
        setting = _painted_by(entry["settings"])
        if setting is None:
            continue
        score = find(data, setting)
        composed = score and parts(data, score)
        if not is_painted(entry):
            rows.append((setting.name, "", entry.get("refused") or entry["error"], ""))
            continue
        timings = entry["pictures"][-1]["timings"]
        seconds = timings["total"] - timings.get("load", 0.0)
        total = sum(composed.values()) if composed else None
        ratio = "" if total is None else f"{seconds / total:.2f}"
        rows.append((setting.name, "" if total is None else _seconds(total), _seconds(seconds), ratio))
    rows += [_composed_peer(data, each) for each in data["peers"]]
    note = "Loading and compiling, which the components' medians leave out, are left out of the measured picture, too."
    return table(("setting", "composed s", "measured s", "ratio"), rows) + "\n\n" + note if rows else "None was made."


def _composed_peer(data: Mapping[str, Any], peer: Mapping[str, Any]) -> tuple[str, ...]:
    """A picture of diffusers' decoder, beside its steps and its decoding."""
    spec, composed = peer["spec"], 0.0
    for role, times in ((Role.DECODER, spec["steps"]), (Role.MOVQ_DECODER, 1)):
        of_role = [each for each in _measured(data) if role_of(data["machine"], each["stage"]) == role]
        its = [each for each in of_role if each["subject"] == spec["subject"] and each["guided"]]
        composed += times * statistics.median(its[-1]["seconds"]) if its else math.nan
    name = f"{spec['subject']}, {spec['steps']} steps, without text encoder and prior"
    if "error" in peer:
        return name, "", peer["error"], ""
    ratio = "" if math.isnan(composed) else f"{peer['seconds'] / composed:.2f}"
    return name, "" if math.isnan(composed) else _seconds(composed), _seconds(peer["seconds"]), ratio


def _painted_by(settings: Mapping[str, Any]) -> Setting | None:
    """The setting that a whole picture was made by; None where it is no longer one."""

    def is_it(setting: Setting) -> bool:
        return all(settings.get(name) == value for name, value in picture_settings(setting).items())

    return next((each for each in SETTINGS if each.subject != DIFFUSERS and is_it(each)), None)


def _components(data: Mapping[str, Any]) -> str:
    rows = [
        (
            result["stage"] + ("" if result["guided"] else ", not guided"),
            result["subject"],
            str(len(result["seconds"])),
            _seconds(statistics.median(result["seconds"])),
            f"{_seconds(min(result['seconds']))} to {_seconds(max(result['seconds']))}",
        )
        for result in _measured(data)
    ]
    failed = [f"- {each['stage']}, {each['subject']}: {each['error']}" for each in data["stages"] if "error" in each]
    told = table(("component", "subject", "turns", "median s", "from, to"), rows)
    return told + ("\n\nFailed:\n\n" + "\n".join(failed) if failed else "")
