"""`kandinsky22 bench`: how fast a bundle is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.tables import columns
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    from kandinsky22.backends import Availability, Backend, Settings
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.measure.timing import Size

MIB = 1 << 20
Results = Sequence[Mapping[str, Any]]


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
    add("--report", metavar="FILE", help="keep every measurement here as JSON, and go on from those that are there")
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Measure, and print tables; the exit code. What was measured is printed, too, where the rest fails."""
    from kandinsky22.bundle.bundle import Bundle

    bundle = Bundle(options.bundle)
    plan = _plan(bundle, options)
    report = Report(options.report, _about(bundle), _settings(options))
    entries = [report.backend(backend.availability(bundle)) for backend in plan.backends]
    report.save()  # here, where a file that cannot be written has cost no time
    if not options.json:
        print(_title(report.data["bundle"]), end="\n\n", flush=True)
    try:
        for backend, entry in zip(plan.backends, entries, strict=True):
            _measure(bundle, backend, plan, options, report, entry)
    finally:
        if options.json:
            print(json.dumps(report.data, indent=2), flush=True)
    return 0


@dataclass(frozen=True)
class Plan:
    """What is to be measured: components and sizes, sizes and decoder steps of whole pictures, on each backend."""

    backends: list[Backend]
    settings: Settings
    stages: list[tuple[str, Size]]
    pictures: list[tuple[Size, int]]


def _plan(bundle: Bundle, options: argparse.Namespace) -> Plan:
    """Check all that was asked for, so that no mistake shows after an hour of measuring."""
    from kandinsky22 import backends
    from kandinsky22.measure import timing

    _check_numbers(options)
    texts = options.size or [f"{bundle.manifest.default_size}"]
    wanted = timing.sizes(bundle, [timing.sides(text) for text in texts], options.batch or [1])
    steps = list(dict.fromkeys(options.steps or [50]))
    _check_schedulers(bundle, options, wanted, steps)
    names = list(dict.fromkeys(options.component or bundle.manifest.components))
    for name in names:
        bundle.component(name)
    needed = {"text_encoder", "prior_step", "decoder_step", "movq_decoder"}
    whole = options.pictures > 0 and not options.component and needed <= set(names)
    settings = backends.Settings(options.precision, options.threads)
    found = {}
    for name in options.backend or ["auto"]:
        backend = backends.get(name, bundle)
        found[backend.availability(bundle).name] = backend
    for backend in found.values():  # which refuses a precision, for one, when it loads: the least will tell
        backend.load(bundle, min(names, key=lambda name: bundle.component(name).parameters), settings).close()
    stages = [(name, size) for name in names for size in _sizes(bundle, name, wanted)]
    stages.sort(key=lambda stage: stage[1].pixels)  # of all components: what is freed may stay resident
    pictures = [(size, count) for size in wanted for count in steps] if whole else []
    return Plan(list(found.values()), settings, stages, pictures)


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
    from kandinsky22 import schedulers
    from kandinsky22.request import resolve
    from kandinsky22.schedulers import configs, ddpm

    manifest = bundle.manifest
    if "prior_step" in manifest.components:
        ddpm.unclip(manifest.schedulers["prior"], options.prior_steps)
    if "decoder_step" not in manifest.components:
        return
    config: Mapping[str, Any] = manifest.schedulers["decoder"]
    if options.scheduler is not None:
        config = configs.switch(config, options.scheduler)
    for count in steps:
        table = schedulers.solve(config, count)
        for size in wanted:
            latents = resolve.latent_size(size.height, size.width, manifest.downscale)
            resolve.quantile_ranks(manifest, table, (manifest.geometry["latent_channels"], *latents))


def _sizes(bundle: Bundle, name: str, wanted: Sequence[Size]) -> list[Size]:
    """The sizes to measure a component at: where it does not depend on the size, the smallest of every batch."""
    from kandinsky22.measure import timing

    if timing.depends_on_size(bundle, name):
        return list(wanted)
    smallest: dict[int, Size] = {}
    for size in wanted:
        smallest.setdefault(size.batch, size)
    return list(smallest.values())


