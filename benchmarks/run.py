"""The latency report: our runtime, its peers and the machine's own limit, measured in turns. `make bench` runs it.

Every measurement is kept as soon as it is made (reports/NAME.json), and one that is there is not made again: a run that
was stopped goes on where it was. docs/benchmarks.md says what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime"), str(HERE.parent / "export")]

import arithmetic  # noqa: E402
import report  # noqa: E402
from kandinsky22 import bench  # noqa: E402
from kandinsky22 import machine as this_machine  # noqa: E402
from kandinsky22.bench import Size  # noqa: E402
from kandinsky22.bundle import Bundle  # noqa: E402
from store import MachineStore  # noqa: E402
from workers import Worker, take_turns  # noqa: E402

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


@dataclass(frozen=True)
class Case:
    """Subjects that are measured in turns at one size of one stage."""

    stage: str
    size: Size
    subjects: tuple[str, ...]
    repeat: int


def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    bundle = Bundle(options.bundle)
    path = options.reports / f"{options.name}.json"
    store = Store(path, machine(bundle, options.checkpoint))
    cases = list(_cases(options, bundle))
    with tqdm(total=len(cases) + len(_pictures(options)) + 2, unit="case", dynamic_ncols=True) as bar:
        _measure_ceilings(store, options, "before", bar)
        for stage in dict.fromkeys(case.stage for case in cases):
            _measure_stage(store, options, bundle, [case for case in cases if case.stage == stage], bar)
        for spec in _pictures(options):
            bar.set_description(f"picture {spec['width']}x{spec['height']}, {spec['steps']} steps")
            if not any(done["settings"] == spec for done in store.data["pictures"]):
                store.keep("pictures", _picture(spec))
            bar.update()
        _measure_ceilings(store, options, "after", bar)
    print(report.write(store.data, path.with_suffix("")), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", type=Path, help="a bundle; fp16 is what our backends run best")
    add("--fp32-bundle", type=Path, help="the same checkpoint in fp32, for ONNX Runtime on the processor")
    add("--checkpoint", help="what the bundle was exported from (random weights of the published sizes)")
    add("--name", default=platform.node() or "machine", help="of the report (%(default)s)")
    add("--reports", type=Path, default=HERE / "reports", help="folder of reports (%(default)s)")
    add("--sizes", type=int, nargs="+", default=[512, 1024], help="pixels a side, against peers (%(default)s)")
    add("--growth", type=int, nargs="*", default=[384, 768, 1536, 2048], help="sizes of ours alone (%(default)s)")
    add("--batches", type=int, nargs="*", default=[2, 4, 8], help="at the smallest size, ours alone (%(default)s)")
    add("--backends", nargs="+", default=["openvino"], help="of ours (%(default)s)")
    add("--peers", nargs="*", default=["diffusers bf16"], choices=PEERS, help="at every size (%(default)s)")
    add("--slow-peers", nargs="*", default=["diffusers fp32", "diffusers bf16 compiled"], help="at the smallest size")
    add("--repeat", type=int, default=5, help="turns (%(default)s)")
    add("--patience", type=float, default=120, help="seconds of turns after which a case ends early (%(default)s)")
    add("--steps", type=int, nargs="*", default=[20], help="DPM-Solver++ steps of whole pictures (%(default)s)")
    add("--pictures", type=int, nargs="*", default=[512, 1024], help="sizes of whole pictures (%(default)s)")
    add("--quick", action="store_true", help="few turns at the size of training")
    options = parser.parse_args()
    if options.quick:
        trained = Bundle(options.bundle).manifest.default_size
        options.sizes, options.growth, options.batches, options.pictures = [trained], [], [], [trained]
        options.repeat, options.slow_peers = 3, ["diffusers fp32"]
    options.reports.mkdir(parents=True, exist_ok=True)
    return options


def _cases(options: argparse.Namespace, bundle: Bundle) -> Iterator[Case]:
    """All that is to be measured, stage by stage."""
    ours = tuple(f"ours {backend}" for backend in options.backends)
    first = min(options.sizes)
    for stage in STAGES:
        slow = tuple(options.slow_peers) + (("ours onnxruntime",) if options.fp32_bundle else ())
        sized = bench.depends_on_size(bundle, stage)
        for side in options.sizes if sized else [first]:
            yield Case(stage, Size(side, side), (*ours, *options.peers), options.repeat)
        # Subjects that do not fit beside the others, each against the first of ours.
        for subject in slow:
            yield Case(stage, Size(first, first), (ours[0], subject), max(options.repeat // 2, 1))
        if options.fp32_bundle and stage == "movq_decoder" and 1024 in options.sizes:
            yield Case(stage, Size(1024, 1024), ("ours onnxruntime",), 1)
        if sized:
            for side in options.growth:
                yield Case(stage, Size(side, side), ours[:1], max(options.repeat // 2, 1))
            for batch in options.batches:
                smallest = min([*options.sizes, *options.growth])
                yield Case(stage, Size(smallest, smallest, batch), ours[:1], max(options.repeat // 2, 1))


def _spec(options: argparse.Namespace, stage: str, subject: str) -> dict[str, Any]:
    """What subjects.py is told."""
    if subject.startswith("ours "):
        backend = subject.removeprefix("ours ")
        wide = backend == "onnxruntime" and options.fp32_bundle
        return {"kind": "ours", "stage": stage, "backend": backend, "bundle": str(wide or options.bundle)}
    return {**PEERS[subject], "stage": stage, "checkpoint": options.checkpoint}


def _measure_stage(
    store: Store, options: argparse.Namespace, bundle: Bundle, cases: Sequence[Case], bar: tqdm[Any]
) -> None:
    """Measure a stage's cases; subjects stay loaded from one case to the next that needs them."""
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for case in cases:
            bar.set_description(f"{case.stage} {case.size}")
            if not store.has(case):
                for name in [name for name in workers if name not in case.subjects]:
                    workers.pop(name).close()
                for name in case.subjects:
                    if name not in workers:
                        bar.set_postfix_str(f"loading {name}")
                        log = options.reports / f"{options.name}.log"
                        workers[name] = Worker(name, _spec(options, case.stage, name), log)
                        stack.callback(workers[name].close)
                chosen = [workers[name] for name in case.subjects]
                results = take_turns(
                    chosen, case.size, case.repeat, options.patience, lambda s: bar.set_postfix_str(f"{s:.2f} s a run")
                )
                graph = bundle.graph(case.stage)
                store.add(case, results, arithmetic.flop(graph, _shapes(bundle, case)))
            bar.update()


