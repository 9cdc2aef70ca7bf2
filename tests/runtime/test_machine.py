"""What is read of the machine, on made-up ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kandinsky22 import machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       4000 kB\nMemAvailable:   3000 kB\nHugePages_Total:       0\n"}
GROUP = {
    "sys/fs/cgroup/memory.max": "2000000\n",
    "sys/fs/cgroup/memory.current": "900000\n",
    "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 400000\nactive_file 7\n",
}


def inner(limit: str) -> dict[str, str]:
    """A group within, as systemd makes them, which 100000 bytes are used of."""
    folder = "sys/fs/cgroup/user.slice/run.scope"
    used = {f"{folder}/memory.current": "100000\n", f"{folder}/memory.stat": "inactive_file 0\n"}
    return {"proc/self/cgroup": "0::/user.slice/run.scope\n", f"{folder}/memory.max": limit, **used}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        (MEMINFO, 3000 * 1024),
        (GROUP, 2000000 - (900000 - 400000)),
        ({**MEMINFO, **GROUP}, 1500000),
        ({**MEMINFO, **GROUP, "sys/fs/cgroup/memory.max": "9000000\n"}, 3000 * 1024),
        ({**MEMINFO, **GROUP, "sys/fs/cgroup/memory.max": "max\n"}, 3000 * 1024),
        ({"proc/meminfo": "nothing of this kind"}, None),
        ({**MEMINFO, **GROUP, **inner("300000\n")}, 200000),
        ({**MEMINFO, **GROUP, **inner("max\n")}, 1500000),
    ],
)
def test_available_memory_is_the_smaller_of_two_limits(
    files: dict[str, str], available: int | None, tmp_path: Path
) -> None:
    assert machine.available_memory(write(tmp_path, files)) == available


def test_this_machine_is_read() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("NOT TESTED: this system has no /proc")
    total, available = machine.total_memory(), machine.available_memory()
    assert total is not None
    assert available is not None
    assert 1 << 20 < available <= total
    assert total == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.1)
    block = b"x" * (100 << 20)
    assert 100 << 20 < machine.resident_memory() <= machine.highest_resident_memory()
    assert len(block) < available
    assert machine.processor().name
    assert machine.processor().flags
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'NVIDIA H100 80GB HBM3, 570.1'", ["NVIDIA H100 80GB HBM3, 570.1"]), ("echo No devices; exit 6", [])],
)
def test_gpus_are_what_the_driver_tells(
    script: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert machine.nvidia_gpus() == expected
