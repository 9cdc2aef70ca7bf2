"""`kandinsky22 bench`: how fast a bundle is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.bundle.manifest import PRECISIONS
from kandinsky22.cli import flags
from kandinsky22.cli.printable import printable
from kandinsky22.cli.tables import columns

if TYPE_CHECKING:
    from kandinsky22.backends import Backend
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.measure.suite import Suite
    from kandinsky22.measure.timing import Size

MIB = 1 << 20
Results = Sequence[Mapping[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Close other programs first: what runs beside it is measured too."
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    add("--backend", metavar="NAME", action="append", help="may be given several times (the fastest here)")
    add("--precision", choices=PRECISIONS, default="auto", help="(%(default)s: the backend's best)")
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
    flags.add_verify(parser)
    add("--report", metavar="FILE", help="keep every measurement here as JSON, and go on from those that are there")
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Measure, and print tables; the exit code. What was measured is printed, too, where the rest fails."""
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.measure import suite

    bundle = Bundle(options.bundle, options.verify)
    asked = _suite(bundle, options)
    backends = _backends(bundle, options, asked)
    report = suite.open_report(asked, None if options.report is None else Path(options.report))
    entries = [suite.entry_of(report, backend.availability(bundle)) for backend in backends]
    report.save()  # here, where a file that cannot be written has cost no time
    if not options.json:
        print(_title(report.data["bundle"]), end="\n\n", flush=True)
    try:
        for backend, entry in zip(backends, entries, strict=True):
            try:
                suite.measure_components(asked, backend, report, entry["stages"])
                suite.measure_pictures(asked, report, entry)
            finally:
                if not options.json:
                    print(_tables(entry), end="\n\n", flush=True)
    finally:
        if options.json:
            print(json.dumps(report.data, indent=2), flush=True)
    return 0


def _suite(bundle: Bundle, options: argparse.Namespace) -> Suite:
    """Check all that was asked for, so that no mistake shows after an hour of measuring."""
    from kandinsky22 import backends
    from kandinsky22.measure import suite, timing

    _check_numbers(options)
    texts = options.size or [f"{bundle.manifest.default_size}"]
    wanted = timing.sizes(bundle, [timing.sides(text) for text in texts], options.batch or [1])
    steps = list(dict.fromkeys(options.steps or [50]))
    _check_schedulers(bundle, options, wanted, steps)
    names = list(dict.fromkeys(options.component or bundle.manifest.components))
    components = [(name, size) for name in names for size in _sizes(bundle, name, wanted)]
    components.sort(key=lambda component: component[1].pixels)  # what is freed may stay resident
    whole = options.pictures > 0 and not options.component and set(suite.PICTURE_ROLES) <= bundle.manifest.roles()
    return suite.Suite(
        bundle,
        backends.Settings(options.precision, options.threads),
        components,
        [(size, count) for size in wanted for count in steps] if whole else [],
        pictures_each=options.pictures,
        prior_steps=options.prior_steps,
        scheduler=options.scheduler,
        low_memory=options.low_memory,
        repeat=options.repeat,
        patience=options.patience,
        quiet=options.quiet,
    )


