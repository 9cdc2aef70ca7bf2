"""Other schedulers of the prior, against diffusers' own prior pipelines with diffusers' own schedulers in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from kandinsky22 import Pipeline
from kandinsky22.arrays import Embeddings, Floats

from .reference import PROMPT, steps_of_255
from .task_reference import TaskCase, TaskReference, ours, photograph

LARGEST = 2.0  # of 255, as of whole runs


class OfPrior:
    """What lets the prior's pipelines step a scheduler: they tell it the timestep before, which UnCLIP alone takes."""

    def step(self, *args: Any, prev_timestep: Any = None, **more: Any) -> Any:
        step: Any = super()
        return step.step(*args, **more)


class Ddim(OfPrior, DDIMScheduler):
    pass


class Dpm(OfPrior, DPMSolverMultistepScheduler):
    pass


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (Ddim, {"timestep_spacing": "trailing", "clip_sample": False}),
    "DPM++": (Dpm, {}),
    "SDE": (Dpm, {"algorithm_type": "sde-dpmsolver++"}),
}


def put(name: str, reference: TaskReference, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a scheduler into diffusers' pipelines, and give what `prior_scheduler` is for the same."""
    cls, options = SCHEDULERS[name]
    scheduler = cls.from_config(reference.prior.scheduler.config, **options)
    for pipeline in (reference.prior, reference.emb2emb_prior):
        monkeypatch.setitem(vars(pipeline), "scheduler", scheduler)
    return name if name != "SDE" else {**scheduler.config, "_class_name": "DPMSolverMultistepScheduler"}


CASES = [
    ("DPM++", TaskCase("controlnet", prior_steps=6)),
    ("DDIM", TaskCase("controlnet", negative_prompt="a green star", prior_steps=4, seed=1)),
    ("SDE", TaskCase("controlnet", (64, 128), prior_steps=5, seed=2)),
    ("DPM++", TaskCase("mix", prior_steps=5)),
    ("DDIM", TaskCase("mix", negative_prompt="", prior_steps=4, seed=4)),
    ("SDE", TaskCase("mix", negative_prompt="a yellow square", seed=5)),
    ("DPM++", TaskCase("variations")),
    ("DPM++", TaskCase("prior_image", (64, 128), prior_steps=8, seed=6)),
    ("DDIM", TaskCase("prior_image", strength=1.0, negative_prompt="", prior_steps=5)),
]


@pytest.mark.parametrize(("name", "case"), CASES, ids=str)
def test_same_picture_as_diffusers(
    shapes_pipe: Pipeline,
    task_reference: TaskReference,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    case: TaskCase,
) -> None:
    """The decoder draws from the generator behind the prior: as many numbers must have been drawn."""
    scheduler = put(name, task_reference, monkeypatch)
    expected = task_reference.picture(case)
    mine = np.asarray(ours(shapes_pipe, task_reference, case, prior_scheduler=scheduler).images[0])
    assert steps_of_255(mine, expected) <= LARGEST
    own = np.asarray(ours(shapes_pipe, task_reference, case).images[0])
    assert steps_of_255(mine, own) > LARGEST, "the checkpoint's own scheduler ran"


@pytest.mark.parametrize("steps", [2, 5, 10, 25])
@pytest.mark.parametrize("negative", [None, "a green star"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_embeddings_of_prompts(
    shapes_pipe: Pipeline,
    task_reference: TaskReference,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    negative: str | None,
    steps: int,
) -> None:
    scheduler = put(name, task_reference, monkeypatch)
    expected = task_reference.prior(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(7),
        return_dict=False,
        output_type="np",
    )
    mine = shapes_pipe.embed(
        PROMPT, negative, prior_num_inference_steps=steps, prior_scheduler=scheduler, seed=7, batch_size=1
    )
    assert_close(mine, expected)


@pytest.mark.parametrize(("strength", "negative"), [(1.0, None), (0.5, "a green star"), (0.1, None)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_embeddings_from_a_picture(
    shapes_pipe: Pipeline,
    task_reference: TaskReference,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strength: float,
    negative: str | None,
) -> None:
    scheduler = put(name, task_reference, monkeypatch)
    case = TaskCase("emb2emb", strength=strength, negative_prompt=negative, steps=10, seed=5)
    mine = shapes_pipe.emb2emb(
        PROMPT,
        photograph(case.size),
        negative,
        strength=strength,
        prior_num_inference_steps=case.steps,
        prior_scheduler=scheduler,
        seed=case.seed,
    )
    assert_close(mine, task_reference.emb2emb(case))


def assert_close(mine: Embeddings, expected: tuple[Floats, Floats]) -> None:
    scale = np.abs(expected[0]).max()
    for ours_, theirs in zip((mine.image_embeds, mine.negative_image_embeds), expected, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-4 * scale)
