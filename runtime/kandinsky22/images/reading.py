"""Pictures, masks and depth maps as users give them, read into one form: from a path, a PIL picture or an array.

- A file is PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF with one picture in it, of at most `LARGEST` pixels and
  `MOST_BYTES`. FIFOs and devices are refused: whoever reads them may wait for ever.
- The orientation that a camera wrote into EXIF is applied.
- Greyscale, palette and CMYK pictures become RGB. A transparent picture is laid on white, a transparent mask or depth
  map on black: nothing is repainted, and everything is far, where nothing was drawn.
- Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): bool, uint8 of 0..255, uint16 of 0..65535, or floats of 0..1.
  Anything that NumPy can read as such an array is one: a torch tensor on the CPU, say.
- 16-bit greyscale and floats are rounded to 8 bits in pictures and masks; depth maps keep what they have.

Pictures are resized as diffusers' Kandinsky 2.2 pipelines resize them, bicubic with Pillow. Masks: `masks.Mask`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps

from kandinsky22 import files
from kandinsky22.arrays import Array, Floats
from kandinsky22.errors import InputError, first_line
from kandinsky22.images.masks import Mask

Picture = str | Path | PIL.Image.Image | Array
"""What a user may give as a picture; an array may be anything that NumPy can read as one."""

LARGEST = 178_956_970
"""Most pixels of a file: Pillow's own limit, against pictures that are small on disk and fill the memory."""

MOST_BYTES = 1 << 29
"""Most bytes of a picture's file."""

MOST_ELONGATED = 20
"""Largest ratio of the sides of a picture whose shorter side is scaled to a fixed size."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
_EXPECTED = "expected one picture as PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF"
_DEEP = ("I", "F")
"""PIL's modes of one channel with more than 8 bits; "I;16" and its kin begin with I as well."""

_T = TypeVar("_T")


def several(name: str, value: Any, read: Callable[[str, Any], _T]) -> list[_T]:
    """Read one input or a list of them with `read`. Raises InputError that names the one that is wrong."""
    if value is None:
        raise InputError(f"{name} is missing; expected a path, a PIL picture or a NumPy array.")
    if not isinstance(value, list | tuple):
        return [read(name, value)]
    if not value:
        raise InputError(f"{name} is an empty list; expected at least one picture.")
    return [read(f"{name}[{i}]", each) for i, each in enumerate(value)]


def picture(name: str, value: Picture) -> PIL.Image.Image:
    """Read an RGB picture. Raises InputError, which begins with `name`, when `value` is none."""
    source = _source(name, value)
    if _is_deep(source):
        source = _to_8_bits(_grey(name, source))
    return _flat(name, source, "white").convert("RGB")


def mask(name: str, value: Picture) -> PIL.Image.Image:
    """Read a mask as an L or RGB picture: white is repainted. Errors are those of `picture`."""
    source = _source(name, value)
    if _is_deep(source):
        return _to_8_bits(_grey(name, source))
    source = _flat(name, source, "black")
    return source if source.mode == "RGB" else source.convert("L")


def depth(name: str, value: Picture) -> Floats:
    """Read a depth map (H, W, 3), float32 in 0..1 where 1 is near, with as many bits as its source has.

    One channel becomes three alike; colours stay, as diffusers leaves them. Errors are those of `picture`.
    """
    given = array(name, value)
    if given is not None and given.dtype != np.uint8:
        values = _checked(name, given)
        values = values[..., None] if values.ndim == 2 else values
        if values.shape[2] == 4:
            return values[..., :3] * values[..., 3:]  # on black
        return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
    source = _source(name, value)
    if _is_deep(source):
        return np.repeat(_grey(name, source)[..., None], 3, axis=2)
    return np.asarray(_flat(name, source, "black").convert("RGB"), np.float32) / np.float32(255)


def inpainting_mask(name: str, value: Picture) -> Mask:
    """Read a mask: white is repainted. Errors are those of `picture`."""
    return Mask(mask(name, value), from_array=array(name, value) is not None)


def resized_picture(source: PIL.Image.Image, height: int, width: int) -> Floats:
    """Resize an RGB picture as diffusers does: its pixels (height, width, 3), float32 in 0..1."""
    fitted = source.resize((width, height), PIL.Image.Resampling.BICUBIC, reducing_gap=1)
    return np.asarray(fitted, np.float32) / np.float32(255)


