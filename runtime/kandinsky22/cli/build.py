"""`kandinsky22 build`: TensorRT plans from a bundle's graphs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kandinsky22.cli import flags
from kandinsky22.cli.tables import columns
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    from kandinsky22.backends.tensorrt.profile import Profile
    from kandinsky22.backends.tensorrt.records import PlanRecord
    from kandinsky22.bundle.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Plans that are there already are kept: a build that was stopped goes on where it was. TensorRT builds for the "
        "GPU of this machine; TensorRT for RTX needs no GPU, and builds for GeForce and RTX cards. docs/tensorrt.md "
        "tells more."
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    add(
        "--flavour",
        metavar="NAME",
        default="auto",
        help="tensorrt or tensorrt-rtx (%(default)s: tensorrt on a machine with a GPU, tensorrt-rtx on one without, "
        "as far as they are installed)",
    )
    add("--component", metavar="NAME", action="append", help="build this one alone; may be repeated (all)")
    _add_profile_arguments(parser.add_argument_group("pictures, sides in pixels"))
    _add_build_arguments(parser.add_argument_group("building"))


def _add_profile_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--min", metavar="PIXELS", type=int, help="smallest side (384)")
    add("--opt", metavar="PIXELS", type=int, help="side that plans are tuned for (1024)")
    add("--max", metavar="PIXELS", type=int, help="largest side (what the bundle was exported for)")
    add("--static", metavar="PIXELS", type=int, help="this size alone, square; faster, and less memory")
    add("--batch", metavar="N", type=int, default=1, help="pictures at once, 1 to N (%(default)s)")


def _add_build_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--target", metavar="X.Y", action="append", help="compute capability to build for, RTX only; may be repeated")
    add("--allow-unfused", action="store_true", help="build even where attention would run without a fused kernel")
    add("--rebuild", action="store_true", help="build again what is there")
    add("--force", action="store_true", help="build in less memory than it is known to take")
    flags.add_verify(group)
    add("--json", action="store_true", help="print the records of the plans, as JSON")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Build; the exit code."""
    from kandinsky22.backends.tensorrt import build
    from kandinsky22.backends.tensorrt.builder import Options
    from kandinsky22.bundle.bundle import Bundle

    bundle = Bundle(options.bundle, options.verify)
    flavour = build.flavour_to_build(options.flavour)
    records = build.build(
        bundle,
        flavour,
        _profile(bundle, options),
        components=options.component,
        options=Options(tuple(options.target or ()), options.allow_unfused),
        progress=not options.quiet,
        force=options.force,
        rebuild=options.rebuild,
    )
    for record in records:
        for warning in record.warnings:
            warnings.warn(f"{record.component}: {warning}", stacklevel=1)
    print(json.dumps([dataclasses.asdict(each) for each in records], indent=2) if options.json else _text(records))
    return 0


def _profile(bundle: Bundle, options: argparse.Namespace) -> Profile:
    """The profile that the options ask for; what they leave open is the default's, within what they say."""
    from kandinsky22.backends.tensorrt.profile import Profile, default_profile

    given = (options.min, options.opt, options.max)
    if options.static is not None:
        if any(side is not None for side in given):
            raise InputError("--static is one size alone; leave --min, --opt and --max out.")
        return Profile(options.static, options.static, options.static, options.batch)
    default = default_profile(bundle)
    largest = default.maximum if options.max is None else options.max
    smallest = min(default.minimum, largest) if options.min is None else options.min
    tuned = max(smallest, min(default.optimum, largest)) if options.opt is None else options.opt
    return Profile(smallest, tuned, largest, options.batch)


def _text(records: Sequence[PlanRecord]) -> str:
    """A table for reading: a plan a line."""
    rows = [("component", "plan", "weights", "built in", "peak memory", "layers", "attention fused")]
    rows += [
        (
            record.component,
            _megabytes(record.bytes),
            _megabytes(record.weight_bytes),
            f"{record.seconds:.1f} s",
            _megabytes(record.peak_memory),
            _layers(record.report.layers),
            f"{record.report.fused} of {record.report.attention}",
        )
        for record in records
    ]
    return columns(rows)


def _layers(layers: Mapping[str, Mapping[str, int]]) -> str:
    """Layers by type, such as "212 Half, 20 Float"; most first."""
    counts = {dtype: sum(kinds.values()) for dtype, kinds in layers.items()}
    return (
        ", ".join(f"{counts[dtype]} {dtype}" for dtype in sorted(counts, key=lambda dtype: -counts[dtype]))
        or "not told"
    )


def _megabytes(count: int) -> str:
    """Bytes for reading."""
    return f"{count / 1e6:,.1f} MB"
