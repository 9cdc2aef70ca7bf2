"""The TensorRT backend on a stand-in for the device: what is queued in which order, when the host waits, and results
that equal the plain loop's bit for bit, whether the device runs its work as early or as late as it may."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, BundleError, Cancelled, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends import EXPORTED, Settings
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.component import SHAPES_KEPT
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.backends.tensorrt.component import TensorRtComponent
from kandinsky22.bundle.bundle import Bundle

from .fake_cuda import WAITING, Status
from .fake_machines import SCHEDULES
from .fake_machines import TensorRtMachine as Machine
from .fake_tensorrt import FakeContext, FakeEngine
from .handmade import assert_same, feeds

QUICK: dict[str, Any] = {"height": 64, "width": 128, "num_inference_steps": 5, "prior_num_inference_steps": 3}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def any_machine(request: pytest.FixtureRequest, handmade_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Every way in which a device may time its work."""
    return Machine(handmade_copy, monkeypatch, request.param)


@pytest.fixture
def machine(handmade_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(handmade_copy, monkeypatch)


@pytest.fixture
def loaded(machine: Machine) -> Iterator[TensorRtComponent]:
    component = machine.load("decoder_step")
    yield component
    component.close()


def between_steps(machine: Machine) -> list[str]:
    """The calls from the first graph launch to the last."""
    names = machine.cuda.names()
    last = len(names) - 1 - names[::-1].index("cudaGraphLaunch")
    return names[names.index("cudaGraphLaunch") : last]


# Results


def test_the_loop_equals_the_plain_loop(any_machine: Machine, plain: Any) -> None:
    component = any_machine.load("decoder_step")
    for steps in (1, 2, 6):
        assert_same(component.loop(*feeds(steps)), plain.loop(*feeds(steps)))
    component.close()


def test_a_component_runs_once(any_machine: Machine, handmade_bundle: Bundle) -> None:
    for name, inputs in {
        "text_encoder": {"input_ids": np.arange(24).reshape(3, 8)},
        "movq_decoder": {"latents": feeds()[0]["latents"]},
    }.items():
        component = any_machine.load(name)
        expected = CPU.load(handmade_bundle, name, Settings(threads=1)).run(inputs)
        assert_same(component.run(inputs), expected)
        component.close()


def test_more_than_the_plan_takes_at_once_is_run_in_parts(machine: Machine, handmade_bundle: Bundle) -> None:
    latents = np.random.default_rng(0).standard_normal((19, 4, 4, 4)).astype(np.float32)
    movq = machine.load("movq_decoder")
    expected = CPU.load(handmade_bundle, "movq_decoder", Settings(threads=1)).run({"latents": latents})
    assert_same(movq.run({"latents": latents}), expected)
    assert machine.tensorrt.runs == 3
    movq.close()


@pytest.mark.parametrize("negative", [None, "blue"])
def test_the_pictures_equal_the_cpu_s(any_machine: Machine, handmade_bundle: Bundle, negative: str | None) -> None:
    options = {"num_images_per_prompt": 2, "seed": 3, "output_type": "np", **QUICK}
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1) as cpu, any_machine.pipeline() as gpu:
        for prompt in ("a red circle", "green"):
            np.testing.assert_array_equal(
                gpu(prompt, negative, **options).images, cpu(prompt, negative, **options).images
            )


