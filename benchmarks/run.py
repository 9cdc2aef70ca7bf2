"""The latency report: our runtime, its peers and the machine's own limit, measured in turns. `make bench` runs it.

    python -m benchmarks.run engines/kandinsky-2.2-random --name my-machine

Every measurement is kept as soon as it is made (reports/NAME.json), and one that is there is not made again: a run that
was stopped goes on where it was. docs/benchmarks.md says what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks import comparisons, latency, machine, markdown
from benchmarks.command import REPORTS, one_sentence
from benchmarks.comparisons import PEERS
from benchmarks.progress import Progress
from kandinsky22 import backends
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.measure import timing


@one_sentence()
def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    bundle = Bundle(options.bundle)
    asked, pictures = list(comparisons.comparisons(options, bundle)), comparisons.pictures(options)
    devices = comparisons.devices(options, bundle)
    path = options.reports / f"{options.name}.json"
    found = latency.LatencyMeasurements(path, machine.describe(bundle, options.checkpoint))
    with contextlib.closing(Progress(latency.pending(found, bundle, asked, pictures, options.patience))) as progress:
        latency.measure_ceilings(found, options, devices, "before", progress)
        for comparison in asked:
            latency.measure_comparison(found, options, bundle, comparison, progress)
        for settings in pictures:
            latency.measure_picture(found, options, settings, progress)
        latency.measure_ceilings(found, options, devices, "after", progress)
    print(markdown.write(found.data, path.with_suffix("")), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    size: dict[str, Any] = {"type": timing.sides, "metavar": "WxH"}
    usual = [(512, 512), (1024, 1024)]
    growth = [(side, side) for side in (384, 768, 1536, 2048)]
    add("bundle", type=Path, help="a bundle; fp16 is what our backends run best")
    add("--fp32-bundle", type=Path, help="the same checkpoint in fp32, for ONNX Runtime on the processor")
    add("--checkpoint", help="what the bundle was exported from (random weights of the published sizes)")
    add("--name", default=platform.node() or "machine", help="of the report (%(default)s)")
    add("--reports", type=Path, default=REPORTS, help="folder of reports (%(default)s)")
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


if __name__ == "__main__":
    main()
