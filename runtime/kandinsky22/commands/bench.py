"""`kandinsky22 bench`: how fast a bundle is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kandinsky22.columns import columns
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    from kandinsky22.backends import Backend, Settings
    from kandinsky22.bench import Picture, Size, Timing
    from kandinsky22.bundle import Bundle

SUMMARY = "measure latency and memory of every stage and of whole pictures"
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Close other programs first: what runs beside it is measured too."
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    add("--backend", metavar="NAME", action="append", help="may be given several times (the fastest here)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="(%(default)s: the backend's best)")
    add("--threads", metavar="N", type=int, help="of the processor (the backend's choice)")
    add("--component", metavar="NAME", action="append", help="only this one; may be given several times (all)")
    add("--size", metavar="WxH", action="append", help="may be given several times (the size of training)")
    add("--batch", metavar="N", type=int, action="append", help="pictures at once; several times (1)")
    add(
        "--steps", metavar="N", type=int, action="append", help="of the decoder, for whole pictures; several times (50)"
    )
    add("--prior-steps", metavar="N", type=int, default=25, help="of the prior (%(default)s)")
    add("--scheduler", metavar="NAME", help="ddpm, ddim, dpm++ or dpm++-karras (the checkpoint's own)")
    add("--repeat", metavar="N", type=int, default=10, help="runs of a stage that count (%(default)s)")
    add(
        "--pictures",
        metavar="N",
        type=int,
        default=2,
        help="whole pictures; the first one loads (%(default)s; 0: none)",
    )
    add("--patience", metavar="SECONDS", type=float, default=60, help="for one stage at one size (%(default)s)")
    add("--low-memory", action="store_true", help="whole pictures with one network in memory at a time")
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Measure, and print tables; the exit code."""
    from kandinsky22 import arguments, backends, bench
    from kandinsky22.bundle import Bundle

    for name in ("repeat", "prior_steps"):
        arguments.whole(name, getattr(options, name), 1, arguments.MAX_STEPS)
    arguments.whole("pictures", options.pictures, 0, arguments.MAX_PICTURES)
    for batch in options.batch or ():
        arguments.whole("batch", batch, 1, arguments.MAX_PICTURES)
    bundle = Bundle(options.bundle)
    trained = bundle.manifest.default_size
    wanted = bench.sizes(bundle, [_sides(text) for text in options.size or [f"{trained}"]], options.batch or [1])
    settings = backends.Settings(options.precision, options.threads)
    report: dict[str, Any] = {"bundle": _about(bundle), "backends": []}
    for name in options.backend or ["auto"]:
        backend = backends.get(name, bundle)
        availability = backend.availability(bundle)
        stages, loads = _stages(bundle, backend, settings, wanted, options, steps=10 if availability.gpu else 1)
        pictures = _pictures(bundle, availability.name, wanted, options)
        if not options.json:
            print(f"{availability.name} {availability.version} ({availability.reason})\n")
            print(_stage_table(stages, loads), end="\n\n")
            if pictures:
                print(_picture_table(pictures), end="\n\n")
        report["backends"].append(
            {
                **dataclasses.asdict(availability),
                "load_seconds": loads,
                "stages": [bench.as_json(timing) for timing in stages],
                "pictures": [bench.as_json(picture) for picture in pictures],
            }
        )
    if options.json:
        print(json.dumps(report, indent=2))
    return 0


