"""The page's form: its fields by name, the API's inputs that they become, and the fields of a job made earlier."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky22.bundle.manifest import FORECASTS, SHALLOWS, Manifest
from kandinsky22.checks import FORECAST, NO_SKIP, SHALLOW
from kandinsky22.errors import BundleError, InputError
from kandinsky22.images.masks import WHITE
from kandinsky22.request.parameters import task_of
from kandinsky22.request.presets import PRESETS
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve

PARTS = 3
"""Prompts, and pictures, that the page mixes."""
LABELS = {
    "text2img": "From a prompt",
    "img2img": "From a picture",
    "inpaint": "Repaint a part",
    "controlnet": "Follow a depth map",
    "mix": "Mix",
    "variations": "Vary a picture",
}
"""What tasks are called on the page."""
USES = {
    "text2img": {"prompt"},
    "img2img": {"prompt", "image", "strength"},
    "inpaint": {"prompt", "canvas", "overlay"},
    "controlnet": {"prompt", "hint", "image", "strength"},
    "mix": {"mix"},
    "variations": {"image"},
}
"""Groups of fields that a task has beside those that all have."""
MIXED = tuple(
    name
    for kind in ("prompt", "image")
    for place in range(PARTS)
    for name in (f"mix_{kind}_{place}", f"mix_{kind}_weight_{place}")
)
"""The fields of what is mixed."""
SHARED = (
    "width", "height", "num_outputs", "preset", "num_inference_steps", "num_inference_steps_prior", "guidance_scale",
    "guidance_scale_prior", "guidance_begins", "guidance_ends", "scheduler", "scheduler_prior", "skip", "seed",
    "output_format", "output_quality",
)  # fmt: skip
"""Fields that all tasks have, named as the API's inputs; its guidance_interval has two, where it begins and ends."""
FIELDS = ("task", "prompt", "negative_prompt", "image", "canvas", "hint", "strength", "overlay", *MIXED, *SHARED)
"""All fields, in the order in which the page hands them over."""
_OURS = {
    "width": "width", "height": "height", "num_outputs": "num_images_per_prompt",
    "num_inference_steps": "num_inference_steps", "num_inference_steps_prior": "prior_num_inference_steps",
    "guidance_scale": "guidance_scale", "guidance_scale_prior": "prior_guidance_scale",
    "scheduler": "scheduler", "scheduler_prior": "prior_scheduler", "skip": "skip",
    "prompt": "prompt", "negative_prompt": "negative_prompt", "strength": "strength", "overlay": "overlay",
}  # fmt: skip
"""Parameters of a request by the field that shows them."""
_UNSENT = {"guidance_begins": 0.0, "guidance_ends": 1.0, "skip": NO_SKIP}
"""What fields have that are not sent: the API's defaults."""


def tasks_of(manifest: Manifest) -> list[str]:
    """The tasks that a bundle has the components for."""
    picture, mask = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)
    probes: dict[str, dict[str, Any]] = {
        "text2img": {"prompt": ""},
        "img2img": {"prompt": "", "image": picture},
        "inpaint": {"prompt": "", "image": picture, "mask_image": mask},
        "controlnet": {"prompt": "", "hint": picture},
        "mix": {"images_and_prompts": [{"text": ""}]},
        "variations": {"image": picture},
    }
    found = []
    for task, given in probes.items():
        try:
            resolve(Request.of(task, height=64, width=64, **given), manifest)
        except BundleError:
            continue
        found.append(task)
    return found


def skips_of(manifest: Manifest) -> list[str]:
    """The ways to skip steps that a bundle has the components for, with some intervals; "none" is the first."""
    offered = {FORECAST: (FORECASTS, (2, 3)), SHALLOW: (SHALLOWS, (2, 3, 5))}
    found = [NO_SKIP]
    for kind, (roles, intervals) in offered.items():
        if manifest.roles() & set(roles.values()):
            found += [f"{kind}:{interval}" for interval in intervals]
    return found


