"""What OpenVINO does to the process that it runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky22.bundle import Bundle, Component, TensorSpec
from tests.runtime.plan_bundles import SPECS, decoder_step, text_encoder, write_bundle

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


PEAK_OF_LOADING = """
import sys
import numpy as np
from kandinsky22 import backends, bench
from kandinsky22.backends import Settings
from kandinsky22.bundle import Bundle

bundle = Bundle(sys.argv[1])
backend = backends.get("openvino", bundle)
backend.load(bundle, "decoder_step", Settings("fp32", 1)).close()  # what OpenVINO itself takes
with bench.highest_memory() as memory:
    before = memory().host
    loaded = backend.load(bundle, "text_encoder", Settings("fp32", 1))
    print(memory().host - before)
"""


def test_loading_half_precision_weights_copies_none_of_them(tmp_path: Path) -> None:
    """A copy in float32 would be twice the file. Packing happens in the first run."""
    head = 2048
    wide = Component(
        files=("onnx/text_encoder.onnx", "onnx/text_encoder.onnx.data"),
        inputs=SPECS["text_encoder"][0],
        outputs=(TensorSpec("text_hidden", "float32", ("B", 7, 2 * head)),),
        precision="fp16",
        parameters=1,
    )
    models = {"text_encoder": text_encoder(head=head), "decoder_step": decoder_step()}
    bundle = write_bundle(tmp_path, models, text_encoder=wide)
    weights = bundle.manifest.files[wide.files[1]].bytes
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_LOADING, str(bundle.path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < weights
