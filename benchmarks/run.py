"""The latency report: our runtime, its peers and the machine's own limit, measured in turns. `make bench` runs it.

Every measurement is kept as soon as it is made (reports/NAME.json), and one that is there is not made again: a run that
was stopped goes on where it was. docs/benchmarks.md says what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime"), str(HERE.parent / "export")]

import arithmetic  # noqa: E402
import report  # noqa: E402
import workers  # noqa: E402
from kandinsky22 import backends  # noqa: E402
from kandinsky22 import machine as this_machine  # noqa: E402
from kandinsky22.bundle.bundle import Bundle  # noqa: E402
from kandinsky22.errors import KandinskyError  # noqa: E402
from kandinsky22.measure import timing  # noqa: E402
from kandinsky22.measure.timing import Size  # noqa: E402
from progress import Progress, Work, rate  # noqa: E402
from store import MachineStore  # noqa: E402

PEERS: dict[str, dict[str, Any]] = {
    "diffusers fp32": {"kind": "diffusers", "precision": "fp32"},
    "diffusers fp32 compiled": {"kind": "diffusers", "precision": "fp32", "channels_last": True, "compile": True},
    "diffusers bf16": {"kind": "diffusers", "precision": "bf16", "channels_last": True},
    "diffusers bf16 compiled": {"kind": "diffusers", "precision": "bf16", "channels_last": True, "compile": True},
    "diffusers fp16": {"kind": "diffusers", "precision": "fp16", "channels_last": True, "device": "cuda"},
    "diffusers fp16 compiled": {
        "kind": "diffusers",
        "precision": "fp16",
        "channels_last": True,
        "device": "cuda",
        "compile": True,
    },
}
PRECISIONS = {"cpu": ("bf16", "fp32"), "cuda": ("fp16", "bf16", "fp32")}
"""Whose limits are measured on a device."""
STAGES = ("decoder_step", "movq_decoder", "prior_step", "text_encoder")
Sides = tuple[int, int]
"""Width and height of a picture."""


@dataclass(frozen=True)
class Case:
    """Subjects that are measured in turns at one size of one stage."""

    stage: str
    size: Size
    subjects: tuple[str, ...]
    repeat: int


def main() -> None:
    """Measure what is missing, and write the report."""
    try:
        options = _options()
        bundle = Bundle(options.bundle)
        cases, pictures = list(_cases(options, bundle)), _pictures(options)
        devices = _devices(options, bundle)
    except KandinskyError as error:
        raise SystemExit(f"error: {error}") from error
    path = options.reports / f"{options.name}.json"
    store = Store(path, machine(bundle, options.checkpoint))
    with contextlib.closing(Progress(_pending(store, bundle, cases, pictures, options.patience))) as progress:
        _measure_ceilings(store, options, devices, "before", progress)
        for case in cases:
            _measure_case(store, options, bundle, case, progress)
        for spec in pictures:
            _measure_picture(store, options, spec, progress)
        _measure_ceilings(store, options, devices, "after", progress)
    print(report.write(store.data, path.with_suffix("")), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, size = parser.add_argument, {"type": timing.sides, "metavar": "WxH"}
    usual = [(512, 512), (1024, 1024)]
    growth = [(side, side) for side in (384, 768, 1536, 2048)]
    add("bundle", type=Path, help="a bundle; fp16 is what our backends run best")
    add("--fp32-bundle", type=Path, help="the same checkpoint in fp32, for ONNX Runtime on the processor")
    add("--checkpoint", help="what the bundle was exported from (random weights of the published sizes)")
    add("--name", default=platform.node() or "machine", help="of the report (%(default)s)")
    add("--reports", type=Path, default=HERE / "reports", help="folder of reports (%(default)s)")
    add("--sizes", nargs="+", default=usual, help="pixels, against peers: 512 or 768x512 (512 1024)", **size)
    add("--growth", nargs="*", default=growth, help="sizes of ours alone (384 768 1536 2048)", **size)
    add("--batches", type=int, nargs="*", default=[2, 4, 8], help="at the smallest size, ours alone (%(default)s)")
    add("--backends", nargs="+", default=["openvino"], choices=backends.PREFERENCE, help="of ours (%(default)s)")
    add("--peers", nargs="*", default=["diffusers bf16"], choices=PEERS, help="at every size (%(default)s)")
    slow = ["diffusers fp32", "diffusers bf16 compiled"]
    add("--slow-peers", nargs="*", default=slow, choices=PEERS, help="at the smallest size (%(default)s)")
    add("--repeat", type=int, default=5, help="turns (%(default)s)")
    add("--patience", type=float, default=120, help="seconds of turns after which a case ends early (%(default)s)")
    add("--steps", type=int, nargs="*", default=[20], help="DPM-Solver++ steps of whole pictures (%(default)s)")
    add("--pictures", nargs="*", default=usual, help="sizes of whole pictures (512 1024)", **size)
    add("--quick", action="store_true", help="few turns at the size of training")
    options = parser.parse_args()
    for name in ("repeat", "patience"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}; expected more than 0")
    if options.quick:
        trained = Bundle(options.bundle).manifest.default_size
        options.sizes = options.pictures = [(trained, trained)]
        options.growth, options.batches = [], []
        options.repeat, options.slow_peers = 3, ["diffusers fp32"]
    options.reports.mkdir(parents=True, exist_ok=True)
    return options


def _pixels(sides: Sides) -> int:
    return sides[0] * sides[1]


def _cases(options: argparse.Namespace, bundle: Bundle) -> Iterator[Case]:
    """All that is to be measured, stage by stage. Raises InputError for sizes that cannot be."""
    ours = tuple(f"ours {backend}" for backend in options.backends)
    timing.sizes(bundle, [*options.sizes, *options.growth, *options.pictures], [1])
    first = _size(min(options.sizes, key=_pixels))
    smallest = min([*options.sizes, *options.growth], key=_pixels)
    few = max(options.repeat // 2, 1)
    for stage in STAGES:
        slow = tuple(options.slow_peers) + (("ours onnxruntime",) if options.fp32_bundle else ())
        sized = timing.depends_on_size(bundle, stage)
        for size in map(_size, options.sizes) if sized else [first]:
            yield Case(stage, size, (*ours, *options.peers), options.repeat)
        # Subjects that do not fit beside the others, each against the first of ours.
        for subject in slow:
            yield Case(stage, first, (ours[0], subject), few)
        if options.fp32_bundle and stage == "movq_decoder" and (1024, 1024) in options.sizes:
            yield Case(stage, Size(1024, 1024), ("ours onnxruntime",), 1)
        if sized:
            for sides in options.growth:
                yield Case(stage, _size(sides), ours[:1], few)
            for batch in options.batches:
                yield Case(stage, _size(smallest, batch), ours[:1], few)


def _size(sides: Sides, batch: int = 1) -> Size:
    return Size(height=sides[1], width=sides[0], batch=batch)


def _spec(options: argparse.Namespace, stage: str, subject: str) -> dict[str, Any]:
    """What subjects.py is told."""
    if subject.startswith("ours "):
        backend = subject.removeprefix("ours ")
        wide = backend == "onnxruntime" and options.fp32_bundle
        return {"kind": "ours", "stage": stage, "backend": backend, "bundle": str(wide or options.bundle)}
    return {**PEERS[subject], "stage": stage, "checkpoint": options.checkpoint}


def _devices(options: argparse.Namespace, bundle: Bundle) -> list[str]:
    """Where subjects run, "cpu" or "cuda": the limits are measured there. Raises BackendError where one cannot run."""
    names = {*options.backends, *(["onnxruntime"] if options.fp32_bundle else [])}
    ours = {"cuda" if backends.get(name, bundle).availability(bundle).gpu else "cpu" for name in names}
    return sorted(ours | {PEERS[peer].get("device", "cpu") for peer in (*options.peers, *options.slow_peers)})


def _pending(
    store: Store, bundle: Bundle, cases: Iterable[Case], pictures: Iterable[dict[str, Any]], patience: float
) -> dict[Hashable, Work]:
    """What is not measured yet, with its arithmetic; a picture by its settings as text."""
    found: dict[Hashable, Work] = {}
    for case in cases:
        if not store.has(case):
            turn = len(case.subjects) * _flop(bundle, case.stage, case.size)
            found[case] = Work(turn, case.repeat, patience)
    for spec in pictures:
        if not store.has_picture(spec):
            size = Size(spec["height"], spec["width"])
            runs = {
                "text_encoder": 1,
                "prior_step": spec["prior_steps"],
                "decoder_step": spec["steps"],
                "movq_decoder": 1,
            }
            found[repr(spec)] = Work(
                spec["pictures"] * sum(count * _flop(bundle, stage, size) for stage, count in runs.items())
            )
    return found


@functools.cache
def _flop(bundle: Bundle, stage: str, size: Size) -> int:
    """FLOP of a run."""
    return arithmetic.flop(bundle.graph(stage), timing.shapes(bundle, stage, size))


def _measure_case(store: Store, options: argparse.Namespace, bundle: Bundle, case: Case, progress: Progress) -> None:
    """Measure a case, if it is missing, in processes of its own: none has the memory of a case before.

    A subject that cannot be started, or that fails, is kept as such; the others go on.
    """
    if store.has(case):
        return
    progress.begin(f"{case.stage} {case.size}", rate(store.data["stages"]))
    failed, started = [], []
    with contextlib.ExitStack() as stack:
        for name in case.subjects:
            progress.tell(f"loading {name}")
            spec = _spec(options, case.stage, name)
            try:
                worker = workers.Worker(name, spec, _log(options))
            except workers.WorkerError as error:
                failed.append(workers.failure(name, spec, case.size, str(error)))
                continue
            stack.callback(worker.close)
            started.append(worker)
        results = workers.take_turns(
            started, case.size, case.repeat, options.patience, lambda s: progress.tell(f"{s:.2f} s a run")
        )
    store.add(case, [*results, *failed], _flop(bundle, case.stage, case.size))
    progress.done(case)


def _log(options: argparse.Namespace) -> Path:
    """What processes print beside their answers."""
    path: Path = options.reports / f"{options.name}.log"
    return path


def _measure_ceilings(
    store: Store, options: argparse.Namespace, devices: Iterable[str], when: str, progress: Progress
) -> None:
    """The machine's limits, before all else and after: that they agree tells that it was the same machine.

    One that cannot be measured, such as a GPU's where there is none, is kept as None.
    """
    if when in store.data["ceilings"]:
        return
    progress.begin("the machine's limits", rate(store.data["stages"]))
    found: dict[str, float | None] = {}
    for device in devices:
        kinds = [(what, precision) for what in ("matmul", "convolution") for precision in PRECISIONS[device]]
        for what, precision in [*kinds, ("copy", "")]:
            name = report.ceiling_name(what, precision, device)
            spec = {"kind": "ceiling", "what": what, "precision": precision, "device": device}
            found[name] = _ceiling(name, spec, _log(options))
    store.data["ceilings"][when] = found
    store.save()


def _ceiling(name: str, spec: dict[str, Any], log: Path) -> float | None:
    """The best of seven runs, in TFLOP/s or GB/s; None where it failed."""
    try:
        with contextlib.closing(workers.Worker(name, spec, log)) as worker:
            worker.run()
            return 1 / min(worker.run()["seconds"] for _ in range(7))
    except workers.WorkerError:
        return None


def _pictures(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole pictures: with all stages kept in memory where two are made, one stage at a time for the large."""
    smallest = min(map(_pixels, options.pictures), default=0)
    return [
        {
            "bundle": str(options.bundle),
            "backend": options.backends[0],
            "height": sides[1],
            "width": sides[0],
            "steps": steps,
            "prior_steps": 25,
            "scheduler": "dpm++",
            "low_memory": low,
            "pictures": 1 if low else 2,
        }
        for sides in options.pictures
        for steps in options.steps
        for low in ([True] if _pixels(sides) > smallest else [False, True])
    ]