def _about(bundle: Bundle) -> dict[str, Any]:
    from kandinsky22.bundle import bundle as bundles
    from kandinsky22.bundle import checksums

    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "precision": manifest.precision,
        "source": manifest.source,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "manifest_sha256": checksums.sha256(bundle.path / bundles.MANIFEST),
    }


def _title(about: Mapping[str, Any]) -> str:
    return f"{about['name']}, {about['precision']}, {about['bytes'] / 1e9:.2g} GB on disk"


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options that change what a measurement is; the others say which ones are made."""
    names = ("precision", "threads", "prior_steps", "scheduler", "repeat", "patience", "low_memory")
    return {name: getattr(options, name) for name in names}


class Report:
    """All that was measured, as JSON takes it: in a file, where one is named, that a later call goes on from."""

    def __init__(self, path: str | None, bundle: dict[str, Any], settings: dict[str, Any]) -> None:
        """Raises InputError where the file has measurements of another bundle or with other settings."""
        self._path = None if path is None else Path(path)
        self.data: dict[str, Any] = {"bundle": bundle, "settings": settings, "backends": []}
        if self._path is None or not self._path.exists():
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            kinds = {"bundle": "of another bundle", "settings": "with other settings"}
            others = [words for name, words in kinds.items() if found[name] != self.data[name]]
            self.data["backends"] = [
                {**entry, "stages": list(entry["stages"]), "pictures": list(entry["pictures"])}
                for entry in found["backends"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no report of this command; name another file, or remove it.") from error
        if others:
            raise InputError(f"{path} has measurements {others[0]}; name another file, or remove it.")

    def backend(self, availability: Availability) -> dict[str, Any]:
        """Where a backend's measurements go. Raises InputError where there are some of another version of it."""
        about = dataclasses.asdict(availability)
        entry: dict[str, Any]
        for entry in self.data["backends"]:
            if entry.get("name") == about["name"]:
                if any(entry.get(key) != value for key, value in about.items()):
                    raise InputError(f"{self._path} is of another {about['name']} or machine; name another file.")
                return entry
        entry = {**about, "stages": [], "pictures": []}
        self.data["backends"].append(entry)
        return entry

    def save(self) -> None:
        """Write the file, whole or not at all."""
        from kandinsky22 import files

        if self._path is not None:
            files.write_file(self._path, (json.dumps(self.data, indent=2) + "\n").encode())


def _measure(
    bundle: Bundle, backend: Backend, plan: Plan, options: argparse.Namespace, report: Report, entry: dict[str, Any]
) -> None:
    """Measure on one backend what its entry lacks, and print the tables: also where the rest fails."""
    try:
        _stages(bundle, backend, plan, options, report, entry["stages"])
        _pictures(bundle, plan, options, report, entry)
    finally:
        if not options.json:
            print(_tables(entry), end="\n\n", flush=True)


def _stages(
    bundle: Bundle,
    backend: Backend,
    plan: Plan,
    options: argparse.Namespace,
    report: Report,
    results: list[dict[str, Any]],
) -> None:
    """Time components at sizes. Each is loaded anew, so that none finds what was kept for the one before."""
    from tqdm import tqdm

    from kandinsky22.measure import timing

    done = {(result["stage"], timing.size_of(result)) for result in results}
    pending = [each for each in plan.stages if each not in done]
    steps = 10 if backend.availability(bundle).gpu else 1
    total = len(pending) * (options.repeat + 1)
    with tqdm(total=total, unit="run", disable=True if options.quiet else None) as bar:
        for index, (name, size) in enumerate(pending):
            seconds = sum(_guessed(results, *each, options.repeat, options.patience) for each in pending[index:])
            bar.set_description(f"{name} {size}" + (f", {timing.left(seconds)}" if seconds < math.inf else ""))
            with contextlib.closing(timing.Stage(bundle, name, backend, plan.settings, steps)) as stage:
                measured = timing.time_stage(
                    stage, size, repeat=options.repeat, patience=options.patience, on_run=lambda _: bar.update()
                )
            bar.total -= options.repeat - len(measured.seconds)
            results.append(timing.as_json(measured))
            report.save()


