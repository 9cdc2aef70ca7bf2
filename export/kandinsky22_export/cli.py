"""`kandinsky22-export`: the thin face over `export`. Results on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from kandinsky22.bundle.manifest import Role
from kandinsky22.errors import KandinskyError

if TYPE_CHECKING:
    from kandinsky22.bundle.manifest import Manifest

STAGES = 5  # fetching, loading, references, tracing, comparing: what the bar counts of every component


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for a mistake that the user can mend, 130 for Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.random_weights is None):
        parser.error("give either SOURCE or --random-weights SEED")
    if options.random_weights is None and options.architecture is not None:
        parser.error("--architecture needs --random-weights SEED")
    destination = Path(options.output) if options.output else _default_destination(options)
    started = time.monotonic()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it, nothing is left behind
    try:
        manifest = _export(options, destination)
    except KandinskyError as error:
        print(f"kandinsky22-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("Stopped;", *getattr(stop, "__notes__", ["nothing was written."]), file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _report(manifest, destination, time.monotonic() - started, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kandinsky22-export",
        description="Export a Kandinsky 2.2 checkpoint to a bundle of ONNX graphs, each checked against torch.",
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a folder in diffusers' layout, or a Hub id (owner/name)")
    add("-o", "--output", metavar="FOLDER", help="the bundle to write (default: engines/NAME)")
    add("--prior", metavar="SOURCE", help="the prior's folder or Hub id (default: the one the model card names)")
    add("--controlnet", metavar="SOURCE", help="a decoder with a depth hint, to add to the bundle")
    add("--inpaint", metavar="SOURCE", help="an inpainting decoder, to add to the bundle")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="of the networks (default: fp32)")
    add("--architecture", metavar="NAME", help="with --random-weights: the sizes to draw (default: kandinsky-2.2)")
    add("--random-weights", type=int, metavar="SEED", help="published sizes with random weights, without a download")
    add("--revision", help="branch, tag or commit of SOURCE on the Hub")
    add("--variant", choices=("none", "fp16"), help="which weights to read (default: the full ones, else fp16)")
    add("--max-size", type=int, default=2048, metavar="PIXELS", help="longest side of a picture (default: 2048)")
    add("--components", nargs="+", metavar="NAME", help="export only these")
    add("--jobs", type=int, default=1, metavar="N", help="components at a time, each with its own memory (default: 1)")
    add("--force", action="store_true", help="replace the bundle if it exists")
    add("--json", action="store_true", help="print the result as JSON")
    add("--verbose", action="store_true", help="show what torch, diffusers and transformers have to say")
    return parser


def _default_destination(options: argparse.Namespace) -> Path:
    if options.source is None:
        return Path("engines") / f"{options.architecture or 'kandinsky-2.2'}-random-{options.precision}"
    return Path("engines") / Path(os.path.abspath(options.source)).name


def _export(options: argparse.Namespace, destination: Path) -> Manifest:
    # Imported here: torch and diffusers take seconds, and --help needs neither.
    from kandinsky22_export.quiet import quiet
    from kandinsky22_export.write_bundle import export

    components: set[str] = set()
    with (
        contextlib.nullcontext() if options.verbose else quiet(),
        tqdm(total=0, unit="stage", bar_format="{l_bar}{bar}| {elapsed}", file=sys.stderr) as bar,
    ):

        def note(component: str, stage: str) -> None:
            if stage == "fetching":  # the first that is heard of a component, of all before any is exported
                components.add(component)
                bar.total = STAGES * len(components)
            bar.set_description(f"{component}: {stage}")
            bar.update(component in components)

        return export(
            options.source,
            destination,
            prior=options.prior,
            controlnet=options.controlnet,
            inpaint=options.inpaint,
            precision=options.precision,
            architecture=options.architecture or "kandinsky-2.2",
            random_weights=options.random_weights,
            revision=options.revision,
            variant=options.variant,
            max_size=options.max_size,
            components=options.components,
            force=options.force,
            jobs=options.jobs,
            note=note,
        )


def _report(manifest: Manifest, destination: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        result = {"path": str(destination), "seconds": round(seconds, 1), "manifest": dataclasses.asdict(manifest)}
        print(json.dumps(result, indent=2))
        return
    for name, component in manifest.components.items():
        size = sum(manifest.files[file].bytes for file in component.files)
        error = max(check.error for check in component.checks)
        print(
            f"{name:<23} {component.precision}  {component.parameters / 1e6:8.1f} M parameters"
            f"  {size / 1e6:8.1f} MB  largest difference from torch {error:.1e}"
        )
    if Role.PRIOR not in manifest.roles():
        print("There is no prior in this bundle: it makes pictures from image embeddings only.", file=sys.stderr)
    print(destination)


if __name__ == "__main__":
    sys.exit(main())
