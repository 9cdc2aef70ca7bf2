"""What OpenVINO does to the process that it runs in."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kandinsky22 import Pipeline
from kandinsky22.backends import Settings, onnxruntime
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, Component, Role, TensorSpec
from kandinsky22.measure import inputs
from tests.runtime.plan_bundles import SPECS, decoder_step, text_encoder, write_bundle

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CTRL_C_AFTER_CLOSING = """
import faulthandler, gc, os, signal, sys
from kandinsky22 import backends
from kandinsky22.backends import Settings
from kandinsky22.bundle.bundle import Bundle

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
from kandinsky22 import backends
from kandinsky22.backends import Settings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.measure.timing import highest_memory

bundle = Bundle(sys.argv[1])
backend = backends.get("openvino", bundle)
backend.load(bundle, "decoder_step", Settings("fp32", 1)).close()  # what OpenVINO itself takes
with highest_memory() as memory:
    before = memory().host
    loaded = backend.load(bundle, "text_encoder", Settings("fp32", 1))
    loaded.run({"input_ids": np.zeros((1, 7), np.int64)})
    print(memory().host - before)
"""


def test_half_precision_weights_are_packed_without_a_copy_of_all(tmp_path: Path) -> None:
    """The file is mapped and packed in float32: three times its size. A copy in float32 would make it five."""
    head = 2048
    wide = Component(
        role=Role.TEXT_ENCODER,
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
    grown, packed = int(done.stdout), 2 * weights
    assert weights < grown < packed + 1.5 * weights, grown / weights


def test_compiling_counts_as_loading(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens in the first run, and a minute of it there would look like a slow network."""
    from kandinsky22.backends.openvino import component

    compile_one = component.OpenVinoComponent._compile

    def slowly(self: component.OpenVinoComponent, shapes: dict[str, tuple[int, ...]] | None) -> None:
        compile_one(self, shapes)
        self.compile_seconds += 60  # as if the clock had stood still for the others

    monkeypatch.setattr(component.OpenVinoComponent, "_compile", slowly)
    quick = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2, "seed": 0}
    with Pipeline.load(handmade_bundle.path, "openvino", precision="fp32", threads=1) as pipe:
        timings = pipe("a", **quick).timings
        assert timings["load"] > 4 * 60
        assert "load" not in pipe("a", **quick).timings


@pytest.mark.parametrize(("name", "for_all"), [("decoder_step", [False, True]), ("movq_decoder", [False] * 4)])
def test_a_graph_is_compiled_for_its_shapes(
    handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, for_all: list[bool]
) -> None:
    """MoVQ for all that come; another graph, without Winograd's convolutions, for the first, and then for any."""
    from kandinsky22.backends.openvino import component

    compiled = []
    compile_one = component.OpenVinoComponent._compile

    def count(self: component.OpenVinoComponent, shapes: dict[str, tuple[int, ...]] | None) -> None:
        compiled.append(shapes is None)
        compile_one(self, shapes)

    monkeypatch.setattr(component.OpenVinoComponent, "_compile", count)
    variants = {ATTENTION_IN_PARTS: handmade_bundle.component(name).files[0]} if name == "movq_decoder" else {}
    described = dataclasses.replace(handmade_bundle.component(name), variants=variants)
    component = component.OpenVinoComponent(handmade_bundle.graph(name), described, Settings("fp32", 1))
    reference = onnxruntime.CPU.load(handmade_bundle, name, Settings(threads=1))
    for height, width in ((64, 64), (64, 64), (128, 64), (64, 192), (64, 64)):
        shapes = {"B": 1, "G": 2, "h": height // 8, "w": width // 8}
        resolved = {spec.name: spec.resolve(shapes) for spec in described.inputs}
        feeds = inputs.feeds(handmade_bundle, name, resolved, seed=0)
        results, expected = component.run(feeds), reference.run(feeds)
        for output, array in expected.items():
            np.testing.assert_allclose(results[output], array, atol=1e-5, rtol=1e-5)
    assert compiled == for_all
