"""Constants of a checkpoint, from constants.npz: a few vectors, read within bounds and never unpickled."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

from kandinsky22.arrays import Array
from kandinsky22.bundle.manifest import Manifest, Role

OF_PRIOR = ("zero_image_embeds", "clip_mean", "clip_std")
OF_PREVIEW = ("preview_weight", "preview_bias")
NAMES = (*OF_PRIOR, *OF_PREVIEW)
MOST_BYTES = 1 << 24
"""Size of the file, and of each array in it, that is read. Those of the published checkpoint have 5 thousand bytes."""


class ConstantsError(ValueError):
    """The file is not what docs/bundle.md says. The message is a clause, to follow the file's path."""


def read(data: bytes, manifest: Manifest) -> dict[str, Array]:
    """The arrays in an archive, in float32.

    Those of the prior are (1, E), where E is the manifest's `embedding_dim`; the preview's are (C, 3) and (3,), where C
    is its `latent_channels`. A bundle of an older exporter has no preview. Raises ConstantsError where the archive is
    damaged, or its arrays are others, or too few for the bundle's prior.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {member.filename.removesuffix(".npy"): _bytes(archive, member) for member in archive.infolist()}
    except ConstantsError:
        raise
    except Exception as error:  # of many classes, as of each way to compress
        raise ConstantsError(f"cannot be read ({str(error) or type(error).__name__})") from error
    for name in found:
        if name not in NAMES:
            raise ConstantsError(f"has an array {name[:40]!r}, expected only {', '.join(NAMES)}")
    if Role.PRIOR in manifest.roles() and (missing := [name for name in OF_PRIOR if name not in found]):
        raise ConstantsError(f"lacks {', '.join(missing)}, which the prior needs")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(OF_PRIOR, (1, manifest.geometry.embedding_dim))
    shapes |= {"preview_weight": (manifest.latent_channels, 3), "preview_bias": (3,)}
    return {name: _array(name, text, shapes[name]) for name, text in found.items()}


def _bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file in the archive; zipfile reads no more than the size that is compared here."""
    if member.file_size > MOST_BYTES:
        raise ConstantsError(f"holds {member.file_size} bytes under one name, expected at most {MOST_BYTES}")
    return archive.read(member)


def _array(name: str, text: bytes, shape: tuple[int, ...]) -> Array:
    """The array of a .npy file, once its header has said that it is of this shape and has no more bytes than it has."""
    stream = io.BytesIO(text)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, _, dtype = header(stream)
    except Exception as error:  # of NumPy's parser of a line of Python
        raise ConstantsError(f"cannot be read: {name} is no array of NumPy") from error
    if found != shape or dtype.newbyteorder("=") != np.float32:
        raise ConstantsError(f"has {name} as {_shown(dtype, found)}, expected {_shown(np.dtype(np.float32), shape)}")
    data = stream.read()
    if len(data) != (expected := dtype.itemsize * math.prod(shape)):
        raise ConstantsError(f"cannot be read: {name} has {len(data)} bytes, expected {expected}")
    values: Array = np.frombuffer(data, dtype).reshape(shape).astype(np.float32)  # a copy, in this machine's byte order
    if not np.isfinite(values).all():
        raise ConstantsError(f"has numbers that are not finite in {name}")
    return values


def _shown(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    sizes = "x".join(map(str, shape))
    return f"{dtype} {sizes if len(sizes) <= 40 else sizes[:37] + '...'}"
