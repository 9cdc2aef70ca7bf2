"""Processor and memory of this machine, as Linux reports them. Each function says what it returns elsewhere."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True)
class Processor:
    """A processor's name, and its instruction flags as Linux names them; none on other systems."""

    name: str
    flags: frozenset[str]


@functools.cache
def processor() -> Processor:
    """The processor that this runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = pairs.get("model name") or platform.processor() or platform.machine()
    return Processor(name, frozenset((pairs.get("flags") or pairs.get("Features") or "").split()))


def cores() -> int:
    """Cores that this process may use: a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory that the machine has; None when unknown."""
    return _meminfo(_ROOT).get("MemTotal")


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that can be allocated without swapping; None when unknown.

    This is the kernel's MemAvailable, or less when the limit of this process' control group (version 2), or of one
    around it, leaves less. Files that were read and not used again count as free. `root` is the folder of /proc and
    /sys.
    """
    found = _meminfo(root).get("MemAvailable")
    limits = [] if found is None else [found]
    mounted = root / "sys/fs/cgroup"
    inner = mounted / _control_group(root).lstrip("/")
    for group in (inner, *inner.parents):
        with contextlib.suppress(OSError, ValueError, KeyError):  # the limit is "max" where the group has none
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
            limits.append(int((group / "memory.max").read_text()) - used)
        if group == mounted:
            break
    return min(limits, default=None)


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 when unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


def highest_resident_memory() -> int:
    """Highest `resident_memory` since the process began, or since a write to /proc/self/clear_refs; 0 when unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def nvidia_gpus() -> list[str]:
    """NVIDIA's GPUs as their driver tells them: name and driver version."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        told = subprocess.run(
            [command, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # the command is there, and no GPU or no driver
        return []
    return [line.strip() for line in told.stdout.splitlines() if line.strip()]


def _control_group(root: Path) -> str:
    """This process' control group of version 2, as a path below where the groups are mounted."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes, empty where there is none."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        return {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError):
        return {}
