"""OpenVINO: what it does to the process that it runs in, what is compiled and kept, and threads."""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import EXPORTED, Settings, onnxruntime
from kandinsky22.backends.openvino import component
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, Role, TensorSpec
from kandinsky22.measure import inputs
from tests.bfloat16 import bfloat16
from tests.runtime.plan_bundles import SPECS, decoder_step, text_encoder, write_bundle

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from kandinsky22.backends.openvino import compiled as compiled_graphs

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


GROWTH_WITHOUT_WORKERS = """
import os, subprocess, sys
import numpy as np
from kandinsky22 import Pipeline
from kandinsky22.machine import resident_memory

with Pipeline.load(sys.argv[1], "openvino", threads=2) as pipe:
    asked = dict(height=64, width=64, num_inference_steps=4, prior_num_inference_steps=2, seed=1, output_type="np")
    def paint(times):
        return [np.asarray(pipe("a", **asked).images) for _ in range(times)]
    calm = paint(3)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        # All threads but this one get what a busy processor leaves over: next to nothing.
        processor = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(busy.pid, processor)
        for thread in map(int, os.listdir("/proc/self/task")):
            if thread != os.getpid():
                os.sched_setaffinity(thread, processor)
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        before = resident_memory()
        busily = paint(40)
        print(resident_memory() - before, all(np.array_equal(calm[0], each) for each in calm + busily))
    finally:
        busy.kill()
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux' scheduler")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread has no work for others")
def test_on_a_busy_machine_pictures_are_the_same_and_memory_does_not_grow(shapes_bundle: Path) -> None:
    """TBB keeps what it wants of threads that get no turn: it was 6 MiB a picture."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH_WITHOUT_WORKERS, str(shapes_bundle)], capture_output=True, text=True, check=True
    )
    growth, same = done.stdout.split()
    assert int(growth) < 64 << 20
    assert same == "True"


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
    compile_one = component.OpenVinoComponent._compile

    def slowly(self: component.OpenVinoComponent, shapes: Any) -> Any:
        self.compile_seconds += 60  # as if the clock had stood still for the others
        return compile_one(self, shapes)

    monkeypatch.setattr(component.OpenVinoComponent, "_compile", slowly)
    quick = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2, "seed": 0}
    with Pipeline.load(handmade_bundle.path, "openvino", precision="fp32", threads=1) as pipe:
        timings = pipe("a", **quick).timings
        assert timings["load"] > 4 * 60
        assert "load" not in pipe("a", **quick).timings


SIZES = ((64, 64), (128, 64), (64, 192))


@pytest.mark.parametrize("name", ["decoder_step", "movq_decoder"])
def test_a_graph_is_compiled_once_for_each_of_its_shapes_and_is_right_for_them(
    handmade_bundle: Bundle, compiled: list[str], name: str
) -> None:
    loaded = component.BACKEND.load(handmade_bundle, name, Settings("fp32", 1))
    reference = onnxruntime.CPU.load(handmade_bundle, name, Settings(threads=1))
    for size in SIZES * 2:
        feeds = feeds_of(handmade_bundle, name, size)
        results, expected = loaded.run(feeds), reference.run(feeds)
        for output, array in expected.items():
            np.testing.assert_allclose(results[output], array, atol=1e-5, rtol=1e-5)
    assert len(compiled) == len(set(compiled)) == len(SIZES)


