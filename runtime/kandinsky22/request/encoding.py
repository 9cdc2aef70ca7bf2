"""Values of parameters as JSON can hold them, and back: pictures and arrays as base64, paths as strings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.errors import InputError

MOST_BYTES = 1 << 30
"""Bytes of a picture or an array in JSON: more is refused before it is decoded."""


def encoded(value: Any) -> Any:
    """A parameter's value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {name: encoded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return _encoded_binary(value)


def _encoded_binary(value: Any) -> Any:
    """A picture, an array, or a pair of embeddings."""
    import numpy as np
    import PIL.Image

    from kandinsky22.arrays import Embeddings

    if isinstance(value, Embeddings):
        return {name: _encoded_binary(getattr(value, name)) for name in ("image_embeds", "negative_image_embeds")}
    stream = io.BytesIO()
    if isinstance(value, PIL.Image.Image):
        value.save(stream, "png")
        return {"png": base64.b64encode(stream.getvalue()).decode()}
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise InputError(f"A value of type {type(value).__name__} cannot be stored; expected a picture or an array.")
    np.save(stream, array, allow_pickle=False)
    return {"npy": base64.b64encode(stream.getvalue()).decode()}


def decoded(name: str, value: Any) -> Any:
    """What `encoded` made, except that paths stay strings."""
    if isinstance(value, list):
        return [decoded(name, each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) in ({"png"}, {"npy"}):
        ((form, text),) = value.items()
        return _decoded_binary(name, form, text)
    if set(value) == {"image_embeds", "negative_image_embeds"}:
        from kandinsky22.arrays import Embeddings

        return Embeddings(**{key: decoded(name, each) for key, each in value.items()})
    return {key: decoded(name, each) for key, each in value.items()}


def _decoded_binary(name: str, form: str, text: Any) -> Any:
    """A picture or an array from base64."""
    import numpy as np
    import PIL.Image

    if not isinstance(text, str) or len(text) > MOST_BYTES:
        raise InputError(f"{name} has {form} that is no base64 of at most {MOST_BYTES >> 20} MiB.")
    try:
        stream = io.BytesIO(base64.b64decode(text, validate=True))
        if form == "npy":
            return np.lib.format.read_array(stream, allow_pickle=False)
        picture = PIL.Image.open(stream, formats=["PNG"])
        picture.load()
    except Exception as error:  # Pillow's decoders raise many classes
        raise InputError(f"{name} has {form} that cannot be read; expected base64 of a file of that kind.") from error
    return picture
