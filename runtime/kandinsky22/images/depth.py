"""Depth maps from pictures, by any ONNX network that estimates inverse depth: MiDaS, DPT, Depth Anything and the like.

What happens around the network:

1. The picture is resized, bicubic, to the height and width of the network's input. When these are free, the shorter
   side becomes `SHORTER_SIDE` pixels, and both sides multiples of `MULTIPLE`.
2. Values 0..1 are normalised by ImageNet's mean and standard deviation, as for Depth Anything and MiDaS, and given as
   float32 (1, 3, H, W). A network with another normalisation (DPT: 0.5 and 0.5) needs it in its graph.
3. The output, (1, H', W') or (1, 1, H', W'), is larger where things are nearer. It is scaled to 0..1, from its smallest
   to its largest value, resized to the picture's size, bicubic, and repeated to three channels.

The network runs in float32 on the CPU, by ONNX Runtime, or by OpenVINO when ONNX Runtime is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from kandinsky22 import openvino_core
from kandinsky22.arrays import Array, Floats
from kandinsky22.errors import BackendError, InputError, last_line
from kandinsky22.images import reading
from kandinsky22.images.reading import Picture

SHORTER_SIDE = 518
"""Pixels of the shorter side when a network takes any size."""
MULTIPLE = 14
"""Divisor of both sides: Depth Anything's patches have 14 pixels a side (518 = 37 · 14)."""
MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of each channel."""
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of each channel."""

_Shape = tuple[int | None, ...]


def estimate(model: str | Path, picture: Picture) -> Floats:
    """Estimate the depth of a picture.

    Args:
        model: Path of an ONNX network as this module describes it.
        picture: The picture, of H x W pixels; see `kandinsky22.images.reading`.

    Returns:
        The depth map (H, W, 3), float32 in 0..1: 1 is near.

    Raises:
        InputError: The picture cannot be read, the file is no such network, or its output is flat or not finite.
        BackendError: Neither ONNX Runtime nor OpenVINO is installed.
    """
    source = reading.picture("the picture to estimate the depth of", picture)
    reading.not_too_long("the picture to estimate the depth of", source)
    run, shape = _loaded(Path(model))
    if len(shape) != 4 or shape[1] not in (3, None):
        raise InputError(f"{model} takes an input of shape {shape}; expected (1, 3, height, width).")
    height, width = _size(source, shape)
    pixels = reading.resized_picture(source, height, width)
    values = (pixels - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    try:
        found = np.squeeze(run(np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32))).astype(np.float32)
    except Exception as error:
        raise InputError(f"{model} fails on an input of (1, 3, {height}, {width}): {last_line(error)}.") from error
    if found.ndim != 2:
        raise InputError(f"{model} gave an output of shape {found.shape}; expected one depth a pixel, (1, H, W).")
    if not np.isfinite(found).all() or found.max() <= found.min():
        raise InputError(f"{model} sees no depth in the picture: its output is flat or not finite.")
    scaled = (found - found.min()) / (found.max() - found.min())
    return reading.resized_depth(np.repeat(scaled[..., None], 3, axis=2), source.height, source.width)


def _size(picture: PIL.Image.Image, shape: _Shape) -> tuple[int, int]:
    """Height and width of the network's input; a side that it fixes is kept."""
    scale = SHORTER_SIDE / min(picture.size)
    free = [max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in (picture.height, picture.width)]
    return shape[2] or free[0], shape[3] or free[1]


def _loaded(model: Path) -> tuple[Callable[[Array], Array], _Shape]:
    """The network as a function, and the shape of its input, with None for a free side."""
    if not model.is_file():
        kind = f"{model} is no file" if model.exists() else f"There is no file {model}"
        raise InputError(f"{kind}; expected an ONNX network that estimates depth.")
    for load in (_onnxruntime, _openvino):
        try:
            return load(model)
        except ImportError:
            continue
        except Exception as error:  # both libraries raise classes of their own, or RuntimeError
            raise InputError(f"{model} cannot be loaded ({last_line(error)}); expected an ONNX network.") from error
    raise BackendError("A depth model needs ONNX Runtime or OpenVINO; install one: pip install kandinsky22[cpu].")


def _onnxruntime(model: Path) -> tuple[Callable[[Array], Array], _Shape]:
    import onnxruntime as ort

    session: Any = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    source, result = session.get_inputs()[0], session.get_outputs()[0]
    shape = tuple(side if isinstance(side, int) else None for side in source.shape)
    return lambda values: np.asarray(session.run([result.name], {source.name: values})[0]), shape


def _openvino(model: Path) -> tuple[Callable[[Array], Array], _Shape]:
    compiled: Any = openvino_core.core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shape = tuple(side.get_length() if side.is_static else None for side in compiled.input(0).partial_shape)
    return lambda values: np.asarray(compiled(values)[0]), shape
