"""What a client asks for, by the names of the published Kandinsky 2.2, and the request that it becomes.

The published inputs keep their names, bounds and defaults; ours are added. Types, bounds and help are those of the one
declaration in `kandinsky22.request.parameters`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from kandinsky22.bundle.manifest import Manifest
from kandinsky22.errors import InputError
from kandinsky22.request import kinds
from kandinsky22.request.parameters import PARAMETERS
from kandinsky22.request.presets import PRESETS
from kandinsky22.request.request import Request

SIZES = (384, 512, 576, 640, 704, 768, 960, 1024, 1152, 1280, 1536, 1792, 2048)
"""Pixels a side that the published model offers; others are rounded up to a multiple of 64."""
PROMPT = "A moss covered astronaut with a black background"
"""The published default."""
TASKS = ("text2img", "img2img", "inpaint", "controlnet", "mix", "variations")
MOST_OUTPUTS = 4
"""Pictures of one job, as published."""
MOST_PROMPT = 10_000
"""Characters of a prompt. CLIP reads 77 tokens of it."""
MOST_MIXED = 16
MOST_SEED = 2**53 - 1
"""The largest whole number that every client's JSON holds: a larger seed would come back as another."""

_NAMES = {
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "num_inference_steps": "num_inference_steps",
    "num_inference_steps_prior": "prior_num_inference_steps",
    "num_outputs": "num_images_per_prompt",
    "guidance_scale": "guidance_scale",
    "guidance_scale_prior": "prior_guidance_scale",
    "guidance_interval": "guidance_interval",
    "preset": "preset",
    "scheduler": "scheduler",
    "scheduler_prior": "prior_scheduler",
    "skip": "skip",
    "strength": "strength",
    "overlay": "overlay",
    "seed": "seed",
}
"""Ours by the client's names, of what is handed on as it is."""
PICTURES = ("image", "mask", "hint")
"""Inputs that are a picture, by URL."""
_OF_TASK = {"strength": ("img2img", "inpaint", "controlnet"), "overlay": ("inpaint",), "mask": ("inpaint",)}
_OF_TASK |= {"hint": ("controlnet",), "image": ("img2img", "inpaint", "controlnet", "variations")}
_OF_TASK |= {"mix_prompts": ("mix",), "mix_images": ("mix",), "mix_weights": ("mix",)}
"""Inputs that some tasks alone use."""