def filled_by(preset: str) -> dict[str, Any]:
    """The fields that a preset decides, with what it decides; of no preset nothing."""
    return _shown(PRESETS.get(preset, {}))


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that show parameters, as they show them: the checkpoint's own scheduler is ""."""
    found = {field: values[parameter] for field, parameter in _OURS.items() if parameter in values}
    if "guidance_interval" in values:
        found["guidance_begins"], found["guidance_ends"] = values["guidance_interval"]
    for name in ("negative_prompt", "scheduler", "scheduler_prior"):
        if name in found and not isinstance(found[name], str):
            found[name] = ""
    return found


def pictures_of(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The picture files that the fields' task uses, by the API's names: image, mask, hint, mix_images[0].

    Raises InputError where one that is needed was not given.
    """
    task, uses = fields["task"], USES[fields["task"]]
    if "canvas" in uses:
        return _canvas(fields["canvas"])
    paths: dict[str, str] = {name: fields[name] for name in ("image", "hint") if name in uses and fields[name]}
    needed = {"img2img": "image", "variations": "image", "controlnet": "hint"}.get(task)
    if needed is not None and needed not in paths:
        raise InputError("There is no picture yet; choose one." if needed == "image" else "Choose a depth map first.")
    if "mix" in uses:
        given = [path for place in range(PARTS) if (path := fields[f"mix_image_{place}"])]
        paths = {f"mix_images[{place}]": path for place, path in enumerate(given)}
    return {name: Path(path).read_bytes() for name, path in paths.items()}


def _canvas(canvas: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Picture and mask of the editor: whatever was painted on the layers is white in the mask."""
    if not canvas or canvas.get("background") is None:
        raise InputError("There is no picture yet; choose one to repaint a part of.")
    picture = canvas["background"].convert("RGB")
    mask = Image.new("L", picture.size, 0)
    for layer in canvas.get("layers") or ():
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha else 0)
        mask.paste(255, mask=painted.resize(picture.size, Image.Resampling.NEAREST))
    if mask.getbbox() is None:
        raise InputError("Nothing is marked yet; paint over the part that is to be painted anew.")
    return {"image": _png(picture), "mask": _png(mask)}


def layer_of(mask: Image.Image) -> Image.Image:
    """A layer of the editor that `pictures_of` makes such a mask of: painted where greys count as white."""
    layer = Image.new("RGBA", mask.size, "#ff5a28")
    layer.putalpha(mask.convert("L").point(lambda grey: 255 if grey >= WHITE else 0))
    return layer


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def inputs_of(fields: Mapping[str, Any], links: Mapping[str, str]) -> dict[str, Any]:
    """The API's inputs for the fields; `links` are the addresses of `pictures_of`.

    What is left to its default is left out, but for sizes and steps, which readers want to see; so is what the preset
    decides, unless the field has another value.
    """
    task, uses = fields["task"], USES[fields["task"]]
    inputs: dict[str, Any] = {"task": task}
    if "prompt" in uses:
        inputs["prompt"] = fields["prompt"] or ""
    if fields["negative_prompt"]:
        inputs["negative_prompt"] = fields["negative_prompt"]
    inputs |= {name: link for name, link in links.items() if not name.startswith("mix_images")}
    if "mix" in uses:
        inputs |= _mixed(fields, [link for name, link in links.items() if name.startswith("mix_images")])
    if "strength" in uses and "image" in links:
        inputs["strength"] = fields["strength"]
    if "overlay" in uses and fields["overlay"]:
        inputs["overlay"] = True
    inputs |= _shared(fields)
    if inputs.get("output_format") == "png":
        inputs.pop("output_quality", None)
    return inputs


