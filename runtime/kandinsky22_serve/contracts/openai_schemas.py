"""What OpenAI's images API takes and answers: its own names, and beside them ours at the top level."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, create_model

from kandinsky22.errors import InputError
from kandinsky22_serve.inputs import MOST_MIXED, MOST_PROMPT, Input

MOST_PICTURES = 10
"""Of one request."""
MOST_PARTIAL = 3
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SAMPLING = (
    "seed",
    "num_inference_steps",
    "num_inference_steps_prior",
    "guidance_scale",
    "guidance_scale_prior",
    "preset",
    "scheduler",
    "scheduler_prior",
    "skip",
)
_OURS = ("negative_prompt", "hint", *_SAMPLING)
_OF_EDITS = (*_OURS, "strength", "overlay")
"""Inputs of ours that each route takes beside OpenAI's."""


class Asked(BaseModel):
    """Base of what the routes take."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = Field(None, max_length=200, description="This server's model, with or without its owner")
    n: int | None = Field(None, ge=1, le=MOST_PICTURES, description="Number of pictures; 1 when none is given")
    size: str | None = Field(
        None,
        max_length=16,
        pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description='"WIDTHxHEIGHT" in pixels, or "auto": 512x512, or about that of the picture that is edited',
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="How pictures are handed out; both ways when none is given"
    )
    user: str | None = Field(None, max_length=512, description="Without meaning here")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png when none is given")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; 100 when none is given"
    )


class _Prompted(Asked):
    """What both generations and edits take."""

    prompt: str = Field(max_length=MOST_PROMPT, description="What to paint")
    background: Literal["opaque", "auto", "transparent"] | None = Field(None, description='"transparent" is refused')
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description="Without meaning here; num_inference_steps is what trades time for quality"
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Without meaning here")
    moderation: Literal["low", "auto"] | None = Field(None, description="Without meaning here")
    safety_identifier: str | None = Field(None, max_length=512, description="Without meaning here")
    stream: bool | None = Field(None, description="Answer with server-sent events")
    partial_images: int | None = Field(
        None, ge=0, le=MOST_PARTIAL, description="Pictures of unfinished states that are streamed, at most"
    )


class _Edit(_Prompted):
    image: list[UploadFile] = Field([], max_length=MOST_MIXED, description="The picture; or several, which are mixed")
    images: list[UploadFile] = Field([], max_length=MOST_MIXED, alias="image[]", description="As image")
    mask: UploadFile | None = Field(
        None, description="A picture of the same size; where it is fully transparent, the first is painted anew"
    )
    mix_weights: list[float] = Field(
        [], max_length=MOST_MIXED + 1, alias="mix_weights[]", description="Of the prompt, then of each picture"
    )
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Without meaning here; see strength")


class _Variation(Asked):
    image: UploadFile = Field(description="The picture")


def _beside(base: type[Asked], name: str, inputs: type[Input], ours: tuple[str, ...]) -> type[Asked]:
    """`base` with inputs of ours."""
    fields: dict[str, Any] = {each: (field.annotation, field) for each, field in _declared(inputs, ours).items()}
    return create_model(name, __base__=base, **fields)


def _declared(inputs: type[Input], ours: tuple[str, ...]) -> dict[str, Any]:
    return {name: inputs.model_fields[name] for name in ours}


def generation_model(inputs: type[Input]) -> type[Asked]:
    """What generations take, as JSON."""
    return _beside(_Prompted, "ImageGeneration", inputs, _OURS)


def edit_model(inputs: type[Input]) -> type[Asked]:
    """What edits take, as a form."""
    return _beside(_Edit, "ImageEdit", inputs, _OF_EDITS)


def variation_model(inputs: type[Input]) -> type[Asked]:
    """What variations take, as a form."""
    return _beside(_Variation, "ImageVariation", inputs, _SAMPLING)


def size_of(asked: Asked, most: int) -> tuple[int, int] | None:
    """Width and height that were asked for; None for "auto". Raises InputError where a side is not 64 to `most`."""
    if asked.size is None or asked.size == "auto":
        return None
    found = _SIZE.fullmatch(asked.size)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (64 <= width <= most and 64 <= height <= most):
        raise InputError(f"size has a side that cannot be; expected 64 to {most} pixels, such as 512x512, or auto.")
    return width, height


def form_of(asked: Asked) -> tuple[str, int]:
    """Format and quality of the files. Raises InputError where a quality was given for PNG, which has none."""
    form = asked.output_format or "png"
    if form == "png" and asked.output_compression not in (None, 100):
        raise InputError("output_compression is of jpeg and webp; name one as output_format, or leave it out.")
    compression = 100 if asked.output_compression is None else asked.output_compression
    return form, max(1, compression)


class Usage(BaseModel):
    """OpenAI's count of what is billed: nothing here."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    output_tokens: int = 0
    total_tokens: int = 0


class Image(BaseModel):
    """A picture: where it is, or its bytes in base64, or both; and the seed that gives it again."""

    url: str | None = None
    b64_json: str | None = None
    seed: int


class Images(BaseModel):
    """The answer when nothing is streamed."""

    created: int
    data: list[Image]
    background: str = "opaque"
    output_format: str
    size: str
    usage: Usage = Usage()


class Event(BaseModel):
    """The data of a server-sent event; `partial_image_index` is of partial pictures alone, `usage` of whole ones."""

    type: str
    b64_json: str
    created_at: int
    size: str
    quality: str = "auto"
    background: str = "opaque"
    output_format: str
    partial_image_index: int | None = None
    usage: Usage | None = None