def resized_mask(source: PIL.Image.Image, height: int, width: int) -> Floats:
    """A mask (1, height, width) float32: 1 is kept, 0 is repainted (white in `source`), as in diffusers."""
    fitted = source.resize((width, height), PIL.Image.Resampling.LANCZOS).convert("L")
    return (np.asarray(fitted) < 128).astype(np.float32)[None]


def resized_depth(source: Floats, height: int, width: int) -> Floats:
    """Resize a depth map (H, W, 3), bicubic, channel by channel: (height, width, 3), float32 in 0..1."""
    if source.shape[:2] == (height, width):
        return source
    channels = [PIL.Image.fromarray(np.ascontiguousarray(source[..., c])) for c in range(3)]
    fitted = [each.resize((width, height), PIL.Image.Resampling.BICUBIC, reducing_gap=1) for each in channels]
    return np.stack([np.asarray(each, np.float32) for each in fitted], axis=-1).clip(0, 1)


def floats(name: str, value: object, expected: str, shape: tuple[int, ...] | None = None) -> Floats:
    """Read an array of finite floats, from anything that NumPy can read.

    Args:
        name: What the user calls it, for messages.
        value: An array, nested lists, or a torch tensor on the CPU.
        expected: The shape and what it means, for messages.
        shape: The shape that it must have; None for any.

    Returns:
        float32, of `shape`.

    Raises:
        InputError: It is no such array.
    """
    given = _as_array(name, value, f"floats {expected}")
    if not np.issubdtype(given.dtype, np.floating) or shape not in (None, given.shape):
        raise InputError(f"{name} has shape {given.shape} and type {given.dtype}; expected floats {expected}.")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{name} has values that are not finite in float32.")
    return values


def array(name: str, value: object) -> Array | None:
    """The array that a value is, or that NumPy can read it as; None for a path, a PIL picture or a list.

    Raises InputError for what calls itself an array but cannot be read: a torch tensor on a GPU, say.
    """
    if isinstance(value, PIL.Image.Image | type) or not hasattr(value, "__array__"):
        return None
    return _as_array(name, value, "an array that NumPy can read")


def _as_array(name: str, value: Any, expected: str) -> Array:
    """`value` as NumPy reads it. Raises InputError where it cannot, as of ragged lists or a tensor on a GPU."""
    try:
        if hasattr(value, "requires_grad") and hasattr(value, "detach"):
            value = value.detach()  # a torch tensor, which NumPy may not read while it records gradients
        return np.asarray(value)
    except Exception as error:  # any class: it is the value's own code that fails
        raise InputError(f"{name} cannot be read as an array ({first_line(error)}); expected {expected}.") from error


def _source(name: str, value: Picture) -> PIL.Image.Image:
    """`value` as a PIL picture, the right way up."""
    if isinstance(value, str | Path):
        return _opened(name, value)
    if isinstance(value, PIL.Image.Image):
        if not value.width or not value.height:
            raise InputError(f"{name} has no pixels ({value.width}x{value.height}).")
        with decoding(name, _EXPECTED):
            _refuse_several(name, value)
            value.load()  # it may still be a file that was only opened
            return _upright(value)
    given = array(name, value)
    if given is not None:
        values = _checked(name, given)
        return _to_8_bits(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values)
    raise InputError(f"{name} is of type {type(value).__name__}; expected a path, a PIL picture or a NumPy array.")


