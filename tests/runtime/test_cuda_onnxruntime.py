"""ONNX Runtime on a stand-in for the device: the same loop as TensorRT's, with graphs that ONNX Runtime captures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as real
import pytest

from kandinsky22 import BackendError
from kandinsky22.arrays import Array
from kandinsky22.backends import Settings, onnxruntime, survey
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.component import SHAPES_KEPT
from kandinsky22.bundle.bundle import Bundle

from .fake_cuda import WAITING
from .fake_machines import SCHEDULES
from .fake_machines import OnnxRuntimeMachine as Machine
from .fake_onnxruntime import FakeBinding, FakeOnnxRuntime, FakeSession
from .handmade import assert_same, feeds


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def machine(
    request: pytest.FixtureRequest, plain: Any, handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    return Machine(handmade_bundle, monkeypatch, request.param)


def test_the_loop_equals_the_plain_loop(machine: Machine, plain: Any) -> None:
    component = machine.load("decoder_step")
    for steps, size in ((1, (8, 12)), (6, (8, 12)), (5, (12, 8)), (6, (8, 12))):
        assert_same(component.loop(*feeds(steps, size)), plain.loop(*feeds(steps, size)))
    component.close()
    assert not any(machine.cuda.alive().values())


def test_a_callback_replaces_the_state(machine: Machine, plain: Any) -> None:
    component = machine.load("decoder_step")

    def replace(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        return {"latents": -state["latents"]} if step in (1, 2, 5) else None

    assert_same(component.loop(*feeds(), replace), plain.loop(*feeds(), replace))
    component.close()


def test_more_shapes_than_are_kept(machine: Machine, plain: Any) -> None:
    """A graph id that came back with other buffers would replay the old ones."""
    component = machine.load("decoder_step")
    for width in [*range(4, 5 + SHAPES_KEPT), 4]:
        assert_same(component.loop(*feeds(3, (8, width))), plain.loop(*feeds(3, (8, width))))
    component.close()


def test_the_host_never_waits_between_steps(machine: Machine) -> None:
    component = machine.load("decoder_step")
    component.loop(*feeds())
    marks = [i for i, call in enumerate(machine.cuda.calls) if call == ("cudaEventCreateWithFlags", (0,))]
    assert len(marks) == 7
    assert not WAITING & set(machine.cuda.names()[marks[0] : marks[-1]])
    component.close()


def test_a_component_runs_once(machine: Machine, handmade_bundle: Bundle) -> None:
    latents = feeds()[0]["latents"]
    component = machine.load("movq_decoder")
    expected = onnxruntime.CPU.load(handmade_bundle, "movq_decoder", Settings(threads=1)).run({"latents": latents})
    assert_same(component.run({"latents": latents}), expected)
    component.close()


def test_steps_are_captured_and_float32_is_float32(machine: Machine) -> None:
    components = [machine.load(name) for name in ("decoder_step", "movq_decoder")]
    assert [settings["enable_cuda_graph"] for settings in machine.ort.opened] == ["1", "0"]
    assert {settings["use_tf32"] for settings in machine.ort.opened} == {"0"}
    for component in components:
        component.close()


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(machine: Machine, plain: Any) -> None:
    machine.ort.captures = False
    with pytest.warns(
        UserWarning, match=r"decoder_step runs without a CUDA graph, slower: .*not all nodes are on CUDA$"
    ):
        component = machine.load("decoder_step")
    assert_same(component.loop(*feeds()), plain.loop(*feeds()))
    component.close()


def test_errors_are_one_sentence_and_leave_nothing(machine: Machine) -> None:
    with pytest.raises(BackendError, match=r"computes decoder_step as it was exported, in fp32"):
        machine.load("decoder_step", "bf16")
    machine.ort.starts = False
    with pytest.raises(BackendError, match="could not start CUDA for decoder_step"):
        machine.load("decoder_step")
    machine.ort.starts = True
    component = machine.load("decoder_step")
    machine.ort.fails = "CUDNN_STATUS_EXECUTION_FAILED\n at line 7"
    with pytest.raises(BackendError, match=r"failed on the GPU: CUDNN_STATUS_EXECUTION_FAILED$"):
        component.loop(*feeds())
    with pytest.raises(BackendError, match=r"failed on the GPU: CUDNN_STATUS_EXECUTION_FAILED$"):
        component.run({})
    component.close()
    assert not any(machine.cuda.alive().values())


def test_the_gpu_is_taken_where_there_is_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnxruntime.BACKEND.availability().gpu
    assert onnxruntime.BACKEND.availability().reason == "runs on Imagined GPU (9.0)"
    assert not onnxruntime.CPU.availability().gpu
    order = [found.gpu and found.usable for found in survey()]
    assert order == sorted(order, reverse=True)  # what runs on the GPU goes first

    def missing() -> gpu.Device:
        raise BackendError("There is no NVIDIA GPU here.")

    monkeypatch.setattr(gpu, "gpu", missing)
    assert not onnxruntime.BACKEND.availability().gpu
    assert np.all([not found.gpu or not found.usable for found in survey()])


# The stand-in


def test_the_stand_in_has_onnxruntime_s_names_and_takes_as_many_arguments() -> None:
    for mine, theirs in ((FakeSession, real.InferenceSession), (FakeBinding, real.IOBinding)):
        for name, function in vars(mine).items():
            if not name.startswith("_") and inspect.isfunction(function):
                same = inspect.signature(getattr(theirs, name)).parameters
                assert len(inspect.signature(function).parameters) == len(same), name
    made = inspect.signature(real.InferenceSession).parameters
    assert list(made)[:2] == ["path_or_bytes", "sess_options"]
    assert "providers" in made
    for name, value in vars(FakeOnnxRuntime.RunOptions).items():
        if not name.startswith("_") and inspect.isfunction(value):
            (signature,) = re.findall(rf"{name}\((self: .*)\) ->", getattr(real.RunOptions, name).__doc__)
            assert len(inspect.signature(value).parameters) == len(signature.split(",")), name
    assert callable(real.get_available_providers)
