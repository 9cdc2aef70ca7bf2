"""`kandinsky22-export`: the thin face over `export`. Results on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from kandinsky22.bundle.manifest import Component, Role
from kandinsky22.cli.parser import ArgumentParser
from kandinsky22.cli.printable import printable
from kandinsky22.errors import KandinskyError
from kandinsky22_export import signals

if TYPE_CHECKING:
    from kandinsky22.bundle.manifest import Manifest
    from kandinsky22_export.quantise.calibration import Calibration

STAGES = 5  # fetching, loading, references, tracing, comparing: what the bar counts of every component


READER_GONE = 141
"""What a shell says of a program that ended because nobody reads on: 128 and the number of SIGPIPE."""


class Parser(ArgumentParser):
    """argparse, with mistakes that a terminal shows and does not obey."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0, 1 for a mistake that the user can mend, 2 for the command line; for a signal, 128 and its number.
    """
    _escape_what_cannot_be_printed()
    stop = signals.Stop()
    try:
        stop.prepare()
        return _outcome(arguments, stop)
    except KeyboardInterrupt as stopped:
        return _stopped(stop, stopped)
    finally:
        stop.close()


def _outcome(arguments: Sequence[str] | None, stop: signals.Stop) -> int:
    """The exit code, after the sentence of what went wrong. Raises KeyboardInterrupt."""
    try:
        _run(_options(arguments), stop)
    except Exception as error:
        if stop.number:
            raise KeyboardInterrupt from error  # C code may make another error of it
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """The exit code for an error, after its sentence. Raises it again where it is a bug."""
    if isinstance(error, KandinskyError):
        return _fail(" ".join([str(error), *_notes(error)]))
    if isinstance(error, MemoryError):
        return _fail(" ".join(["There is not enough memory; try --jobs 1, or fewer --components.", *_notes(error)]))
    if isinstance(error, BrokenPipeError):
        # Whoever read the results has left, as `head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    if isinstance(error, OSError):
        return _fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    raise error


def _fail(sentence: str) -> int:
    print("kandinsky22-export:", printable(sentence.strip()), file=sys.stderr)
    return 1


def _stopped(stop: signals.Stop, stopped: KeyboardInterrupt) -> int:
    """The exit code for a signal, after its sentence: a note says what there is of the bundle, or for the next time."""
    notes = _notes(stopped)
    print(printable(f"Stopped; {' '.join(notes)}" if notes else signals.STOPPED), file=sys.stderr)
    return 128 + (stop.number or signal.SIGINT)


def _notes(error: BaseException) -> list[str]:
    """Sentences that an error was given on its way."""
    return list(getattr(error, "__notes__", ()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.random_weights is None):
        parser.error("give either SOURCE or --random-weights SEED")
    if options.random_weights is None and options.architecture is not None:
        parser.error("--architecture needs --random-weights SEED")
    return options


def _run(options: argparse.Namespace, stop: signals.Stop) -> None:
    destination = Path(options.output) if options.output else _default_destination(options)
    started = time.monotonic()
    manifest = _export(options, destination, stop)
    _report(manifest, destination, time.monotonic() - started, options.json)
    sys.stdout.flush()  # here, where it may still fail in one sentence


def _escape_what_cannot_be_printed() -> None:
    """Print what the streams' encoding lacks, such as a file's name that is not UTF-8, as Python's escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> Parser:
    parser = Parser(
        prog="kandinsky22-export",
        description="Export a Kandinsky 2.2 checkpoint to a bundle of ONNX graphs, each checked against torch.",
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a folder in diffusers' layout, or a Hub id (owner/name)")
    add("-o", "--output", metavar="FOLDER", help="the bundle to write (default: engines/NAME)")
    add("--prior", metavar="SOURCE", help="the prior's folder or Hub id (default: the one the model card names)")
    add("--controlnet", metavar="SOURCE", help="a decoder with a depth hint, to add to the bundle")
    add("--inpaint", metavar="SOURCE", help="an inpainting decoder, to add to the bundle")
    add("--precision", choices=("fp32", "fp16", "int8", "fp8"), default="fp32", help="of the networks (default: fp32)")
    add("--calibration", metavar="FILE", help="with int8, fp8 and --shallow: prompts to calibrate on, one a line")
    add("--calibration-seed", type=int, metavar="SEED", help="seed of the first prompt's picture (default: 0)")
    add("--calibration-samples", type=int, metavar="N", help="states of each step graph to calibrate on (default: 48)")
    add("--architecture", metavar="NAME", help="with --random-weights: the sizes to draw (default: kandinsky-2.2)")
    add("--random-weights", type=int, metavar="SEED", help="published sizes with random weights, without a download")
    add("--revision", help="branch, tag or commit of SOURCE on the Hub")
    add("--variant", choices=("none", "fp16"), help="which weights to read (default: the full ones, else fp16)")
    add("--max-size", type=int, default=2048, metavar="PIXELS", help="longest side of a picture (default: 2048)")
    add("--shallow", action="store_true", help="add steps that run the top of a UNet alone, for --skip shallow")
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


@contextlib.contextmanager
def _told(verbose: bool) -> Iterator[None]:
    """What the exporter, and with `verbose` the libraries, have to say: on stderr, above a progress bar."""
    from kandinsky22_export.quiet import quiet

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(printable(self.format(record)), file=sys.stderr)

    log = logging.getLogger("kandinsky22_export")
    handler = Handler()
    log.addHandler(handler)
    log.propagate = False
    try:
        with contextlib.nullcontext() if verbose else quiet():
            yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def _export(options: argparse.Namespace, destination: Path, stop: signals.Stop) -> Manifest:
    # Imported here: torch and diffusers take seconds, and --help needs neither.
    from kandinsky22_export.write_bundle import export

    stop.listen()
    components: set[str] = set()
    with (
        _told(options.verbose),
        tqdm(total=0, unit="stage", bar_format="{l_bar}{bar}| {elapsed}", file=sys.stderr) as bar,
    ):

        def note(component: str, stage: str) -> None:
            if stage == "fetching":  # the first that is heard of a component, of all before any is exported
                components.add(component)
                bar.total = STAGES * len(components)
            bar.set_description(printable(f"{component}: {stage}"))
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
            shallow=options.shallow,
            force=options.force,
            jobs=options.jobs,
            calibration=_calibration(options),
            note=note,
        )


