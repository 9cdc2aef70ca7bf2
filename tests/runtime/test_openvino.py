"""What OpenVINO does to the process that it runs in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kandinsky22.bundle import Bundle

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CTRL_C_AFTER_CLOSING = """
import faulthandler, gc, os, signal, sys
from kandinsky22 import backends
from kandinsky22.backends import Settings
from kandinsky22.bundle import Bundle

faulthandler.enable()
bundle = Bundle(sys.argv[1])
backend = backends.get("openvino", bundle)
first, second = (backend.load(bundle, name, Settings("auto", None)) for name in ("text_encoder", "decoder_step"))
for component in (first, second):
    component.close()
del first, second, component
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_openvino_is_an_exception_and_no_crash(handmade_bundle: Bundle) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_AFTER_CLOSING, str(handmade_bundle.path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
