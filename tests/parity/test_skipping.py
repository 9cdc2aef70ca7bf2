"""Skipped steps against diffusers' own pipelines, whose UNet is led to do at these steps what is done here.

Extrapolation and guidance are both linear: what is extrapolated here branch by branch, before guidance, is extrapolated
by the step graphs after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import SHALLOWS, Role

from .reference import PLAIN, THRESHOLD, THRESHOLD_CAPPED, Case, Reference, steps_of_255
from .task_reference import TaskCase, TaskReference
from .task_reference import ours as task_ours

LARGEST = 2.0  # of 255, as of whole runs
EVERY_OTHER, TWO_OF_THREE = (4, 6, 8), (4, 5, 7, 8)
"""What `forecast` and `forecast:3` skip of 12 steps."""


class SkippingUNet:
    """What stands for a UNet's `forward`: at the steps `skipped`, outputs extrapolated linearly in the timestep.

    At the steps `unguided`, the unconditional half is the conditional one: guidance then changes nothing.
    """

    def __init__(self, unet: Any, skipped: Sequence[int], unguided: Sequence[int] = ()) -> None:
        self._forward, self._skipped, self._unguided = unet.forward, skipped, unguided
        self._computed: list[tuple[float, torch.Tensor]] = []
        self._step = 0

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **more: Any) -> tuple[torch.Tensor]:
        time, step = float(timestep), self._step
        self._step += 1
        if step in self._skipped:
            (t_2, m_2), (t_1, m_1) = self._computed[-2:]
            return (m_1 + (m_1 - m_2) * ((time - t_1) / (t_1 - t_2)),)
        output = self._forward(sample, timestep, **more)[0]
        if step in self._unguided:
            output = torch.cat([output.chunk(2)[1]] * 2)
        self._computed.append((time, output))
        return (output,)


@contextmanager
def skipping(pipeline: Any, skipped: Sequence[int], unguided: Sequence[int] = ()) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.unet, "forward", SkippingUNet(pipeline.unet, skipped, unguided))
        yield


CASES: list[tuple[Case, str, tuple[int, ...]]] = [
    (Case(steps=12), "forecast", EVERY_OTHER),
    (Case(steps=12, options=THRESHOLD, height=64, negative_prompt="a green star"), "forecast:3", TWO_OF_THREE),
    (Case(steps=12, scheduler="DDIMScheduler", guidance=1.0), "forecast:3", TWO_OF_THREE),
    (Case(steps=12, scheduler="DDIMScheduler", options=THRESHOLD_CAPPED, width=192, seed=1), "forecast", EVERY_OTHER),
    (Case(steps=13, options=PLAIN, seed=3), "forecast:2", (4, 6, 8, 10)),
]


@pytest.mark.parametrize(("case", "skip", "skipped"), CASES, ids=lambda value: str(value))
def test_same_picture_as_diffusers(
    shapes_pipe: Pipeline, reference: Reference, case: Case, skip: str, skipped: tuple[int, ...]
) -> None:
    with skipping(reference.decoder, skipped):
        expected = reference.picture(case)
    mine = ours(shapes_pipe, reference, case, skip=skip)
    assert steps_of_255(mine, expected) <= LARGEST
    whole = ours(shapes_pipe, reference, case)
    assert steps_of_255(mine, whole) > LARGEST, "nothing was skipped"


def ours(pipe: Pipeline, reference: Reference, case: Case, **more: Any) -> Any:
    return pipe(
        case.prompt,
        case.negative_prompt,
        height=case.height,
        width=case.width,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        prior_num_inference_steps=case.prior_steps,
        seed=case.seed,
        scheduler=reference.scheduler_config(case),
        output_type="np",
        **more,
    ).images[0]


@pytest.mark.parametrize(
    ("interval", "unguided", "skip", "skipped"),
    [
        ((0, 0.5), range(6, 12), "forecast", (4, 8)),  # 6 and 7 are computed: guidance has ended
        ((0.5, 1), range(6), "forecast:3", (4, 5, 8)),
    ],
)
def test_same_picture_as_diffusers_with_guidance_on_an_interval(
    shapes_pipe: Pipeline,
    reference: Reference,
    interval: tuple[float, float],
    unguided: Sequence[int],
    skip: str,
    skipped: tuple[int, ...],
) -> None:
    case = Case(steps=12, scheduler="DDIMScheduler")
    with skipping(reference.decoder, skipped, unguided):
        expected = reference.picture(case)
    mine = ours(shapes_pipe, reference, case, guidance_interval=interval, skip=skip)
    assert steps_of_255(mine, expected) <= LARGEST


class ShallowUNet:
    """What stands for a UNet's `forward`: at the steps `shallow`, the features below a branch are the last others'.

    At the steps `unguided`, the unconditional half is the conditional one: guidance then changes nothing.
    """

    def __init__(self, unet: Any, branch: int, shallow: Sequence[int], unguided: Sequence[int] = ()) -> None:
        self._forward, self._shallow, self._unguided = unet.forward, shallow, unguided
        self._step = 0
        self._features: Any = None
        blocks = unet.up_blocks[-1].resnets
        place = len(blocks) - 1 - branch
        self.below = blocks[place - 1] if place else unet.up_blocks[-2]

    def hook(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._step not in self._shallow:
            self._features = output
        features: torch.Tensor = self._features
        return features

    def __call__(self, *given: Any, **more: Any) -> tuple[torch.Tensor]:
        output = self._forward(*given, **more)[0]
        if self._step in self._unguided:
            output = torch.cat([output.chunk(2)[1]] * 2)
        self._step += 1
        return (output,)


@contextmanager
def shallow(
    pipeline: Any, bundle: Path, role: Role, steps: Sequence[int], unguided: Sequence[int] = ()
) -> Iterator[None]:
    manifest = Bundle(bundle).manifest
    cut = manifest.components[manifest.name_of(SHALLOWS[role])].cut
    assert cut is not None
    stand_in = ShallowUNet(pipeline.unet, cut.branch, steps, unguided)
    handle = stand_in.below.register_forward_hook(stand_in.hook)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline.unet, "forward", stand_in)
            yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def shallow_pipe(shallow_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(shallow_bundle, "onnxruntime") as pipe:
        yield pipe


HALF = {"guidance_interval": (0, 0.5)}


@pytest.mark.parametrize(
    ("case", "skip", "steps", "more", "unguided"),
    [
        (Case(steps=7), "shallow", (1, 2, 4, 5), {}, ()),
        (Case(steps=7, options=THRESHOLD, height=64, negative_prompt="a green star"), "shallow:2", (1, 3, 5), {}, ()),
        (Case(steps=6, scheduler="DDIMScheduler", guidance=1.0), "shallow:5", (1, 2, 3, 4), {}, ()),
        (Case(steps=8, scheduler="DDIMScheduler"), "shallow", (1, 2, 5, 6), HALF, range(4, 8)),
    ],
    ids=str,
)  # fmt: skip
def test_same_picture_as_diffusers_with_shallow_steps(
    shallow_pipe: Pipeline,
    shallow_bundle: Path,
    reference: Reference,
    case: Case,
    skip: str,
    steps: tuple[int, ...],
    more: Any,
    unguided: Sequence[int],
) -> None:
    with shallow(reference.decoder, shallow_bundle, Role.DECODER, steps, unguided):
        expected = reference.picture(case)
    mine = ours(shallow_pipe, reference, case, skip=skip, **more)
    assert steps_of_255(mine, expected) <= LARGEST
    assert steps_of_255(mine, ours(shallow_pipe, reference, case, **more)) > LARGEST, "no step was shallow"


@pytest.mark.parametrize(
    ("case", "role"),
    [
        (TaskCase("img2img", steps=10, strength=0.75), Role.DECODER),
        (TaskCase("inpaint", steps=7, mask="border", seed=2), Role.INPAINT_DECODER),
        (TaskCase("controlnet", (64, 128), steps=7), Role.CONTROLNET_DECODER),
    ],
    ids=str,
)
def test_same_picture_as_diffusers_with_shallow_steps_in_every_task(
    shallow_pipe: Pipeline, shallow_bundle: Path, task_reference: TaskReference, case: TaskCase, role: Role
) -> None:
    pipeline = {
        "inpaint": task_reference.inpainting,
        "controlnet": task_reference.controlled,
    }.get(case.task, task_reference.image)
    with shallow(pipeline, shallow_bundle, role, (1, 2, 4, 5)):  # of 7, which are left of 10 too
        expected = task_reference.picture(case)
    mine = np.asarray(task_pictures(shallow_pipe, task_reference, case, skip="shallow")[0])
    assert steps_of_255(mine, expected) <= LARGEST
    whole = np.asarray(task_pictures(shallow_pipe, task_reference, case)[0])
    assert steps_of_255(mine, whole) > LARGEST, "no step was shallow"


DPM = "DPMSolverMultistepScheduler"
TASKS: list[tuple[TaskCase, str, tuple[int, ...]]] = [
    (TaskCase("img2img", steps=17, strength=0.75), "forecast", EVERY_OTHER),  # the last 12
    (TaskCase("img2img", steps=12, strength=1.0, scheduler=DPM), "forecast:3", TWO_OF_THREE),
    (TaskCase("inpaint", steps=12), "forecast", EVERY_OTHER),
    (TaskCase("inpaint", steps=12, scheduler=DPM, mask="border", seed=2), "forecast:3", TWO_OF_THREE),
    (TaskCase("inpaint", (64, 128), steps=12, scheduler="DDIMScheduler", guidance=1.0), "forecast", EVERY_OTHER),
    (TaskCase("controlnet", (64, 128), steps=12), "forecast", EVERY_OTHER),
    (TaskCase("controlnet", steps=12, scheduler=DPM, seed=1), "forecast:3", TWO_OF_THREE),
    (TaskCase("controlnet_img2img", steps=17, strength=0.75), "forecast:3", TWO_OF_THREE),
    (TaskCase("mix", steps=12, scheduler=DPM), "forecast", EVERY_OTHER),
]


@pytest.mark.parametrize(("case", "skip", "skipped"), TASKS, ids=lambda value: str(value))
def test_same_picture_as_diffusers_in_every_task(
    shapes_pipe: Pipeline, task_reference: TaskReference, case: TaskCase, skip: str, skipped: tuple[int, ...]
) -> None:
    pipeline = {
        "inpaint": task_reference.inpainting,
        "controlnet": task_reference.controlled,
        "controlnet_img2img": task_reference.controlled,
    }.get(case.task, task_reference.image)
    with skipping(pipeline, skipped):
        expected = task_reference.picture(case)
    mine = np.asarray(task_pictures(shapes_pipe, task_reference, case, skip=skip)[0])
    assert steps_of_255(mine, expected) <= LARGEST
    whole = np.asarray(task_pictures(shapes_pipe, task_reference, case)[0])
    assert steps_of_255(mine, whole) > LARGEST, "nothing was skipped"


def task_pictures(pipe: Pipeline, reference: TaskReference, case: TaskCase, **more: Any) -> Any:
    return task_ours(pipe, reference, case, **more).images


@pytest.mark.parametrize("task", ["inpaint", "controlnet", "mix"])
def test_pictures_of_one_call_equal_single_calls(
    shapes_pipe: Pipeline, task_reference: TaskReference, task: str
) -> None:
    case = TaskCase(task, seed=7, steps=12, scheduler="DDIMScheduler")
    together = task_pictures(shapes_pipe, task_reference, case, num_images_per_prompt=3, batch_size=2, skip="forecast")
    for i, picture in enumerate(together):
        alone = task_pictures(shapes_pipe, task_reference, replace(case, seed=7 + i), skip="forecast")[0]
        assert steps_of_255(np.asarray(picture), np.asarray(alone)) <= 1