def _shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of SHARED."""
    given = {name: fields[name] for name in SHARED if fields[name] not in (None, "")}
    decided = filled_by(given.get("preset", ""))
    if any(fields[name] == "" != value for name, value in decided.items()):
        # The checkpoint's own scheduler cannot be said beside a preset with another, so everything is said without it.
        decided = {}
        del given["preset"]
    usual = _UNSENT | decided
    inputs = {name: value for name, value in given.items() if name not in usual or value != usual[name]}
    ends = [inputs.pop(name, usual[name]) for name in ("guidance_begins", "guidance_ends")]
    if ends != [usual["guidance_begins"], usual["guidance_ends"]]:
        inputs["guidance_interval"] = ends
    if "seed" in inputs:
        inputs["seed"] = _seed(inputs["seed"])
    return inputs


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError("The seed is no whole number; leave it empty to have one drawn.") from None


def _mixed(fields: Mapping[str, Any], links: list[str]) -> dict[str, Any]:
    prompts = [place for place in range(PARTS) if fields[f"mix_prompt_{place}"]]
    pictures = [place for place in range(PARTS) if fields[f"mix_image_{place}"]]
    if not prompts and not pictures:
        raise InputError("There is nothing to mix; write a prompt, or choose a picture.")
    weights = [fields[f"mix_prompt_weight_{place}"] for place in prompts]
    weights += [fields[f"mix_image_weight_{place}"] for place in pictures]
    if any(weight is None for weight in weights):
        raise InputError("A weight is missing; give a number to each thing that is mixed.")
    found: dict[str, Any] = {"mix_weights": weights}
    if prompts:
        found["mix_prompts"] = [fields[f"mix_prompt_{place}"] for place in prompts]
    if pictures:
        found["mix_images"] = links
    return found


def fields_of(request: Mapping[str, Any], seed: int | None, preset: str = "") -> dict[str, Any]:
    """The fields that would make a stored request's picture of this seed again, alone; its files as paths.

    A request has the values of the preset that was asked for, so that it may be any, or none: what differs from it is
    sent. A task's picture that was repainted is `canvas`, a pair of paths: picture and mask.
    """
    task = task_of(request["task"])
    values = {name: request.get(name, task.default(name)) for name in task.parameters()}
    shown = _shown(values).items()
    found: dict[str, Any] = {name: value for name, value in shown if isinstance(value, str | int | float)}
    found |= {"task": task.name, "seed": seed, "num_outputs": 1, "preset": preset if preset in PRESETS else ""}
    pictures = {name: request[name] for name in ("image", "mask_image", "hint") if isinstance(request.get(name), str)}
    if found["task"] == "inpaint":
        if {"image", "mask_image"} <= pictures.keys():
            found["canvas"] = (pictures["image"], pictures["mask_image"])
    else:
        found |= {name: pictures.get(name) for name in ("image", "hint")}
    if found["task"] == "mix":
        found |= _mixed_fields(request)
    return found


def lost_of(request: Mapping[str, Any]) -> list[str]:
    """What the fields of a stored request cannot say, a sentence each."""
    found = []
    parts = request.get("images_and_prompts") or ()
    if max(sum(kind in part for part in parts) for kind in ("text", "image")) > PARTS:
        found.append(f"More was mixed than the page shows; the first {PARTS} of each kind are here.")
    negative = request.get("negative_prompt")
    if negative == "" != task_of(request["task"]).default("negative_prompt"):
        found.append("The picture was led away from an empty text, which the page cannot do; it will be another.")
    return found


def _mixed_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    parts = request.get("images_and_prompts") or ()
    weights = request.get("weights") or [1 / max(1, len(parts))] * len(parts)
    found: dict[str, Any] = dict.fromkeys(MIXED)
    taken = {"text": 0, "image": 0}
    for part, weight in zip(parts, weights, strict=False):
        kind = "text" if "text" in part else "image"
        field, place = {"text": "prompt", "image": "image"}[kind], taken[kind]
        taken[kind] += 1
        if place < PARTS:
            found |= {f"mix_{field}_{place}": part[kind], f"mix_{field}_weight_{place}": weight}
    return {name: 1.0 if value is None and "weight" in name else value for name, value in found.items()}