def _pictures(bundle: Bundle, plan: Plan, options: argparse.Namespace, report: Report, entry: dict[str, Any]) -> None:
    """Time whole pictures: some in one pipeline, of which the first loads. Those of a run that was stopped go anew."""
    from tqdm import tqdm

    from kandinsky22.measure import timing

    def made(size: Size, steps: int) -> list[dict[str, Any]]:
        return [each for each in entry["pictures"] if (timing.size_of(each), each["steps"]) == (size, steps)]

    pending = [each for each in plan.pictures if len(made(*each)) < options.pictures]
    seconds = [options.pictures * _estimated(entry["stages"], *each, options.prior_steps) for each in pending]
    form = "pictures, {desc} |{bar}| {elapsed}"
    with tqdm(total=sum(seconds), bar_format=form, disable=True if options.quiet else None) as bar:
        for (size, steps), its_seconds in zip(pending, seconds, strict=True):
            entry["pictures"] = [each for each in entry["pictures"] if each not in made(size, steps)]
            bar.set_description_str(f"{size}, {steps} steps: {timing.left(sum(seconds) - bar.n)}")
            _paint(bundle, size, steps, options, report, entry)
            bar.update(its_seconds)


def _paint(
    bundle: Bundle, size: Size, steps: int, options: argparse.Namespace, report: Report, entry: dict[str, Any]
) -> None:
    """Time the calls of one pipeline; the total of the first has the pipeline's opening in it."""
    from kandinsky22.measure import timing
    from kandinsky22.pipeline import Pipeline

    started = time.perf_counter()
    with Pipeline.load(
        bundle.path,
        entry["name"],
        precision=options.precision,
        threads=options.threads,
        low_memory=options.low_memory,
        memory_limit=None,
    ) as pipe:
        opened = time.perf_counter() - started
        for index in range(options.pictures):
            picture = timing.time_picture(
                pipe,
                size,
                steps=steps,
                prior_steps=options.prior_steps,
                scheduler=options.scheduler,
                first=index == 0,
            )
            picture.timings["total"] += opened if picture.first else 0
            entry["pictures"].append(timing.as_json(picture))
            report.save()


def _guessed(stages: Results, name: str, size: Size, repeat: int, patience: float) -> float:
    """Seconds of a measurement, by the component's last one and their pixels; infinite where there is none."""
    from kandinsky22.measure import timing

    last = next((result for result in reversed(stages) if result["stage"] == name), None)
    if last is None:
        return math.inf
    run = last["p50"] * size.pixels / timing.size_of(last).pixels
    return float(last["load_seconds"] + run * (1 + math.ceil(min(repeat, patience / run))))


def _estimated(stages: Results, size: Size, steps: int, prior_steps: int) -> float:
    """Seconds of a picture by the medians of its stages, without loading."""
    from kandinsky22.measure import timing

    runs = {"text_encoder": 1, "prior_step": prior_steps, "movq_decoder": 1, "decoder_step": steps}
    seconds = 0.0
    for result in stages:
        at = timing.size_of(result)
        unsized = result["stage"] in ("text_encoder", "prior_step") and at.batch == size.batch
        if result["stage"] in runs and (unsized or at == size):
            seconds += runs[result["stage"]] * result["p50"]
    return seconds


def _tables(entry: Mapping[str, Any]) -> str:
    """What a backend is, and all that was measured of it."""
    tables = [_stage_table(entry["stages"])] if entry["stages"] else []
    tables += [_picture_table(entry["pictures"])] if entry["pictures"] else []
    return "\n\n".join([f"{entry['name']} {entry['version']} ({entry['reason']})", *tables])


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
