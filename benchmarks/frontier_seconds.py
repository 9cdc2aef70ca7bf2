"""Seconds of a picture, composed: how often a request runs each component, by the medians of the components' runs."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.comparisons import Comparison
from benchmarks.frontier_settings import DIFFUSERS, FLOAT, Setting
from benchmarks.frontier_store import Run, runs_of
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Role
from kandinsky22.measure.timing import Size
from kandinsky22.request.job import PriorRun, Sampling
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve


def runs(request: Request, bundle: Bundle) -> Counter[Run]:
    """How often one picture of a prompt runs each component.

    Raises InputError where the request cannot be, BundleError where the bundle lacks what it needs.
    """
    job, name_of = resolve(request, bundle.manifest), bundle.manifest.name_of
    source, sampling = job.source, job.sampling
    if not isinstance(source, PriorRun) or sampling is None:
        raise TypeError("Only pictures of prompts are composed.")
    guided = source.guidance_scale > 1
    found = Counter({Run(name_of(Role.TEXT_ENCODER), guided): 1, Run(name_of(Role.PRIOR), guided): source.steps})
    found.update(_decoder_runs(sampling))
    found[Run(name_of(Role.MOVQ_DECODER), True)] = 1  # which knows no guidance
    return found


def _decoder_runs(sampling: Sampling) -> Iterator[Run]:
    """What each of the decoder's steps runs."""
    instead = dict.fromkeys(sampling.skip.steps, sampling.skip.component) if sampling.skip else {}
    for segment in sampling.segments:
        for step in range(segment.steps.start, segment.steps.stop):
            yield Run(instead.get(step, segment.component), segment.guided)


def subjects(setting: Setting, options: argparse.Namespace) -> list[str]:
    """Who is measured for a setting's seconds, in the words of `comparisons.subject_spec`."""
    if setting.subject == DIFFUSERS:
        return list(options.peers)
    ours = f"ours {options.backend}"
    return [ours if setting.subject == FLOAT else f"{ours} {setting.subject}"]


def comparisons(
    options: argparse.Namespace, asked: Sequence[tuple[Setting, Counter[Run]]], size: Size
) -> list[Comparison]:
    """What is measured in turns: each run of a component by everybody who has a setting that runs it."""
    by_run: dict[Run, dict[str, None]] = {}
    for setting, its_runs in asked:
        for run in its_runs:
            by_run.setdefault(run, {}).update(dict.fromkeys(subjects(setting, options)))
    return [
        Comparison(run.component, Size(size.height, size.width, guided=run.guided), tuple(names), options.repeat)
        for run, names in by_run.items()
    ]


def median(stages: Iterable[Mapping[str, Any]], subject: str, run: Run) -> float | None:
    """Median of the seconds of a run by who paints for a setting: of diffusers, the lowest of any of its ways."""
    found: dict[str, float] = {}
    for result in stages:
        wanted = (result["stage"], result["guided"]) == run and _is_of(result["subject"], subject)
        if wanted and "error" not in result:  # the last one counts
            found[result["subject"]] = float(statistics.median(result["seconds"]))
    return min(found.values(), default=None)


def _is_of(measured: str, subject: str) -> bool:
    """Whether a measured subject is one for settings of `subject`: "ours openvino" for "float", say."""
    whose, *how = measured.split(" ")
    if subject == DIFFUSERS:
        return whose == DIFFUSERS
    return whose == "ours" and how[1:] == ([] if subject == FLOAT else [subject])


def parts(data: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, float] | None:
    """Seconds of each component in a picture of a setting; None where one was not measured, or failed."""
    found: dict[str, float] = {}
    for run, times in runs_of(score).items():
        seconds = median(data["stages"], score["setting"]["subject"], run)
        if seconds is None:
            return None
        found[run.component] = found.get(run.component, 0.0) + times * seconds
    return found