def _sides(text: str) -> tuple[int, int]:
    """ "1024" or "1024x512" as (width, height)."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"The size is {text!r}; expected pixels such as 1024 or 1024x768.")
    return int(parts[0]), int(parts[-1])


def _about(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "precision": manifest.precision,
        "source": manifest.source,
        "bytes": sum(record.bytes for record in manifest.files.values()),
    }


def _stages(
    bundle: Bundle,
    backend: Backend,
    settings: Settings,
    wanted: Sequence[Size],
    options: argparse.Namespace,
    steps: int,
) -> tuple[list[Timing], dict[str, float]]:
    """Time every component at every size; one that does not depend on the size, at every batch."""
    from tqdm import tqdm

    from kandinsky22 import bench

    names = options.component or list(bundle.manifest.components)
    timings, loads = [], {}
    plan = {}
    for name in names:
        bundle.component(name)
        sized = bench.depends_on_size(bundle, name)
        plan[name] = wanted if sized else list({size.batch: size for size in reversed(wanted)}.values())
    with tqdm(
        total=sum(map(len, plan.values())) * (options.repeat + 1), unit="run", disable=True if options.quiet else None
    ) as bar:
        for name, its_sizes in plan.items():
            bar.set_description(f"{name}: loading")
            stage = bench.Stage(bundle, name, backend, settings, steps)
            loads[name] = stage.load_seconds
            for size in its_sizes:
                bar.set_description(f"{name} {size}")
                timing = bench.time_stage(
                    stage, size, repeat=options.repeat, patience=options.patience, on_run=lambda _: bar.update()
                )
                bar.total -= options.repeat - len(timing.seconds)
                timings.append(timing)
            stage.close()
    return timings, loads


def _pictures(bundle: Bundle, backend: str, wanted: Sequence[Size], options: argparse.Namespace) -> list[Picture]:
    """Time whole pictures, where the bundle can make them."""
    from tqdm import tqdm

    from kandinsky22 import bench
    from kandinsky22.pipeline import Pipeline

    needed = {"text_encoder", "prior_step", "decoder_step", "movq_decoder"}
    if not options.pictures or options.component or not needed <= set(bundle.manifest.components):
        return []
    found = []
    plan = [(size, steps) for size in wanted for steps in options.steps or [50]]
    for size, steps in tqdm(plan, desc="pictures", disable=True if options.quiet else None):
        started = time.perf_counter()
        with Pipeline.load(
            bundle.path,
            backend,
            precision=options.precision,
            threads=options.threads,
            low_memory=options.low_memory,
            memory_limit=None,
        ) as pipe:
            opened = time.perf_counter() - started
            for index in range(options.pictures):
                picture = bench.time_picture(
                    pipe, size, steps=steps, prior_steps=options.prior_steps, scheduler=options.scheduler
                )
                if index == 0:
                    total = picture.timings["total"] + opened
                    picture = dataclasses.replace(picture, timings={**picture.timings, "total": total})
                found.append(picture)
    return found


def _stage_table(timings: Sequence[Timing], loads: dict[str, float]) -> str:
    rows: list[tuple[str, ...]] = [
        ("stage", "size", "runs", "p50 ms", "p90 ms", "p99 ms", "pictures/s", "peak MiB", "GPU MiB", "load s")
    ]
    for timing in timings:
        p50, p90, p99 = (timing.percentile(share) for share in (50, 90, 99))
        rows.append(
            (
                timing.stage,
                str(timing.size),
                str(len(timing.seconds)),
                *(f"{1000 * seconds:.1f}" for seconds in (p50, p90, p99)),
                f"{timing.size.batch / p50:.3g}",
                f"{timing.memory.host / MIB:.0f}",
                f"{timing.memory.device / MIB:.0f}" if timing.memory.device else "-",
                f"{loads[timing.stage]:.1f}",
            )
        )
    return columns(rows)


def _picture_table(pictures: Sequence[Picture]) -> str:
    stages = list(dict.fromkeys(stage for picture in pictures for stage in picture.timings))
    rows: list[tuple[str, ...]] = [("picture", "size", "steps", *(f"{stage} s" for stage in stages), "peak MiB")]
    for index, picture in enumerate(pictures):
        rows.append(
            (
                "first" if "load" in picture.timings and (index == 0 or picture.timings["load"] > 0) else "next",
                str(picture.size),
                f"{picture.prior_steps}+{picture.steps}",
                *(f"{picture.timings.get(stage, 0):.2f}" for stage in stages),
                f"{picture.memory.host / MIB:.0f}",
            )
        )
    return columns(rows)