def test_large_tables_travel_in_pieces(machine: Machine, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = gpu.Staging
    monkeypatch.setattr(gpu, "Staging", lambda cuda: staging(cuda, piece=1000))  # a noise array is 3072 bytes
    component = machine.load("decoder_step")
    assert_same(component.loop(*feeds()), plain.loop(*feeds()))
    component.close()


# The host never waits


def test_between_two_steps_the_host_only_queues_work(machine: Machine, loaded: TensorRtComponent) -> None:
    loaded.loop(*feeds(20))
    calls = between_steps(machine)
    assert not WAITING & set(calls)
    assert set(calls) == {"cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventCreateWithFlags", "cudaEventRecord"}
    assert machine.cuda.names().count("cudaGraphLaunch") == 19
    assert calls.count("cudaMemcpyAsync") == 18 * 3  # timestep, row, noise


def test_the_same_noise_is_uploaded_and_fed_once(machine: Machine, loaded: TensorRtComponent) -> None:
    loaded.loop(*feeds(20, noiseless=True))
    assert between_steps(machine).count("cudaMemcpyAsync") == 18 * 2  # timestep and row
    sizes = [arguments[0] for name, arguments in machine.cuda.calls if name == "cudaMalloc"]
    assert max(sizes) < 20 * feeds(20)[0]["latents"].nbytes


def test_a_step_callback_waits_for_its_own_step_alone(machine: Machine, loaded: TensorRtComponent) -> None:
    launched: list[int] = []

    def look(step: int, state: Mapping[str, Array]) -> None:
        launched.append(machine.cuda.names().count("cudaGraphLaunch"))

    loaded.loop(*feeds(6), look)
    assert launched == [1, 2, 3, 4, 5, 5]  # with the eager first step: always one more than it is told of
    assert set(between_steps(machine)) & WAITING == {"cudaEventSynchronize"}


# Capture


def test_a_graph_is_captured_once_for_a_shape(machine: Machine, loaded: TensorRtComponent, plain: Any) -> None:
    for size in ((8, 12), (12, 8), (8, 12), (12, 8)):
        assert_same(loaded.loop(*feeds(4, size)), plain.loop(*feeds(4, size)))
    names = machine.cuda.names()
    assert names.count("cudaStreamBeginCapture") == 2
    modes = {arguments[1] for name, arguments in machine.cuda.calls if name == "cudaStreamBeginCapture"}
    assert modes == {1}  # thread-local
    assert names.count("cudaGraphLaunch") == 3 + 3 + 4 + 4
    assert machine.tensorrt.runs == 2 + 2  # one eager, one captured, for each of two shapes


def test_the_shapes_that_were_used_longest_ago_make_room(machine: Machine, loaded: TensorRtComponent) -> None:
    for width in (12, 11, 10, 9, 12, 8):
        loaded.loop(*feeds(2, (8, width)))
    assert machine.tensorrt.contexts == SHAPES_KEPT
    captures = machine.cuda.names().count("cudaStreamBeginCapture")
    loaded.loop(*feeds(2, (8, 12)))
    assert machine.cuda.names().count("cudaStreamBeginCapture") == captures
    loaded.loop(*feeds(2, (8, 11)))
    assert machine.cuda.names().count("cudaStreamBeginCapture") == captures + 1


def test_a_moved_arena_is_captured_anew(machine: Machine, loaded: TensorRtComponent, plain: Any) -> None:
    loaded.loop(*feeds(3))
    movq = machine.load("movq_decoder")
    movq.run({"latents": np.zeros((4, 4, 64, 64), np.float32)})
    captures = machine.cuda.names().count("cudaStreamBeginCapture")
    assert_same(loaded.loop(*feeds(3)), plain.loop(*feeds(3)))
    assert machine.cuda.names().count("cudaStreamBeginCapture") == captures + 1
    movq.close()


def test_a_preview_in_a_callback_may_move_the_arena(any_machine: Machine, plain: Any) -> None:
    decoder, movq = any_machine.load("decoder_step"), any_machine.load("movq_decoder")

    def preview(step: int, state: Mapping[str, Array]) -> None:
        pictures = movq.run({"latents": np.repeat(state["latents"][:1], step + 1, axis=0)})
        assert pictures["image"].shape == (step + 1, 64, 96, 3)

    assert_same(decoder.loop(*feeds(), preview), plain.loop(*feeds()))
    decoder.close()
    movq.close()


def test_what_cannot_be_captured_is_an_error(machine: Machine, loaded: TensorRtComponent, plain: Any) -> None:
    machine.tensorrt.capturable = False
    with pytest.raises(
        BackendError, match=r"cudaStreamEndCapture.*cudaErrorStreamCaptureInvalidated.*cannot be captured"
    ):
        loaded.loop(*feeds())
    machine.tensorrt.capturable = True
    assert_same(loaded.loop(*feeds()), plain.loop(*feeds()))


# Callbacks


Look = Callable[[int, Mapping[str, Array]], Mapping[str, Array] | None]


def test_a_callback_sees_every_state(any_machine: Machine, plain: Any) -> None:
    component = any_machine.load("decoder_step")
    seen: dict[str, list[Any]] = {"gpu": [], "cpu": []}

    def look(where: str) -> Look:
        return lambda step, state: seen[where].append((step, {name: state[name].copy() for name in state}))

    component.loop(*feeds(), look("gpu"))
    plain.loop(*feeds(), look("cpu"))
    assert [step for step, _ in seen["gpu"]] == [0, 1, 2, 3, 4, 5]
    for (_, ours), (_, theirs) in zip(seen["gpu"], seen["cpu"], strict=True):
        assert_same(ours, theirs)
    component.close()


@pytest.mark.parametrize("when", [{0}, {2}, {4, 5}, {5}, {0, 1, 2, 3, 4, 5}], ids=str)
@pytest.mark.parametrize("noiseless", [True, False])
def test_a_callback_replaces_the_state(any_machine: Machine, plain: Any, when: set[int], noiseless: bool) -> None:
    component = any_machine.load("decoder_step")

    def replace(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        return {"latents": np.flip(state["latents"], 0) * np.float32(0.5)} if step in when else None

    for steps in (6, 7):
        ours = component.loop(*feeds(steps, noiseless=noiseless), replace)
        assert_same(ours, plain.loop(*feeds(steps, noiseless=noiseless), replace))
    component.close()


def test_a_callback_stops_the_loop(any_machine: Machine, plain: Any) -> None:
    component = any_machine.load("decoder_step")
    component.loop(*feeds())
    before = any_machine.cuda.alive()

    def stop(step: int, state: Mapping[str, Array]) -> None:
        if step == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        component.loop(*feeds(), stop)
    assert any_machine.cuda.alive() == before
    assert not any(stream.queue for stream in any_machine.cuda.streams.values())
    assert_same(component.loop(*feeds()), plain.loop(*feeds()))
    component.close()


def test_a_callback_cannot_use_the_component_that_calls_it(loaded: TensorRtComponent) -> None:
    with pytest.raises(BackendError, match=r"decoder_step is in a loop.*second Pipeline"):
        loaded.loop(*feeds(), lambda step, state: loaded.loop(*feeds()))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"decoder_step is in a loop.*Cancelled"):
        loaded.loop(*feeds(), lambda step, state: loaded.close())  # type: ignore[arg-type]
    loaded.loop(*feeds())


# Errors


@pytest.mark.parametrize("run", [1, 2])
def test_a_run_that_is_refused_names_tensorrt_s_reason(machine: Machine, loaded: TensorRtComponent, run: int) -> None:
    machine.tensorrt.refuse_run = run  # the eager one, the captured one
    with pytest.raises(BackendError, match=r"plan of decoder_step could not be run: .*could not find a tactic"):
        loaded.loop(*feeds())
    loaded.loop(*feeds())


@pytest.mark.parametrize(
    ("function", "status"),
    [
        ("cudaGraphInstantiate", Status.cudaErrorMemoryAllocation),
        ("cudaGraphLaunch", Status.cudaErrorLaunchFailure),
        ("cudaMemcpyAsync", Status.cudaErrorInvalidValue),
        ("cudaStreamBeginCapture", Status.cudaErrorInvalidValue),
        ("cudaStreamSynchronize", Status.cudaErrorLaunchFailure),
    ],
)
def test_what_cuda_refuses_is_named(
    machine: Machine, loaded: TensorRtComponent, function: str, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Machine(machine.bundle, monkeypatch)
    expected = control.load("decoder_step")
    expected.loop(*feeds())
    machine.cuda.failures[function] = (1, status)
    with pytest.raises(
        BackendError, match=rf"CUDA's {function} failed: {status.name} \(the meaning of {int(status)}\)"
    ):
        loaded.loop(*feeds())
    loaded.loop(*feeds())
    assert machine.cuda.alive() == control.cuda.alive()
    expected.close()


def test_too_little_memory_says_how_much_was_asked_for_and_is_free(machine: Machine, loaded: TensorRtComponent) -> None:
    machine.cuda.total = machine.cuda.used() + 100_000
    with pytest.raises(BackendError, match=r"cannot give .* MiB of memory \(cudaErrorMemoryAllocation\); .* are free"):
        loaded.loop(*feeds(6, (64, 64)))
    machine.cuda.total = 1 << 30
    loaded.loop(*feeds(6, (64, 64)))


def test_shapes_outside_of_every_plan_are_refused(loaded: TensorRtComponent) -> None:
    with pytest.raises(BundleError, match=r"it takes latents from .* not .2, 4, 8, 65.*kandinsky22 build"):
        loaded.loop(*feeds(2, (8, 65)))
    loaded.loop(*feeds(2))


def test_a_plan_that_tensorrt_refuses_is_an_error_and_leaves_nothing(machine: Machine) -> None:
    machine.write_plan("decoder_step", b"no plan")
    with pytest.raises(BackendError, match=r"tensorrt 11.4.0 cannot load the plan of decoder_step: .*magic tag"):
        machine.load("decoder_step")
    assert not any(machine.cuda.alive().values())


def test_a_plan_of_another_interface_is_refused(machine: Machine) -> None:
    machine.write_plan("decoder_step", str(machine.bundle.graph("prior_step")).encode())
    with pytest.raises(BackendError, match=r"differ in image_embeds, rank_weight, ranks, .*build it again"):
        machine.load("decoder_step")
    assert not any(machine.cuda.alive().values())


def test_a_precision_that_the_plan_has_not_is_refused(machine: Machine, handmade_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="computes in fp32, not bf16"):
        machine.backend.load(handmade_bundle, "decoder_step", Settings("bf16"))


def test_weights_that_the_plan_has_not_are_refused(machine: Machine, handmade_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="runs decoder_step with the weights that were exported, not with 'mine'"):
        machine.backend.load(machine.bundle, "decoder_step", Settings(), "mine")
    machine.backend.load(machine.bundle, "decoder_step", Settings(), EXPORTED).close()


def test_what_is_loaded_and_refused_is_logged(
    machine: Machine, handmade_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "kandinsky22"):
        machine.load("decoder_step").close()
        machine.backend.availability(handmade_bundle)
    loaded, refused = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"decoder_step loaded by tensorrt in \d+\.\d s, plan 64-512-b8", loaded)
    assert refused.startswith("No plans of tensorrt 11.4.0 are used: ")
    assert "has no plan of text_encoder for tensorrt" in refused


def test_availability_says_why_not(machine: Machine, handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.backend.availability(machine.bundle)
    assert (found.usable, found.gpu, found.version) == (True, True, "tensorrt 11.4.0")
    assert machine.backend.availability().usable
    found = machine.backend.availability(handmade_bundle)
    assert not found.usable
    assert f"{handmade_bundle.path} has no plan of text_encoder for tensorrt" in found.reason

    def missing() -> gpu.Device:
        raise BackendError("There is no NVIDIA GPU here (cudaErrorNoDevice).")

    monkeypatch.setattr(gpu, "gpu", missing)
    assert machine.backend.availability().reason == "There is no NVIDIA GPU here (cudaErrorNoDevice)"


# Memory


def test_everything_is_given_back(machine: Machine) -> None:
    with machine.pipeline() as pipe:
        pipe("a red circle", seed=0, **QUICK)
        assert machine.cuda.used()
    assert not any(machine.cuda.alive().values())
    assert machine.tensorrt.contexts == 0
    pipe("a red circle", seed=0, **QUICK)
    pipe.close()
    pipe.close()
    assert not any(machine.cuda.alive().values())


def test_two_hundred_pictures_take_no_more_than_one(machine: Machine) -> None:
    small = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    with machine.pipeline() as pipe:
        for seed in range(2):
            pipe("a red circle", seed=seed, callback_on_step_end=lambda *arguments: None, **small)
        alive, used = machine.cuda.alive(), machine.cuda.used()
        for seed in range(200):
            pipe("a red circle", seed=seed, callback_on_step_end=lambda *arguments: None, **small)
        assert (machine.cuda.alive(), machine.cuda.used()) == (alive, used)


def test_components_share_one_arena(machine: Machine) -> None:
    decoder, movq = machine.load("decoder_step"), machine.load("movq_decoder")
    latents = feeds(2, (16, 16))[0]["latents"]
    decoder.loop(*feeds(2, (16, 16)))
    used = machine.cuda.used()
    image = movq.run({"latents": latents})["image"]
    assert machine.cuda.used() - used == latents.nbytes + image.nbytes  # its buffers, and no arena of its own
    decoder.close()
    movq.close()


def test_the_steps_are_timed_on_the_device(loaded: TensorRtComponent) -> None:
    loaded.loop(*feeds(6))
    assert len(loaded.step_seconds) == 6
    assert all(seconds > 0 for seconds in loaded.step_seconds)


# The stand-in


def test_the_stand_in_has_tensorrt_s_names_and_takes_as_many_arguments() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for mine, theirs in ((FakeContext, real.IExecutionContext), (FakeEngine, real.ICudaEngine)):
        for name, function in vars(mine).items():
            if not name.startswith("_") and inspect.isfunction(function):
                signatures = re.findall(rf"{name}\((self: .*)\) ->", getattr(theirs, name).__doc__)  # one an overload
                counts = {len(re.findall(r"(?:^|, )\w+: ", each)) for each in signatures}
                assert len(inspect.signature(function).parameters) in counts, name
    assert {"num_io_tensors", "create_runtime_config"} <= set(dir(real.ICudaEngine))
    config = {"set_execution_context_allocation_strategy", "dynamic_shapes_kernel_specialization_strategy"}
    assert config <= set(dir(real.IRuntimeConfig))
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED
    assert real.TensorLocation.DEVICE != real.TensorLocation.HOST
    assert real.TensorIOMode.INPUT != real.TensorIOMode.OUTPUT
    assert real.DynamicShapesKernelSpecializationStrategy.EAGER
    assert hasattr(real.IExecutionContext, "is_stream_capturable")
    assert np.dtype(real.nptype(real.DataType.INT64)) == np.int64
    assert np.dtype(real.nptype(real.DataType.BOOL)) == np.bool_