class Input(BaseModel):
    """Base of the inputs' model, which `input_model` makes for a bundle."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _declared(name: str) -> dict[str, Any]:
    """Bounds and help of one of our parameters, for pydantic."""
    parameter = PARAMETERS[name]
    bounds = {"minimum": "ge", "maximum": "le"}
    found = {bounds[key]: value for key, value in parameter.kind.schema.items() if key in bounds}
    return {"description": parameter.help.replace("`", ""), **found}


def input_model(manifest: Manifest, most_outputs: int = MOST_OUTPUTS) -> type[Input]:
    """The model of what this bundle can be asked for, with up to `most_outputs` pictures a job."""
    return _input_model(min(2048, manifest.limits.max_size), most_outputs)


@functools.cache  # one class, so that OpenAPI has it under one name, whichever contracts take it
def _input_model(most: int, most_outputs: int) -> type[Input]:
    side: dict[str, Any] = {
        "ge": 64,
        "le": most,
        "json_schema_extra": {"examples": [size for size in SIZES if size <= most]},
    }
    uri: dict[str, Any] = {"json_schema_extra": {"format": "uri"}}
    prompt: dict[str, Any] = {"max_length": MOST_PROMPT}
    picture = Annotated[str, Field(json_schema_extra={"format": "uri"})]
    share = Annotated[float, Field(ge=0, le=1)]
    fields: dict[str, Any] = {
        "prompt": (str, Field(PROMPT, description="Input prompt", **prompt)),
        "negative_prompt": (
            str | None,
            Field(None, description="Specify things to not see in the output", **prompt),
        ),
        "width": (int, Field(512, description="Width of output image, in pixels", **side)),
        "height": (int, Field(512, description="Height of output image, in pixels", **side)),
        "num_inference_steps": (int, Field(75, description="Number of denoising steps", ge=1, le=500)),
        "num_inference_steps_prior": (
            int,
            Field(25, description="Number of denoising steps for priors", ge=2, le=500),
        ),
        "num_outputs": (int, Field(1, description="Number of images to output.", ge=1, le=most_outputs)),
        "seed": (
            int | None,
            Field(None, description="Random seed. Leave blank to randomize the seed", ge=0, le=MOST_SEED),
        ),
        "output_format": (Literal["webp", "jpeg", "png"], Field("webp", description="Output image format")),
        "output_quality": (int, Field(95, description="Quality of webp and jpeg", ge=1, le=100)),
        "output": (
            Literal["url", "data-uri"],
            Field("url", description="How pictures are handed out: as URLs, or within the answer as data: URIs"),
        ),
        "task": (
            Literal[TASKS] | None,
            Field(None, description="What is done; by default what the inputs ask for"),
        ),
        "image": (str | None, Field(None, description=_declared("image")["description"], **uri)),
        "mask": (str | None, Field(None, description=_declared("mask_image")["description"], **uri)),
        "hint": (str | None, Field(None, description=_declared("hint")["description"], **uri)),
        "strength": (float | None, Field(None, **_declared("strength"))),
        "overlay": (bool | None, Field(None, **_declared("overlay"))),
        "mix_prompts": (
            list[Annotated[str, Field(max_length=MOST_PROMPT)]] | None,
            Field(None, description="Prompts that are mixed", max_length=MOST_MIXED),
        ),
        "mix_images": (
            list[picture] | None,
            Field(None, description="Pictures that are mixed", max_length=MOST_MIXED),
        ),
        "mix_weights": (
            list[float] | None,
            Field(None, description="A number for each of mix_prompts, then of mix_images", max_length=2 * MOST_MIXED),
        ),
        "guidance_scale": (float, Field(4.0, **{**_declared("guidance_scale"), "le": 100})),
        "guidance_scale_prior": (float, Field(4.0, **{**_declared("prior_guidance_scale"), "le": 100})),
        "guidance_interval": (
            list[share] | None,
            Field(None, min_length=2, max_length=2, **_declared("guidance_interval")),
        ),
        "preset": (
            Literal[tuple(PRESETS)] | None,
            Field(None, description=_declared("preset")["description"]),
        ),
        "scheduler": (
            Literal[kinds.SCHEDULERS] | None,
            Field(None, description=_declared("scheduler")["description"]),
        ),
        "scheduler_prior": (
            Literal[kinds.PRIOR_SCHEDULERS] | None,
            Field(None, description=_declared("prior_scheduler")["description"]),
        ),
        "skip": (
            str | None,
            Field(None, pattern=PARAMETERS["skip"].kind.schema["pattern"], **_declared("skip")),
        ),
    }
    return create_model("Input", __base__=Input, **fields)


def task_of(given: Input) -> str:
    """The task that a client's inputs ask for.

    Raises InputError where they are of two, or one that the task does not use was given.
    """
    asked: Any = given
    sent = {name for name in given.model_fields_set if getattr(given, name) is not None}
    task: str = asked.task or _guessed(sent)
    for name, tasks in _OF_TASK.items():
        if name in sent and task not in tasks:
            raise InputError(f"{task} does not use {name}; leave it out, or name another task.")
    needed = {"img2img": ("image",), "inpaint": ("image", "mask"), "controlnet": ("hint",), "variations": ("image",)}
    for name in needed.get(task, ()):
        if name not in sent:
            raise InputError(f"{task} needs {name}; give it as a URL, a data: URI or an uploaded file.")
    if task == "mix" and not sent & {"mix_prompts", "mix_images"}:
        raise InputError("mix needs mix_prompts or mix_images; give what is to be mixed.")
    return task


def _guessed(sent: set[str]) -> str:
    if sent & {"mix_prompts", "mix_images", "mix_weights"}:
        return "mix"
    if "mask" in sent:
        return "inpaint"
    if "hint" in sent:
        return "controlnet"
    if "image" in sent:
        return "img2img" if "prompt" in sent else "variations"
    return "text2img"


def request_of(given: Input, pictures: Mapping[str, Path], mixed: list[Path]) -> Request:
    """The request of a client's inputs, with their pictures as files.

    `pictures` are those of PICTURES that were given, `mixed` those of mix_images. Raises InputError where the inputs do
    not go together.
    """
    task = task_of(given)
    asked: Any = given
    sent = {name for name in given.model_fields_set if getattr(given, name) is not None}
    ours: dict[str, Any] = {}
    of_preset = PRESETS.get(asked.preset or "", {})  # in the place of defaults
    for name, parameter in _NAMES.items():
        value = getattr(given, name)
        by_default = name not in _OF_TASK and parameter not in of_preset
        if value is not None and (name in sent or by_default):
            ours[parameter] = value
    if task == "mix":
        parts: list[Any] = [{"text": each} for each in asked.mix_prompts or ()]
        ours["images_and_prompts"] = parts + [{"image": str(each)} for each in mixed]
        if asked.mix_weights is not None:
            ours["weights"] = asked.mix_weights
    elif task != "variations":
        ours["prompt"] = asked.prompt
    names = {"image": "image", "mask": "mask_image", "hint": "hint"}
    ours |= {names[name]: str(path) for name, path in pictures.items()}
    return Request.of(task, **ours)
