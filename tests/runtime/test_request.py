"""`Request`: one declaration of every parameter, to JSON and back, and what the faces derive from it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import InputError, Output, Pipeline
from kandinsky22.arrays import Embeddings
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli import flags
from kandinsky22.request.parameters import PARAMETERS, TASKS, Parameters
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve

METHODS = {name: "__call__" if name == "text2img" else name for name in TASKS}
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}


def embeds(rows: int) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_a_method_lists_every_parameter_of_its_task_with_its_default(task: str) -> None:
    method = getattr(Pipeline, METHODS[task])
    listed = dict(inspect.signature(method).parameters)
    listed.pop("self")
    assert list(listed) == list(TASKS[task].parameters())
    for name, parameter in listed.items():
        required = name in TASKS[task].required
        assert (
            parameter.default is inspect.Parameter.empty if required else parameter.default == TASKS[task].default(name)
        )
        assert f"\n    {name}: " in str(inspect.getdoc(method))
    assert list(listed)[: len(TASKS[task].inputs)] == list(TASKS[task].inputs)


def test_every_parameter_belongs_to_a_task_and_tells_what_it_is() -> None:
    taken = {name for task in TASKS.values() for name in task.parameters()}
    assert taken == set(PARAMETERS) == set(Parameters.__annotations__)
    for parameter in PARAMETERS.values():
        assert parameter.help.endswith(".")


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("text2img", {"prompt": ["a", "b"], "negative_prompt": "", "seed": [3, 4], "guidance_interval": (0.5, 1)}),
    ("text2img", {"prompt": "a", "scheduler": "DPM++ Karras", "eta": 0.0, "latents": embeds(4).reshape(1, 1, 4, 6)}),
    ("text2img", {"image_embeds": Embeddings(embeds(1), embeds(1)), "seed": 1}),
    ("text2img", {"prompt": "a", "scheduler": {"_class_name": "DDIMScheduler", "steps_offset": 1}}),
    ("img2img", {"prompt": "a", "image": PIL.Image.fromarray(PIXELS), "strength": 0.5}),
    ("inpaint", {"prompt": "a", "image": PIXELS, "mask_image": Path("mask.png"), "overlay": True}),
    ("controlnet", {"prompt": "a", "hint": [PIXELS, Path("b.png")], "depth_model": "model.onnx"}),
    ("mix", {"images_and_prompts": ["a", Path("b.png"), PIXELS], "weights": [1, 2, 3], "negative_prior_prompt": "c"}),
    ("variations", {"image": "a.png", "output_type": "np", "batch_size": 2}),
    ("embed", {"prompt": "a", "prior_latents": embeds(1)}),
    ("embed", {"prompt": "a", "prior_scheduler": "DPM++", "prior_num_inference_steps": 5}),
    ("interpolate", {"images_and_prompts": ["a"], "prior_scheduler": {"_class_name": "DDIMScheduler"}}),
    ("emb2emb", {"prompt": "a", "image": embeds(1), "strength": 1}),
]


@pytest.mark.parametrize(("task", "given"), REQUESTS)
def test_a_request_goes_to_json_and_back(task: str, given: dict[str, Any]) -> None:
    request = Request.of(task, **given)
    text = json.dumps(request.to_json())
    again = Request.from_json(json.loads(text))
    assert again.task is request.task
    assert set(again.given) == set(request.given) == set(given)
    assert json.dumps(again.to_json()) == text
    for name, value in request.given.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(again.given[name], value)
        if isinstance(value, PIL.Image.Image):
            np.testing.assert_array_equal(np.asarray(again.given[name]), np.asarray(value))


def test_what_comes_back_from_json_makes_the_same_pictures(handmade_bundle: Bundle) -> None:
    request = Request.of("text2img", prompt=["a", "red"], seed=3, output_type="np", scheduler="DDIM", eta=0.5, **QUICK)
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1) as pipe:
        one, other = pipe.run(request), pipe.run(Request.from_json(json.loads(json.dumps(request.to_json()))))
        assert isinstance(one, Output)
        assert isinstance(other, Output)
        np.testing.assert_array_equal(one.images, other.images)


def test_callbacks_are_no_data() -> None:
    request = Request.of("text2img", prompt="a", callback_on_step_end=print)
    assert request.to_json() == {"task": "text2img", "prompt": "a"}
    with pytest.raises(InputError, match="callback_on_step_end cannot be given as JSON"):
        Request.from_json({"task": "text2img", "callback_on_step_end": None})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected an object with a task and parameters"),
        ({1: 2}, "expected an object"),
        ({}, "task is ''; expected one of text2img"),
        ({"task": "paint"}, "task is 'paint'; expected one of text2img"),
        ({"task": ["mix"]}, "expected one of text2img"),
        ({"task": "mix", "prompts": "a"}, "There is no parameter 'prompts'"),
        ({"task": "mix", "a\nb": {"npy": "!"}}, r"There is no parameter 'a\\nb'"),
        ({"task": "mix", "prompt": "a"}, "mix does not use prompt"),
        ({"task": "text2img", "num_inference_steps": "9"}, "num_inference_steps is '9'; expected a whole number"),
        ({"task": "text2img", "latents": {"npy": "!"}}, "latents has npy that cannot be read"),
        ({"task": "text2img", "latents": {"npy": 3}}, "latents has npy that is no base64"),
        ({"task": "text2img", "latents": {"npy": "gASVBAAAAAAAAABLAS4="}}, "latents has npy that cannot be read"),
        ({"task": "img2img", "image": {"png": "AAAA"}}, "image has png that cannot be read"),
        ({"task": "mix", "images_and_prompts": [{"txt": "a"}]}, r"images_and_prompts\[0\] is .*; expected a prompt"),
        ({"task": "variations", "image": "a.png", "seed": 10**400}, "seed is 1000.*; expected a whole number"),
        ({"task": "text2img", "prompt": "a", "guidance_scale": 10**400}, "guidance_scale is 1000.*; expected a finite"),
        ({"task": "text2img", "prompt": "a", "overlay": 1}, "text2img does not use overlay"),
        ({"task": "inpaint", "prompt": "a", "overlay": 1}, "overlay is 1; expected True or False"),
        ({"task": "text2img", "prompt": "a", "scheduler": 3}, "scheduler is 3; expected a name"),
        ({"task": "embed", "prompt": "a", "prior_scheduler": 3}, "prior_scheduler is 3; expected a name"),
    ],
)
def test_json_that_is_no_request_is_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Request.from_json(data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("levels", [33, 900, 100_000])
@pytest.mark.parametrize("name", ["prompt", "image", "scheduler", "latents", "no parameter"])
def test_a_request_that_nests_deeply_is_one_sentence(name: str, levels: int) -> None:
    """Python's stack ends at about a thousand levels, and JSON has no end."""
    value: Any = 1
    for turn in range(levels):
        value = [value] if turn % 2 else {"a": value}
    with pytest.raises(InputError, match=r"The request nests more than 32 deep; expected values of parameters"):
        Request.from_json({"task": "text2img", name: value})


