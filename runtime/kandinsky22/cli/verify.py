"""`kandinsky22 verify`: compare a backend with ONNX Runtime on the CPU, component by component."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kandinsky22.bundle.manifest import PRECISIONS
from kandinsky22.cli import flags
from kandinsky22.cli.printable import printable
from kandinsky22.cli.tables import columns
from kandinsky22.errors import BackendError, InputError

if TYPE_CHECKING:
    from kandinsky22.measure.verify import Check

PLACES = ("min", "opt", "max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "The exit code is 1 where an error is beyond its bound: do not use that backend or those plans."
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    add("--backend", metavar="NAME", default="auto", help="what is verified (%(default)s: the fastest here)")
    add("--precision", choices=PRECISIONS, default="auto", help="of the backend (%(default)s: its best)")
    add("--component", metavar="NAME", action="append", help="only this one; may be given several times (all)")
    add("--at", choices=PLACES, action="append", help="only here in the profile; may be given several times (all)")
    add("--min", metavar="PIXELS", type=int, help="smallest side, for backends without plans (384)")
    add("--opt", metavar="PIXELS", type=int, help="usual side (1024)")
    add("--max", metavar="PIXELS", type=int, help="largest side (2048): minutes and gigabytes on a processor")
    add("--batch", metavar="N", type=int, default=1, help="pictures at once, at the largest (%(default)s)")
    add("--seed", metavar="N", type=int, default=0, help="of the random inputs (%(default)s)")
    flags.add_verify(parser)
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Verify, and print the table; the exit code."""
    from kandinsky22 import backends
    from kandinsky22.backends.tensorrt.profile import Profile, default_profile
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.measure import verify

    bundle = Bundle(options.bundle, options.verify)
    if options.seed < 0:
        raise InputError(f"The seed is {options.seed}; expected 0 or more.")
    backend = backends.get(options.backend, bundle)
    usual = default_profile(bundle)
    profile = Profile(
        options.min or min(usual.minimum, options.max or usual.maximum),
        options.opt or min(usual.optimum, options.max or usual.maximum),
        options.max or usual.maximum,
        options.batch,
    )
    profile.check(bundle)
    checks = verify.verify(
        bundle,
        backend,
        settings=backends.Settings(options.precision),
        components=options.component,
        places=options.at or PLACES,
        profile=profile,
        seed=options.seed,
        on_check=lambda check: print(_line(check), file=sys.stderr),
    )
    wrong = sorted({check.component for check in checks if not check.good})
    if options.json:
        found = [_as_json(check) for check in checks]
        print(json.dumps({"backend": dataclasses.asdict(backend.availability(bundle)), "checks": found}, indent=2))
    else:
        print(table(checks))
    sys.stdout.flush()
    if wrong:
        raise BackendError(f"{', '.join(wrong)}: the numbers are wrong; do not make pictures with this backend.")
    return 0


def _line(check: Check) -> str:
    return printable(f"{check.component} at {check.place}: {check.output}")


def table(checks: Sequence[Check]) -> str:
    """Checks as text, a line each."""
    rows = [("component", "at", "output", "precision", "error", "allowed", "largest", "allowed", "")]
    rows += [
        (
            check.component,
            check.place,
            check.output,
            check.precision,
            f"{check.typical:.1e}",
            f"{check.bounds.typical:.0e}",
            f"{check.largest:.1e}",
            f"{check.bounds.largest:.0e}",
            "ok" if check.good else "WRONG",
        )
        for check in checks
    ]
    return columns(rows)


def _as_json(check: Check) -> dict[str, Any]:
    return {**dataclasses.asdict(check), "bounds": dataclasses.asdict(check.bounds), "good": check.good}