def test_what_has_no_room_is_dropped_and_compiled_anew_to_the_same_numbers(
    handmade_bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Room is for two shapes: the one that ran last stays with the new one."""
    monkeypatch.setattr("kandinsky22.backends.openvino.compiled.MOST", 2)
    loaded = component.BACKEND.load(handmade_bundle, "decoder_step", Settings("fp32", 1))
    one, two, three = (feeds_of(handmade_bundle, "decoder_step", size) for size in SIZES)
    first = loaded.run(one)
    loaded.run(two)
    loaded.run(one)
    with caplog.at_level("DEBUG", "kandinsky22.backends.openvino"):
        loaded.run(three)
        again = loaded.run(one)
        assert len(compiled) == 3
        loaded.run(two)
    assert len(compiled) == 4
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        f"decoder_step for {compiled[1]} dropped, 1 kept",
        f"decoder_step for {compiled[2]} dropped, 1 kept",
    ]
    loaded.run(three)
    anew = loaded.run(one)
    assert len(compiled) == 6
    for output, array in first.items():
        np.testing.assert_array_equal(again[output], array)
        np.testing.assert_array_equal(anew[output], array)


def test_with_low_memory_what_ran_is_dropped_before_another_shape_is_compiled(
    handmade_bundle: Bundle, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("fp32", 1, low_memory=True)
    loaded = component.BACKEND.load(handmade_bundle, "decoder_step", settings)
    one, two, _ = (feeds_of(handmade_bundle, "decoder_step", size) for size in SIZES)
    alive: weakref.WeakSet[compiled_graphs.CompiledGraph] = weakref.WeakSet()
    make, before = loaded._compile, []  # type: ignore[attr-defined]

    def counted(shapes: compiled_graphs.Shapes) -> compiled_graphs.CompiledGraph:
        before.append(len(alive))
        alive.add(graph := make(shapes))
        return graph

    monkeypatch.setattr(loaded, "_compile", counted)
    first = loaded.run(one)
    assert len(compiled) == 1
    loaded.run(one)
    assert len(compiled) == 1
    loaded.run(two)
    again = loaded.run(one)
    assert (len(compiled), before, len(alive)) == (3, [0, 0, 0], 1)
    for output, array in first.items():
        np.testing.assert_array_equal(again[output], array)


@pytest.mark.parametrize(
    ("spare_gib", "parameters", "most"),
    [(None, 5e6, 16), (16, 1.28e9, 1), (64, 1.28e9, 3), (1024, 1.28e9, 16), (16, 43e6, 16), (2, 43e6, 3)],
)
def test_how_many_shapes_are_kept_depends_on_their_weights_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, spare_gib: int | None, parameters: float, most: int
) -> None:
    """In float32, of the published UNet (1.28e9 parameters), MoVQ (43e6) and a tiny network."""
    spare = None if spare_gib is None else spare_gib << 30
    monkeypatch.setattr("kandinsky22.machine.available_memory", lambda: spare)
    kept, made = compiled_graphs.Kept("a", int(parameters) * 4), []

    class Graph:
        def rest(self) -> None:
            pass

    def make() -> Any:
        made.append(Graph())
        return made[-1]

    shapes = [(("x", (number,)),) for number in range(20)]
    for each in shapes:
        kept.get(each, make)
    for each in reversed(shapes[-most:]):
        kept.get(each, make)
    assert len(made) == 20
    kept.get(shapes[-most - 1], make)
    assert len(made) == 21


def test_in_bf16_nothing_is_compiled_for_more_than_one_picture(handmade_bundle: Bundle, compiled: list[str]) -> None:
    one, three = (feeds_of(handmade_bundle, "decoder_step", SIZES[0], batch=batch) for batch in (1, 3))
    with bfloat16():
        loaded = component.BACKEND.load(handmade_bundle, "decoder_step", Settings("bf16", 1))
        results = loaded.run(three)
        loaded.run(one)
    expected = onnxruntime.CPU.load(handmade_bundle, "decoder_step", Settings(threads=1)).run(three)
    assert len(compiled) == 1
    assert "latents 1x4x8x8" in compiled[0]
    for output, array in expected.items():
        np.testing.assert_allclose(results[output], array, rtol=0, atol=0.05 * np.abs(array).max())


def test_threads_share_a_component(handmade_bundle: Bundle) -> None:
    """Of several shapes at once, through compiling and running."""
    loaded = component.BACKEND.load(handmade_bundle, "decoder_step", Settings("fp32", 1))
    feeds = [feeds_of(handmade_bundle, "decoder_step", size, seed) for seed in range(4) for size in SIZES]
    alone = [component.BACKEND.load(handmade_bundle, "decoder_step", Settings("fp32", 1)).run(each) for each in feeds]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        together = list(threads.map(loaded.run, feeds * 5))
    for result, expected in zip(together, alone * 5, strict=True):
        for output, array in expected.items():
            np.testing.assert_array_equal(result[output], array)


@pytest.mark.parametrize("backend", [component.BACKEND, onnxruntime.CPU])
def test_a_step_callback_can_run_the_component_that_is_in_the_loop(handmade_bundle: Bundle, backend: Any) -> None:
    """At other shapes, too."""
    loaded = backend.load(handmade_bundle, "decoder_step", Settings("fp32", 1))
    feeds, other = (feeds_of(handmade_bundle, "decoder_step", size) for size in SIZES[:2])
    state = {name: feeds.pop(name) for name in ("latents", "x0_before")}
    per_step = {name: np.stack([feeds.pop(name)] * 3) for name in ("timestep", "coefficients", "noise")}
    plain, expected = loaded.loop(state, per_step, feeds), loaded.run(other)
    seen = []
    disturbed = loaded.loop(state, per_step, feeds, lambda step, now: seen.append(loaded.run(other)))
    for name, array in plain.items():
        np.testing.assert_array_equal(disturbed[name], array)
    assert len(seen) == 3
    for result in seen:
        np.testing.assert_array_equal(result["x0"], expected["x0"])


@pytest.mark.parametrize("backend", [component.BACKEND, onnxruntime.CPU])
def test_a_closed_component_says_so(handmade_bundle: Bundle, backend: Any) -> None:
    loaded = backend.load(handmade_bundle, "decoder_step", Settings("fp32", 1))
    feeds = feeds_of(handmade_bundle, "decoder_step", SIZES[0])
    loaded.run(feeds)
    loaded.close()
    loaded.close()
    with pytest.raises(BackendError, match=r"^The component decoder_step was closed and cannot run; load it again\.$"):
        loaded.run(feeds)


def test_closing_waits_for_what_runs(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = component.BACKEND.load(handmade_bundle, "decoder_step", Settings("fp32", 1))
    feeds, order = feeds_of(handmade_bundle, "decoder_step", SIZES[0]), []
    running, may_end = threading.Event(), threading.Event()
    run_graph = compiled_graphs.CompiledGraph.run

    def slowly(self: Any, given: Any) -> Any:
        running.set()
        assert may_end.wait(60)
        result = run_graph(self, given)
        order.append("ran")
        return result

    monkeypatch.setattr(compiled_graphs.CompiledGraph, "run", slowly)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        run = threads.submit(loaded.run, feeds)
        assert running.wait(60)
        close = threads.submit(lambda: (loaded.close(), order.append("closed")))
        with pytest.raises(TimeoutError):
            close.result(0.2)
        may_end.set()
        run.result(60)
        close.result(60)
    assert order == ["ran", "closed"]


@pytest.mark.parametrize("backend", [component.BACKEND, onnxruntime.BACKEND, onnxruntime.CPU])
def test_weights_that_were_not_exported_are_refused(handmade_bundle: Bundle, backend: Any) -> None:
    backend.load(handmade_bundle, "decoder_step", Settings("fp32", 1), EXPORTED).close()
    with pytest.raises(BackendError, match=r"decoder_step with the weights that were exported, not with 'lora'; .*\.$"):
        backend.load(handmade_bundle, "decoder_step", Settings("fp32", 1), "lora")


def test_loading_and_compiling_are_logged(handmade_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "kandinsky22.backends"):
        loaded = component.BACKEND.load(handmade_bundle, "text_encoder", Settings("fp32", 1))
        for _ in range(2):
            loaded.run({"input_ids": np.zeros((1, 7), np.int64)})
    told = [(record.levelname, record.message) for record in caplog.records]
    assert len(told) == 2
    assert re.fullmatch(r"text_encoder loaded by OpenVINO for fp32 in \d+\.\d s", told[0][1])
    assert re.fullmatch(r"text_encoder compiled by OpenVINO in \d+\.\d s for input_ids 1x7", told[1][1])
    assert {level for level, _ in told} == {"INFO"}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes that something is compiled for, in order."""
    shapes_seen: list[str] = []
    compile_one = component.OpenVinoComponent._compile

    def count(self: component.OpenVinoComponent, shapes: Any) -> Any:
        shapes_seen.append(compiled_graphs.described(shapes))
        return compile_one(self, shapes)

    monkeypatch.setattr(component.OpenVinoComponent, "_compile", count)
    return shapes_seen


def feeds_of(bundle: Bundle, name: str, size: tuple[int, int], seed: int = 0, batch: int = 1) -> dict[str, Array]:
    """Inputs of a component for a size in pixels."""
    shapes = {"B": batch, "G": 2, "h": size[0] // 8, "w": size[1] // 8}
    resolved = {spec.name: spec.resolve(shapes) for spec in bundle.component(name).inputs}
    return inputs.feeds(bundle, name, resolved, seed=seed)
