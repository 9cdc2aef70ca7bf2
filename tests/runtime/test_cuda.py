"""CUDA's owners, on a stand-in that runs work as late, or as early, as a device may."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading

import numpy as np
import pytest

from kandinsky22 import BackendError
from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.cuda.runtime import Cuda, Owner, Staging, aligned

from .fake_cuda import FakeCuda, Status


@pytest.fixture(params=[(), (0,)], ids=["late", "early"])
def fake(request: pytest.FixtureRequest) -> FakeCuda:
    return FakeCuda(request.param, total=1 << 20)


@pytest.fixture
def cuda(fake: FakeCuda) -> Cuda:
    return Cuda(fake)


def test_owners_give_everything_back_and_may_be_closed_twice(cuda: Cuda, fake: FakeCuda) -> None:
    with cuda.stream() as stream:
        graph = stream.capture(lambda: None)
        owners: list[Owner] = [cuda.memory(100), cuda.pinned(100), cuda.event(), graph, Staging(cuda, 100)]
        for owner in owners:
            owner.close()
            owner.close()
    assert not any(fake.alive().values())


def test_nothing_is_freed_twice_and_zero_bytes_are_a_block(cuda: Cuda) -> None:
    with cuda.memory(0) as memory:
        assert memory.address % 256 == 0
    memory.close()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 1001])
def test_staging_copies_what_it_was_given_in_pieces(cuda: Cuda, size: int) -> None:
    draw = np.random.default_rng(size)
    arrays = [draw.integers(0, 255, size, np.uint8), draw.standard_normal((3, 7)), np.array([True, False])]
    expected = b"".join(array.tobytes() for array in arrays)
    result = np.empty(len(expected), np.uint8)
    with cuda.stream() as stream, Staging(cuda, 100) as staging, cuda.memory(len(expected)) as memory:
        staging.upload(stream, memory.address, arrays)
        for array in arrays:
            array[...] = 0  # the caller may do what it likes as soon as the call returns
        staging.download(stream, memory.address, result)
    assert result.tobytes() == expected


def test_staging_takes_arrays_that_are_not_contiguous(cuda: Cuda) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    result = np.empty_like(array, order="C")
    with cuda.stream() as stream, Staging(cuda) as staging, cuda.memory(array.nbytes) as memory:
        staging.upload(stream, memory.address, [array])
        staging.download(stream, memory.address, result)
    np.testing.assert_array_equal(result, array)


def test_a_graph_replays_what_was_captured_and_capturing_runs_nothing(cuda: Cuda) -> None:
    first, second = np.array([1, 2, 3], np.uint8), np.array([4, 5, 6], np.uint8)
    result = np.empty(3, np.uint8)
    with cuda.stream() as stream, Staging(cuda) as staging, cuda.memory(512) as memory:
        source, target = memory.address, memory.address + 256
        staging.upload(stream, source, [first])
        staging.upload(stream, target, [second])
        with stream.capture(lambda: stream.copy(target, source, 3)) as graph:
            staging.download(stream, target, result)
            np.testing.assert_array_equal(result, second)
            stream.launch(graph)
            staging.download(stream, target, result)
            np.testing.assert_array_equal(result, first)


def test_a_capture_that_fails_leaves_the_stream_usable(cuda: Cuda, fake: FakeCuda) -> None:
    with cuda.stream() as stream:

        def broken() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            stream.capture(broken)
        with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
            stream.capture(stream.synchronize)
        stream.synchronize()
        stream.capture(lambda: None).close()
    assert not any(fake.alive().values())


def test_a_stream_waits_for_another_s_event(cuda: Cuda) -> None:
    with cuda.stream() as one, cuda.stream() as two, cuda.event() as event, cuda.pinned(4) as pinned:
        memory, staging = cuda.memory(256), Staging(cuda)
        staging.upload(one, memory.address, [np.array([1, 2, 3, 4], np.uint8)])
        one.record(event)
        two.wait(event)
        two.copy(pinned.address, memory.address, 4)
        two.synchronize()
        assert pinned.array.tolist() == [1, 2, 3, 4]
        staging.close()
        memory.close()


def test_errors_name_themselves_and_what_to_do(cuda: Cuda, fake: FakeCuda) -> None:
    kept = cuda.memory(1 << 19)
    with pytest.raises(
        BackendError, match=r"cannot give 1\.0 MiB .*cudaErrorMemoryAllocation.*0\.5 MiB of 1\.0 MiB are"
    ):
        cuda.memory(1 << 20)
    kept.close()
    fake.failures["cudaStreamCreateWithFlags"] = (1, Status.cudaErrorInsufficientDriver)
    with pytest.raises(
        BackendError, match=r"CUDA's cudaStreamCreateWithFlags failed: cudaErrorInsufficientDriver \(the"
    ):
        cuda.stream()
    assert (cuda.memory_info().free, cuda.memory_info().total) == (1 << 20, 1 << 20)


def test_a_machine_without_a_gpu_says_so(fake: FakeCuda) -> None:
    fake.devices = 0
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver.*needs an NVIDIA GPU and its driver"):
        Cuda(fake).check_device()


def test_what_is_known_of_the_gpu_comes_from_cuda(cuda: Cuda, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "load", lambda: cuda)
    assert gpu.gpu() == gpu.Device("Imagined GPU", (9, 0))
    assert gpu.device_memory() == 0
    with cuda.memory(1000):
        assert gpu.device_memory() == 1000
    fake.devices = 0
    with pytest.raises(
        BackendError, match=r"no NVIDIA GPU here \(CUDA's cudaGetDeviceProperties failed: cudaErrorInsufficientDriver"
    ):
        gpu.gpu()


def test_without_cuda_s_bindings_no_gpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert gpu.device_memory() == 0
    with pytest.raises(BackendError, match="install CUDA's bindings: pip install cuda-bindings"):
        gpu.gpu()


def test_a_turn_is_taken_again_given_away_and_kept_until_it_was_left_as_often() -> None:
    turn = gpu.Turn()

    def free() -> bool:
        """Whether another thread can have it now."""
        taken = threading.Event()

        def take() -> None:
            with turn:
                taken.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        found = taken.wait(0.05)
        waiting.append(thread)
        return found

    waiting: list[threading.Thread] = []
    with turn:
        with turn:
            assert not free()
            with turn.given_away():
                assert free()
                with turn:
                    assert not free()
            assert not free()
        assert not free()
    assert free()
    for thread in waiting:
        thread.join(30)
        assert not thread.is_alive()


def test_seconds_are_measured_between_timed_events(cuda: Cuda) -> None:
    with cuda.stream() as stream, cuda.event(timed=True) as start, cuda.event(timed=True) as end:
        stream.record(start)
        stream.record(end)
        end.synchronize()
        assert end.seconds_since(start) == 0.001


def test_sizes_are_rounded_up_to_the_alignment() -> None:
    assert [aligned(size) for size in (0, 1, 256, 257)] == [0, 256, 256, 512]


def test_importing_the_runtime_imports_no_gpu_library() -> None:
    code = (
        "import sys, kandinsky22; from kandinsky22.backends import tensorrt, onnxruntime;"
        "bad = {'cuda', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stand_in_has_cuda_s_names_and_takes_as_many_arguments() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    for name, value in vars(FakeCuda).items():
        if name.startswith("cuda"):
            assert hasattr(real, name), name
        if name.startswith("cuda") and inspect.isfunction(value):
            arguments = getattr(real, name).__doc__.split("(")[1].split(")")[0]  # its first line is the signature
            assert len(inspect.signature(value).parameters) - 1 == len(arguments.split(",")) * bool(arguments), name
    assert real.cudaMemcpyKind.cudaMemcpyDefault
    assert real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert {status.name for status in Status} <= set(real.cudaError_t.__members__)
    assert {status.value for status in Status} <= {status.value for status in real.cudaError_t}
