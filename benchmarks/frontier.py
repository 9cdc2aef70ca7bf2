"""Seconds against quality: every lever, alone and combined, beside diffusers. `make bench` runs it.

    python -m benchmarks.frontier engines/kandinsky-2.2-random --int8 engines/kandinsky-2.2-random-int8 \\
        --shapes engines/shapes --shapes-int8 engines/shapes-int8 --name my-machine

times the components of the published size in turns with diffusers, scores each setting of
benchmarks/frontier_settings.py on checkpoints/shapes, and composes the seconds of a picture. Every measurement is kept
in reports/NAME-frontier.json as soon as it is made, and one that is there is not made again; NAME-frontier.md and .png
are made of that file. `--only scores` may run beside other work, `--only seconds` wants a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import frontier_report, frontier_seconds, latency, workers
from benchmarks.command import REPORTS, one_sentence
from benchmarks.comparisons import PEERS, size_of
from benchmarks.frontier_scores import Shapes
from benchmarks.frontier_settings import (
    DIFFUSERS,
    FLOAT,
    INT8,
    QUICK,
    REFERENCE,
    SETTINGS,
    Setting,
    picture_settings,
)
from benchmarks.frontier_store import FrontierMeasurements, Run, about
from benchmarks.machine import describe
from benchmarks.progress import Progress
from benchmarks.runs import KeptPictures
from kandinsky22 import backends
from kandinsky22 import machine as this_machine
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import BundleError, InputError
from kandinsky22.measure import timing
from kandinsky22.request.presets import PRESETS

PARTS = ("seconds", "scores")
Asked = Sequence[tuple[Setting, Counter[Run]]]
"""Settings, and how often a picture of each runs each component."""


@one_sentence()
def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    bundle = Bundle(options.bundle)
    asked, refused = possible(chosen(options), bundle)
    path = options.reports / f"{options.name}-frontier.json"
    found = FrontierMeasurements(path, describe(bundle, options.checkpoint), _settings(options))
    if "seconds" in options.only:
        measure_seconds(found, options, bundle, asked)
    if "scores" in options.only:
        measure_scores(found, options, asked)
    print(frontier_report.write(found.data, path.with_suffix(""), refused), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle that is timed; fp16 is what our backends run best")
    add("--int8", type=Path, dest="int8_bundle", help="the same checkpoint in int8; settings in int8 need both")
    add("--shapes", type=Path, required=True, help="a bundle of checkpoints/shapes, which is scored")
    add("--shapes-int8", type=Path, help="the same in int8")
    add("--checkpoint", help="what the timed bundle was exported from (random weights of the published sizes)")
    add("--name", default=platform.node() or "machine", help="of the report (%(default)s)")
    add("--reports", type=Path, default=REPORTS, help="folder of reports (%(default)s)")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    add("--settings", nargs="+", metavar="WORD", help="those whose name has one of these, such as int8: or Karras")
    add("--size", type=timing.sides, default=(1024, 1024), metavar="WxH", help="pixels that are timed (1024)")
    add("--prompts", type=int, default=300, help="how many of the card's 300 are scored (%(default)s)")
    add("--backend", default="openvino", choices=backends.PREFERENCE, help="of ours (%(default)s)")
    add("--peers", nargs="+", default=[_best_peer()], choices=PEERS, help="ways of diffusers (%(default)s)")
    add("--threads", type=int, help="of scoring; the backend's choice without it")
    add("--repeat", type=int, default=3, help="turns that are timed (%(default)s)")
    add("--patience", type=float, default=120, help="seconds of turns after which a case ends early (%(default)s)")
    text = "presets whose whole pictures are made, to check what is composed (%(default)s)"
    add("--pictures", nargs="*", choices=PRESETS, default=["fastest"], help=text)
    add("--slow-peer", action="store_true", help="make a picture of 50 steps with diffusers' decoder, too: minutes")
    add("--quick", action="store_true", help="few settings, prompts and turns, at the size of training")
    options = parser.parse_args()
    options.fp32_bundle = None  # of `comparisons.subject_spec`
    if options.quick:
        trained = Bundle(options.bundle).manifest.default_size
        options.size, options.prompts, options.repeat = (trained, trained), min(options.prompts, 10), 2
    if not 1 <= options.prompts <= 300:
        parser.error(f"--prompts is {options.prompts}; expected 1 to 300")
    if strange := [word for word in options.settings or () if not any(word in each.name for each in SETTINGS)]:
        parser.error(f"--settings has {strange[0]!r}, which no setting has in its name; {SETTINGS[-1].name!r} is one")
    if not (options.repeat > 0 and options.patience > 0):
        parser.error("--repeat and --patience must be more than 0")
    options.reports.mkdir(parents=True, exist_ok=True)
    return options


def _best_peer() -> str:
    """The way of diffusers that is fastest on this processor without being compiled: bf16 where it computes that."""
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(this_machine.processor().flags)
    return "diffusers bf16" if has_bf16 else "diffusers fp32"


def chosen(options: argparse.Namespace) -> list[Setting]:
    """The settings that were asked for, of subjects that have their bundles; the reference in any case."""
    there = {DIFFUSERS, FLOAT, *([INT8] if options.int8_bundle and options.shapes_int8 else [])}
    words = options.settings or [""]
    return [
        setting
        for setting in (QUICK if options.quick else SETTINGS)
        if setting == REFERENCE or (setting.subject in there and any(word in setting.name for word in words))
    ]


def possible(settings: Sequence[Setting], bundle: Bundle) -> tuple[Asked, dict[str, str]]:
    """The settings that a bundle can run, with what a picture of each runs; and the others by name, and why not."""
    asked, refused = [], {}
    for setting in settings:
        try:
            asked.append((setting, frontier_seconds.runs(setting.request, bundle)))
        except (BundleError, InputError) as error:
            refused[setting.name] = str(error)
    return asked, refused


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all measurements have in common."""
    bundles = {"int8": options.int8_bundle, "shapes": options.shapes, "shapes in int8": options.shapes_int8}
    return {
        "backend": options.backend,
        "width": options.size[0],
        "height": options.size[1],
        "prompts": options.prompts,
        "bundles": {name: about(Bundle(path)) for name, path in bundles.items() if path},
    }


