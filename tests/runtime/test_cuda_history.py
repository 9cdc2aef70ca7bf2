"""The same call gives the same picture on a GPU whatever ran before it, on stand-ins for CUDA and what runs there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from kandinsky22.backends import Settings
from kandinsky22.backends.onnxruntime import CPU
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle

from .fake_machines import MACHINES, AnyMachine, TensorRtMachine
from .handmade import DECODER_STEP, GRAPHS, MORE_GRAPHS, MOVQ_DECODER, assert_same, feeds, write_bundle

NARROW = Profile(64, 64, 96, 2)
NARROW_RANGES = {"B": (1, 1, 2), "G": (1, 2, 2), "h": (8, 8, 12), "w": (8, 8, 12)}
INSIDE, OUTSIDE, ALSO_OUTSIDE = (8, 12), (16, 8), (8, 16)
"""Sizes of latents that the narrow plan takes, and that only the wide one does."""


def other_graph(folder: Path, name: str, text: str) -> Path:
    """A graph that gives other numbers, to tell which plan has run."""
    path = folder / f"other_{name}.onnx"
    onnx.save(onnx.parser.parse_model(text.replace("0.001", "0.002").replace("Sigmoid", "Tanh")), path)
    return path


def lay_narrow_plans(machine: TensorRtMachine, folder: Path) -> None:
    """A second plan of a step and of MoVQ, for fewer sizes and pictures, which computes other numbers."""
    for name, text in (("decoder_step", DECODER_STEP), ("movq_decoder", MOVQ_DECODER)):
        machine.write_plan(name, str(other_graph(folder, name, text)).encode(), NARROW, NARROW_RANGES)


@pytest.fixture
def machine(handmade_copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRtMachine:
    machine = TensorRtMachine(handmade_copy, monkeypatch)
    lay_narrow_plans(machine, tmp_path)
    return machine


def engines(machine: TensorRtMachine, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The plans that are deserialised from now on."""
    loaded: list[bytes] = []
    deserialise = machine.tensorrt._engine
    monkeypatch.setattr(machine.tensorrt, "_engine", lambda log, plan: (loaded.append(plan), deserialise(log, plan))[1])
    return loaded


@pytest.mark.parametrize(
    "sizes",
    [
        [INSIDE, OUTSIDE, INSIDE],
        [OUTSIDE, INSIDE, OUTSIDE, ALSO_OUTSIDE, INSIDE, INSIDE],
        [ALSO_OUTSIDE, OUTSIDE, INSIDE, OUTSIDE],
    ],
)
def test_which_plan_runs_depends_on_the_shapes_alone(
    machine: TensorRtMachine, sizes: Sequence[tuple[int, int]]
) -> None:
    used = machine.load("decoder_step")
    for size in sizes:
        fresh = machine.load("decoder_step")
        assert_same(used.loop(*feeds(3, size)), fresh.loop(*feeds(3, size)))
        fresh.close()
    used.close()


def test_the_narrowest_plan_that_takes_the_shapes_runs(
    machine: TensorRtMachine, tmp_path: Path, plain: Any, handmade_bundle: Bundle
) -> None:
    narrow = Bundle(
        write_bundle(tmp_path / "narrow", {**GRAPHS, "decoder_step": DECODER_STEP.replace("0.001", "0.002")})
    )
    other = CPU.load(narrow, "decoder_step", Settings(threads=1))
    decoder = machine.load("decoder_step")
    assert_same(decoder.loop(*feeds(3, OUTSIDE)), plain.loop(*feeds(3, OUTSIDE)))
    assert_same(decoder.loop(*feeds(3, INSIDE)), other.loop(*feeds(3, INSIDE)))
    assert not np.array_equal(other.loop(*feeds(3, INSIDE))["latents"], plain.loop(*feeds(3, INSIDE))["latents"]), (
        "the plans cannot be told apart: nothing is compared"
    )
    decoder.close()


