"""The runtime asks nothing of the outside: OpenVINO's telemetry is not sent."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

_TOLD = """
import os, sys
forked = []
os.register_at_fork(before=lambda: forked.append(1))
{lines}
import time; time.sleep(0.3)
print(len(forked), "openvino_telemetry" in sys.modules)
"""


def told(lines):
    found = subprocess.run(
        [sys.executable, "-c", _TOLD.format(lines=lines)], capture_output=True, text=True, check=True
    )
    return found.stdout.split()


def test_openvino_is_imported_without_its_telemetry():
    lines = "from kandinsky22 import backends\nbackends.get('openvino', None).availability()"
    assert told(lines) == ["0", "False"]


def test_a_telemetry_that_was_imported_before_is_left_alone():
    lines = (
        "import types; sys.modules['openvino_telemetry'] = here = types.ModuleType('openvino_telemetry')\n"
        "from kandinsky22 import openvino_core\nopenvino_core.imported()\n"
        "assert sys.modules['openvino_telemetry'] is here"
    )
    assert told(lines) == ["0", "True"]


def test_the_search_for_forks_finds_one():
    assert told("os.waitpid(os.fork() or os._exit(0), 0)")[0] == "1"
