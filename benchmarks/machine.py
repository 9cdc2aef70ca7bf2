"""The machine and bundle that measurements belong to, and their file."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from kandinsky22 import machine as this_machine
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Role
from kandinsky22.measure.report import Bytes, Measurements
from kandinsky22.schema import Rule

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""Those that a report tells of, where the processor has them."""


@dataclass(frozen=True)
class BundleRecord:
    """The bundle in a report; those of format 1 have no roles."""

    name: str
    precision: str
    source: dict[str, Any]
    files: dict[str, Bytes]
    roles: dict[str, Role] | None = None


@dataclass(frozen=True)
class MachineRecord:
    """The machine in a report, as `describe` gives it."""

    processor: str
    instructions: tuple[str, ...]
    memory: Bytes
    system: str
    gpu: str
    commit: str
    date: str
    command: str
    checkpoint: str
    bundle: BundleRecord


def describe(bundle: Bundle, checkpoint: str | None = None) -> dict[str, Any]:
    """What measurements depend on beside the code."""
    processor, manifest = this_machine.processor(), bundle.manifest
    return {
        "processor": f"{processor.name}, {this_machine.cores()} cores",
        "instructions": [flag for flag in INSTRUCTIONS if flag in processor.flags],
        "memory": this_machine.total_memory(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "gpu": "; ".join(this_machine.nvidia_gpus()),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "bundle": {
            "name": manifest.name,
            "precision": manifest.precision,
            "source": manifest.source,
            "files": {name: file.bytes for name, file in manifest.files.items()},
            "roles": {name: str(component.role) for name, component in manifest.components.items()},
        },
        "checkpoint": checkpoint or "random weights of the published sizes",
    }


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


TOTAL = Rule('timings with "total"', lambda timings: "total" in timings)


def complete(*names: str) -> Rule:
    """A result that says why it failed or was refused, or has a value of each name."""

    def holds(result: object) -> bool:
        failed = getattr(result, "error", "") or getattr(result, "refused", "")
        return bool(failed) or all(getattr(result, name) is not None for name in names)

    return Rule(f"an error, or {', '.join(names)}", holds)


def role_of(machine: Mapping[str, Any], component: str) -> Role | None:
    """What a component of the bundle in a report is for; None for other names, such as "load" among timings.

    Reports of bundles of format 1 do not say it. Their components have the words of the role for a name, in any order,
    with "step" among them for a network that is run step by step.
    """
    roles = machine["bundle"].get("roles")
    if roles is not None:
        return Role(roles[component]) if component in roles else None
    words = {word for word in component.split("_") if word != "step"}
    return next((role for role in Role if set(role.split("_")) == words), None)


class MachineMeasurements(Measurements):
    """Measurements of one machine and bundle (see `describe`), each with the commit that it was made at."""

    def __init__(
        self,
        path: Path,
        machine: dict[str, Any],
        empty: Mapping[str, Any],
        kind: type,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the file where there is one.

        Raises InputError where it is of another machine or bundle, or was made with other `settings`.
        """
        same = {"machine.processor": "of another processor", "machine.bundle": "of another bundle"}
        belongs_to: dict[str, Any] = {"machine": machine}
        if settings is not None:
            same["settings"], belongs_to["settings"] = "with other settings", settings
        super().__init__(path, belongs_to, empty, kind, same)
        self._commit = machine["commit"]

    def keep(self, kind: str, *results: dict[str, Any]) -> None:
        """Add results to those of a kind, and write the file."""
        self.data[kind] += [{"commit": self._commit, **result} for result in results]
        self.save()