def test_rows_are_parted_by_what_plans_take_and_not_by_what_is_loaded(machine: TensorRtMachine) -> None:
    """The narrow plan takes two pictures at once, the wide one eight: 3 are for the wide one, 9 too, in two parts."""
    used = machine.load("movq_decoder")
    for count in (2, 3, 9, 1, 3, 2, 9):
        latents = np.random.default_rng(count).standard_normal((count, 4, *INSIDE)).astype(np.float32)
        fresh = machine.load("movq_decoder")
        assert_same(used.run({"latents": latents}), fresh.run({"latents": latents}))
        fresh.close()
    used.close()


def test_a_plan_is_loaded_when_shapes_come_for_it_and_not_before(
    machine: TensorRtMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engines(machine, monkeypatch)
    decoder = machine.load("decoder_step")
    assert loaded == []  # which of the two is not known yet
    assert set(decoder.ranges["latents"][2]) == {8, 4, 64}  # what can be run at all
    for size in (INSIDE, INSIDE, (8, 8), OUTSIDE, ALSO_OUTSIDE, OUTSIDE, INSIDE):
        decoder.loop(*feeds(2, size))
    assert len(loaded) == 3
    assert loaded[0] == loaded[2] != loaded[1]
    assert decoder.compile_seconds > 0
    decoder.close()


def test_the_only_plan_is_loaded_with_its_component(machine: TensorRtMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engines(machine, monkeypatch)
    text = machine.load("text_encoder")
    assert len(loaded) == 1
    text.run({"input_ids": np.arange(16).reshape(2, 8)})
    assert len(loaded) == 1
    assert text.compile_seconds == 0
    text.close()


def test_memory_holds_one_engine_at_a_time(machine: TensorRtMachine) -> None:
    decoder = machine.load("decoder_step")
    for size in (INSIDE, OUTSIDE, INSIDE, OUTSIDE):
        decoder.loop(*feeds(2, size))
        assert (machine.tensorrt.contexts, machine.tensorrt.engines) == (1, 1)
    assert machine.tensorrt.most_engines == 1
    decoder.close()
    assert machine.tensorrt.engines == 0
    assert not any(machine.cuda.alive().values())


# Whole calls.


def calls(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Random calls: tasks, sizes, prompts a call, guidance, steps, pictures a prompt."""
    draw = np.random.default_rng(0)
    prompts = ["a red circle", "a blue star", "green"]
    found = []
    for _ in range(count):
        height, width = (int(side) for side in draw.choice([64, 128, 192], 2))
        picture = draw.integers(0, 256, (height, width, 3), np.uint8)
        options: dict[str, Any] = {
            "num_inference_steps": int(draw.integers(2, 6)),
            "guidance_scale": float(draw.choice([1.0, 4.0])),
            "seed": int(draw.integers(100)),
            "output_type": "np",
        }
        sized = {"height": height, "width": width}
        several = prompts[: draw.integers(1, 4)]
        task = str(draw.choice(["__call__", "img2img", "inpaint", "controlnet", "variations"]))
        arguments: dict[str, Any] = {
            "__call__": {"prompt": several, "num_images_per_prompt": int(draw.integers(1, 3)), **sized},
            "img2img": {"prompt": several, "image": picture, "strength": 0.7, **sized},
            "inpaint": {"prompt": several, "image": picture, "mask_image": picture[..., 0] > 128, **sized},
            "controlnet": {"prompt": several, "hint": picture, **sized},
            "variations": {"image": picture, **sized},
        }[task]
        if task != "variations":
            arguments["prior_num_inference_steps"] = int(draw.integers(2, 4))
        found.append((task, {**arguments, **options}))
    return found


@pytest.mark.parametrize("kind", MACHINES)
def test_thirty_random_calls_give_what_a_fresh_pipeline_gives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(write_bundle(tmp_path / "everything", GRAPHS | MORE_GRAPHS))
    machine: AnyMachine = MACHINES[kind](bundle, monkeypatch)
    if isinstance(machine, TensorRtMachine):
        lay_narrow_plans(machine, tmp_path)
    tasks = set()
    with machine.pipeline() as used:
        for task, arguments in calls(30):
            tasks.add(task)
            with machine.pipeline() as fresh:
                expected = getattr(fresh, task)(**arguments).images
            np.testing.assert_array_equal(getattr(used, task)(**arguments).images, expected)
    assert len(tasks) == 5