def _measure_picture(store: Store, options: argparse.Namespace, spec: dict[str, Any], progress: Progress) -> None:
    """Make whole pictures, if they are missing; that they failed is kept, too."""
    if store.has_picture(spec):
        return
    size = Size(spec["height"], spec["width"])
    progress.begin(f"picture {size}, {spec['steps']} steps", rate(store.data["stages"]))
    result = workers.alone("The picture", [str(HERE / "picture.py"), json.dumps(spec)], _log(options))
    store.keep("pictures", {"settings": spec, **result})
    progress.done(repr(spec))


class Store(MachineStore):
    """What the report is made of."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        super().__init__(path, machine, ceilings={}, stages=[], pictures=[])

    def has(self, case: Case) -> bool:
        """Whether a case is measured: every subject of it has a result, if only that it failed."""
        found = {result["subject"] for result in self.data["stages"] if result["case"] == repr(case)}
        return found >= set(case.subjects)

    def has_picture(self, spec: dict[str, Any]) -> bool:
        """Whether whole pictures with these settings were made, or tried."""
        return any(done["settings"] == spec for done in self.data["pictures"])

    def add(self, case: Case, results: Iterable[dict[str, Any]], flop: int) -> None:
        """Keep a case's results, in the place of those of it that are there."""
        self.data["stages"] = [result for result in self.data["stages"] if result["case"] != repr(case)]
        self.keep("stages", *({"case": repr(case), "flop": flop, **result} for result in results))


def machine(bundle: Bundle, checkpoint: str | None = None) -> dict[str, Any]:
    """What measurements depend on beside the code."""
    processor = this_machine.processor()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return {
        "processor": f"{processor.name}, {this_machine.cores()} cores",
        "instructions": [flag for flag in wanted if flag in processor.flags],
        "memory": this_machine.total_memory(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "gpu": "; ".join(this_machine.nvidia_gpus()),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "bundle": {
            "name": bundle.manifest.name,
            "precision": bundle.manifest.precision,
            "source": bundle.manifest.source,
            "files": {name: record.bytes for name, record in bundle.manifest.files.items()},
        },
        "checkpoint": checkpoint or "random weights of the published sizes",
    }


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