@pytest.mark.parametrize("name", ["callback_on_step_end", "callback_on_batch_end", "prior_callback_on_step_end"])
def test_callbacks_that_cannot_be_called_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 3; expected something that can be called, or None"):
        Request.of("text2img", prompt="a", **{name: 3})


def test_a_job_has_everything_before_anything_is_loaded(handmade_bundle: Bundle) -> None:
    asked = {"prompt": ["a", "red", "b"], "seed": 5, "guidance_interval": (0, 0.5), "batch_size": 2, **QUICK}
    job = resolve(Request.of("text2img", **{**asked, "num_inference_steps": 4}), handmade_bundle.manifest)
    assert job.components == ("text_encoder", "prior_step", "decoder_step", "movq_decoder")
    assert job.seeds == (5, 6, 7)
    assert job.steps == 2 + 4
    assert [part.stop - part.start for part in job.batches] == [2, 2]
    assert job.sampling is not None
    assert [(part.steps, part.guided) for part in job.sampling.segments] == [(slice(0, 2), True), (slice(2, 4), False)]
    assert job.sampling.shape == (4, 8, 8)
    assert job.demand.latents == (8, 8)


def test_the_command_line_declares_what_is_declared() -> None:
    for command in ("generate", "mix", "variations"):
        declared = flags.declared(command)
        taken = {name for task in flags.tasks_of(command) for name in task.parameters()}
        assert set(declared) == {name for name in taken if PARAMETERS[name].flag}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("num_inference_steps is 0; expected a whole number.", "--steps is 0; expected a whole number."),
        ("image[1] is of type int; expected a path.", "--image[1] is of type int; expected a path."),
        ("ask for a smaller batch_size or low_memory, or set memory_limit.",
         "ask for a smaller --batch-size or --low-memory, or set --memory-limit."),
        ("strength was given without image; give both, or neither.",
         "--strength was given without --image; give both, or neither."),
        ("The image was fine.", "The image was fine."),
    ],
)  # fmt: skip
def test_messages_name_flags_on_the_command_line(message: str, told: str) -> None:
    assert flags.message_in_flags(message) == told