def pictures(options: argparse.Namespace, asked: Asked) -> list[dict[str, Any]]:
    """How whole pictures are made, as `benchmarks.picture` takes it: of the presets that were asked for, in each
    precision. One component is in memory at a time: loading is not compared."""
    found = []
    for setting, _ in asked:
        wanted = [Setting.of(setting.subject, **PRESETS[name]) for name in options.pictures]
        if setting.subject != DIFFUSERS and setting in wanted:
            machine = {
                "bundle": str(options.int8_bundle if setting.subject == INT8 else options.bundle),
                "backend": options.backend,
                "height": options.size[1],
                "width": options.size[0],
                "low_memory": True,
                "pictures": 1,
            }
            found.append({**machine, **picture_settings(setting)})
    return found


def measure_seconds(found: FrontierMeasurements, options: argparse.Namespace, bundle: Bundle, asked: Asked) -> None:
    """Time the components that are missing, and make whole pictures."""
    cases = frontier_seconds.comparisons(options, asked, size_of(options.size))
    whole = pictures(options, asked)
    with contextlib.closing(Progress(latency.pending(found, bundle, cases, whole, options.patience))) as progress:
        for case in cases:
            latency.measure_comparison(found, options, bundle, case, progress)
        for settings in whole:
            latency.measure_picture(found, options, settings, progress)
    if options.slow_peer:
        measure_peer(found, options)


def measure_peer(found: FrontierMeasurements, options: argparse.Namespace) -> None:
    """Make a picture of the reference's steps with diffusers' decoder, in each of its ways, where it is missing."""
    width, height = options.size
    steps = REFERENCE.request.parameters["num_inference_steps"]
    for subject in options.peers:
        spec = {"subject": subject, "width": width, "height": height, "steps": steps}
        if any(done["spec"] == spec for done in found.data["peers"]):
            continue
        print(f"{subject}, {steps} steps", file=sys.stderr)
        how = json.dumps({**PEERS[subject], **spec, "checkpoint": options.checkpoint})
        log = options.reports / f"{options.name}.log"
        found.keep("peers", {"spec": spec, **workers.alone(subject, "benchmarks.peer_picture", [how], log)})


def measure_scores(found: FrontierMeasurements, options: argparse.Namespace, asked: Asked) -> None:
    """Paint and score the settings that are missing."""
    missing = [(setting, runs) for setting, runs in asked if not found.has_score(setting)]
    if not missing:
        return
    bundles = {FLOAT: options.shapes, INT8: options.shapes_int8}
    kept = KeptPictures(options.reports / f"{options.name}-frontier-reference.tmp")
    with contextlib.closing(Shapes(bundles, options.backend, options.threads, options.prompts)) as shapes:
        bar = tqdm(missing, unit="setting", dynamic_ncols=True)
        for setting, runs in bar:
            bar.set_description(setting.name)
            painted = shapes.paint(setting)
            far = None if setting.adds_noise else shapes.distance(painted, shapes.reference(kept))
            found.add_score(setting, runs, {"pictures": len(painted), "wrong": shapes.wrong(painted), "distance": far})


if __name__ == "__main__":
    main()