def _shapes(bundle: Bundle, case: Case) -> dict[str, tuple[int, ...]]:
    downscale = bundle.manifest.downscale
    values = {"B": case.size.batch, "G": 2, "h": case.size.height // downscale, "w": case.size.width // downscale}
    return {spec.name: spec.resolve(values) for spec in bundle.component(case.stage).inputs}


def _measure_ceilings(store: Store, options: argparse.Namespace, when: str, bar: tqdm[Any]) -> None:
    """The machine's limits, before all else and after: that they agree tells that it was the same machine."""
    bar.set_description("the machine's limits")
    if when not in store.data["ceilings"]:
        device = "cuda" if any("cuda" in PEERS[peer].get("device", "") for peer in options.peers) else "cpu"
        found = {}
        kinds = [(what, precision) for what in ("matmul", "convolution") for precision in PRECISIONS[device]]
        for what, precision in [*kinds, ("copy", "")]:
            name = f"{what} {precision}".strip()
            spec = {"kind": "ceiling", "what": what, "precision": precision, "device": device}
            worker = Worker(name, spec, options.reports / f"{options.name}.log")
            worker.run()
            seconds = [worker.run()["seconds"] for _ in range(7)]
            worker.close()
            found[name] = 1 / min(seconds)
        store.data["ceilings"][when] = found
        store.save()
    bar.update()


def _pictures(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole pictures: with all stages kept in memory where two are made, one stage at a time for the large."""
    return [
        {
            "bundle": str(options.bundle),
            "backend": options.backends[0],
            "height": side,
            "width": side,
            "steps": steps,
            "prior_steps": 25,
            "scheduler": "dpm++",
            "low_memory": low,
            "pictures": 1 if low else 2,
        }
        for side in options.pictures
        for steps in options.steps
        for low in ([True] if side > min(options.pictures) else [False, True])
    ]


def _picture(spec: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "picture.py"), json.dumps(spec)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


class Store(MachineStore):
    """What the report is made of."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        super().__init__(path, machine, ceilings={}, stages=[], pictures=[])

    def has(self, case: Case) -> bool:
        """Whether a case is measured."""
        return any(result["case"] == repr(case) for result in self.data["stages"])

    def add(self, case: Case, results: Iterable[dict[str, Any]], flop: int) -> None:
        """Keep a case's results."""
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
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
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