def _opened(name: str, path: str | Path) -> PIL.Image.Image:
    if str(path).startswith(("http://", "https://")):
        raise InputError(f"{name} is an address on the web, {path}; download it, and give the file.")
    with decoding(f"{name} {path}", _EXPECTED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about large pictures and damaged EXIF
        try:
            opened = files.open_regular(path, MOST_BYTES)
        except FileNotFoundError:
            raise InputError(f"{name}: there is no file {path}.") from None
        # Not by its path, which Pillow may map: a file that is cut short under it would end the process.
        with opened, PIL.Image.open(opened, formats=_formats()) as file:
            _refuse_several(f"{name} {path}", file)
            file.load()
            return _upright(file)


@contextlib.contextmanager
def decoding(what: str, expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises over a damaged file into one InputError about `what`.

    Pillow's decoders raise some ten classes, RuntimeError, TypeError and NotImplementedError among them. Two things are
    no damage and pass: InputError, and that there is no memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except PIL.Image.DecompressionBombError as error:
        raise InputError(
            f"{what} has more than {LARGEST // 10**6} million pixels, which is the limit; scale it down first."
        ) from error
    except Exception as error:
        raise InputError(f"{what} cannot be read ({_reason(error)}); {expected}.") from error


def _formats() -> list[str]:
    """The formats that this Pillow can read: AVIF came late, and some builds leave it out."""
    PIL.Image.init()
    return [name for name in _FORMATS if name in PIL.Image.OPEN]


def _refuse_several(name: str, file: PIL.Image.Image) -> None:
    """Refuse animations and pages: nobody can know which one is meant. The further pictures of an MPO are previews.

    They are not counted: a file can have millions, and Pillow reads them all to know.
    """
    if getattr(file, "is_animated", False) and file.format != "MPO":
        raise InputError(f"{name} has several frames or pages; expected one picture: save the one you mean as PNG.")


def _upright(source: PIL.Image.Image) -> PIL.Image.Image:
    """`source`, turned as its EXIF says; damaged EXIF is ignored."""
    try:
        return PIL.ImageOps.exif_transpose(source)
    except MemoryError:
        raise
    except Exception:  # of many classes
        return source.copy()


def _is_deep(source: PIL.Image.Image) -> bool:
    return source.mode.startswith(_DEEP)


def _grey(name: str, source: PIL.Image.Image) -> Floats:
    """The values (H, W) float32 in 0..1 of a picture of more than 8 bits: 16-bit integers, or floats of 0..1."""
    values = np.asarray(source)
    if source.mode != "F":  # Pillow opens some 16-bit files as 32-bit integers
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name} has values from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535.")
        values = values.astype(np.uint16)
    return _checked(name, values)


def _flat(name: str, source: PIL.Image.Image, ground: str) -> PIL.Image.Image:
    """`source` laid on a ground of one colour, without transparency: an L or RGB picture."""
    try:
        if source.has_transparency_data:
            source = source.convert("RGBA")
            return PIL.Image.alpha_composite(PIL.Image.new("RGBA", source.size, ground), source).convert("RGB")
        return source.convert("L" if source.mode in ("1", "L") else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # LAB, say, or a damaged palette
        raise InputError(
            f"{name} has colours of the kind {source.mode} that cannot be converted ({_reason(error)}); "
            "expected RGB, greyscale or a palette."
        ) from error


def _checked(name: str, given: Array) -> Floats:
    """The values of a picture's array as float32 in 0..1, (H, W) or (H, W, 1, 3 or 4). Raises InputError for others."""
    if given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] not in (1, 3, 4)) or not given.size:
        raise InputError(f"{name} has shape {given.shape}; expected (height, width) or (height, width, 1, 3 or 4).")
    scale = {"bool": 1, "uint8": 255, "uint16": 65535}.get(given.dtype.name)
    if scale is None and not np.issubdtype(given.dtype, np.floating):
        raise InputError(f"{name} is of type {given.dtype}; expected bool, uint8, uint16, or floats of 0 to 1.")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32) / np.float32(scale or 1)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InputError(f"{name} has floats outside 0 to 1 (from {given.min()} to {given.max()}); scale them first.")
    return values


def _to_8_bits(values: Floats) -> PIL.Image.Image:
    return PIL.Image.fromarray((values * 255).round().astype(np.uint8))


def _reason(error: BaseException) -> str:
    """Pillow's reason on one line, without the object that it names."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else error
    text = " ".join(str(told).split()) or type(error).__name__
    return "it is no picture of these formats" if isinstance(error, PIL.UnidentifiedImageError) else text.rstrip(".")


def not_too_long(name: str, source: PIL.Image.Image) -> None:
    """Raise InputError when scaling up the shorter side would make the longer one fill the memory."""
    if max(source.size) > MOST_ELONGATED * min(source.size):
        raise InputError(
            f"{name} is {source.width}x{source.height}; expected the longer side to be {MOST_ELONGATED} times the "
            "shorter one at most: cut out what matters."
        )


def same_size(
    name: str, one: Sequence[int], other_name: str, other: Sequence[int], asked: Sequence[int] | None = None
) -> None:
    """Raise InputError where two pictures' sizes, as (width, height), differ.

    With `asked`, the size of the picture that is made, the first may have that as well: see `masks.Mask`.
    """
    if tuple(one) in (tuple(other), None if asked is None else tuple(asked)):
        return
    made = "" if asked is None else f", or {asked[0]}x{asked[1]}, which is asked for"
    raise InputError(
        f"{name} is {one[0]}x{one[1]} and {other_name} is {other[0]}x{other[1]}; expected the same size{made}."
    )