def _calibration(options: argparse.Namespace) -> Calibration | None:
    """What the flags say of the calibration; None where they say nothing."""
    from kandinsky22.cli.prompts import read_prompts
    from kandinsky22_export.quantise.calibration import Calibration

    asked: dict[str, Any] = {}
    if options.calibration is not None:
        asked["prompts"] = tuple(read_prompts(options.calibration))
    if options.calibration_seed is not None:
        asked["seed"] = options.calibration_seed
    if options.calibration_samples is not None:
        asked["samples"] = options.calibration_samples
    return Calibration(**asked) if asked else None


def _report(manifest: Manifest, destination: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        result = {"path": str(destination), "seconds": round(seconds, 1), "manifest": dataclasses.asdict(manifest)}
        print(json.dumps(result, indent=2))
        return
    for name, component in manifest.components.items():
        size = sum(manifest.files[file].bytes for file in component.files)
        error, other = max(check.error for check in component.checks), "its decoder" if component.cut else "torch"
        print(
            f"{printable(name):<23} {_precision(component)}  {component.parameters / 1e6:8.1f} M parameters"
            f"  {size / 1e6:8.1f} MB  largest difference from {other} {error:.1e}"
        )
    for name, component in manifest.components.items():
        if (found := component.quantisation) is not None:
            kept = printable(", ".join(found.kept)) or "none"
            print(
                f"{printable(name):<23} {found.layers} layers in {found.type}, off by {found.error:.1e} of the output; "
                f"kept in {component.precision}: {kept}"
            )
    if Role.PRIOR not in manifest.roles():
        print("There is no prior in this bundle: it makes pictures from image embeddings only.", file=sys.stderr)
    print(printable(str(destination)))


def _precision(component: Component) -> str:
    return component.quantisation.type if component.quantisation is not None else component.precision


if __name__ == "__main__":
    sys.exit(main())