def _backends(bundle: Bundle, options: argparse.Namespace, asked: Suite) -> list[Backend]:
    """Those that were asked for, each once. Raises BackendError where one cannot run what is measured."""
    from kandinsky22 import backends

    found = {}
    for name in options.backend or ["auto"]:
        backend = backends.get(name, bundle)
        found[backend.availability(bundle).name] = backend
    names = {name for name, _ in asked.components}
    for backend in found.values():  # which refuses a precision, for one, when it loads: the least will tell
        backend.load(bundle, min(names, key=lambda name: bundle.component(name).parameters), asked.settings).close()
    return list(found.values())


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise InputError where a number cannot be."""
    from kandinsky22 import checks

    checks.whole("repeat", options.repeat, 1, checks.MAX_STEPS)
    checks.whole("prior_steps", options.prior_steps, 2, checks.MAX_STEPS)
    checks.whole("pictures", options.pictures, 0, checks.MAX_PICTURES)
    checks.positive("patience", options.patience)
    if options.threads is not None:
        checks.whole("threads", options.threads, 1, 1024)
    for batch in options.batch or ():
        checks.whole("batch", batch, 1, checks.MAX_PICTURES)
    for steps in options.steps or ():
        checks.whole("steps", steps, 1, checks.MAX_STEPS)


def _check_schedulers(
    bundle: Bundle, options: argparse.Namespace, wanted: Sequence[Size], steps: Sequence[int]
) -> None:
    """Raise InputError where the pipeline would refuse the scheduler, its steps, or a size because of it."""
    from kandinsky22.bundle.manifest import Role
    from kandinsky22.measure import timing
    from kandinsky22.request import embeddings, resolve

    manifest = bundle.manifest
    if Role.PRIOR in manifest.roles():
        embeddings.prior_schedule(manifest, options.prior_steps)
    for count in steps if Role.DECODER in manifest.roles() else ():
        schedule = resolve.decoder_schedule(manifest, Role.DECODER, options.scheduler, count)
        for size in wanted:
            _, channels, height, width = timing.shapes(bundle, manifest.name_of(Role.DECODER), size)["latents"]
            resolve.quantile_ranks(manifest, schedule, (channels, height, width))


def _sizes(bundle: Bundle, name: str, wanted: Sequence[Size]) -> list[Size]:
    """The sizes to measure a component at: where it does not depend on the size, the smallest of every batch."""
    from kandinsky22.measure import timing

    if timing.depends_on_size(bundle, name):
        return list(wanted)
    smallest: dict[int, Size] = {}
    for size in wanted:
        smallest.setdefault(size.batch, size)
    return list(smallest.values())


def _title(about: Mapping[str, Any]) -> str:
    return printable(f"{about['name']}, {about['precision']}, {about['bytes'] / 1e9:.2g} GB on disk")


def _tables(entry: Mapping[str, Any]) -> str:
    """What a backend is, and all that was measured of it."""
    tables = [_stage_table(entry["stages"])] if entry["stages"] else []
    tables += [_picture_table(entry["pictures"])] if entry["pictures"] else []
    heading = printable(f"{entry['name']} {entry['version']} ({entry['reason']})")
    return "\n\n".join([heading, *tables])


def _stage_table(results: Results) -> str:
    from kandinsky22.measure import timing

    rows: list[tuple[str, ...]] = [
        ("stage", "size", "runs", "p50 ms", "p90 ms", "p99 ms", "pictures/s", "peak MiB", "GPU MiB", "load s")
    ]
    names = list(dict.fromkeys(result["stage"] for result in results))
    for result in sorted(results, key=lambda result: names.index(result["stage"])):
        rows.append(
            (
                result["stage"],
                str(timing.size_of(result)),
                str(len(result["seconds"])),
                *(f"{1000 * result[share]:.1f}" for share in ("p50", "p90", "p99")),
                f"{result['pictures_a_second']:.3g}",
                f"{result['peak_host_memory'] / MIB:.0f}",
                f"{result['device_memory'] / MIB:.0f}" if result["device_memory"] else "-",
                f"{result['load_seconds']:.1f}",
            )
        )
    return columns(rows)


def _picture_table(results: Results) -> str:
    from kandinsky22.measure import timing

    stages = list(dict.fromkeys(stage for result in results for stage in result["timings"]))
    rows: list[tuple[str, ...]] = [("picture", "size", "steps", *(f"{stage} s" for stage in stages), "peak MiB")]
    for result in results:
        rows.append(
            (
                "first" if result["first"] else "next",
                str(timing.size_of(result)),
                f"{result['prior_steps']}+{result['steps']}",
                *(f"{result['timings'].get(stage, 0):.2f}" for stage in stages),
                f"{result['peak_host_memory'] / MIB:.0f}",
            )
        )
    return columns(rows)
