"""Convolutions of 3x3 by Winograd's F(4x4, 3x3), for OpenVINO in float32: a quarter of the multiplications.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). A map is cut into tiles of 6x6 pixels that
overlap by two; tiles and kernels are transformed, multiplied by one matrix product for each of the 36 places, summed
over the channels, and transformed back into 4x4 pixels. OpenVINO has no such kernel, but all of it can be written as
a gather and matrix products, which run at the processor's full speed. docs/benchmarks.md has the measurements.

Rounding errors are five times those of a plain convolution (1.5e-6 of the result's size, root mean square). In
bfloat16 they would be too large.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from openvino import opset13 as ops

from kandinsky22.arrays import Array
from kandinsky22.backends.openvino_rewrites import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    Node,
    constant_behind,
    integers,
    of_kind,
    replace,
)

OUT, TILE = 4, 6
"""Sides of what a tile gives, and of a tile."""

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where the polynomials are evaluated, beside infinity: a fifth of the largest error of Lavin and Gray's 0, ±1, ±2."""

FEWEST_CHANNELS = 256
"""With fewer, moving the tiles takes as long as the multiplications that are saved."""

FEWEST_TILES = 64
"""With fewer, transforming the kernels does."""

LARGEST_BAND = 64 << 20
"""Bytes of tiles that are made at once: a map is worked through in bands of rows of tiles."""

TRANSFORM, NUMBERS = "winograd_transform", "winograd_numbers"
"""Inputs that are added to a model: kernels to their 36 places, (36, 9) in float32; and 0, 1, 2…, (n) in int32.

Both are constant, but what depends on constants alone is computed when a model is compiled, and kept. Kernels that are
picked by number from the file, where they are in half precision, and transformed in each run, take no memory.
"""


def matrices(points: Sequence[float] = POINTS) -> tuple[Array, Array, Array]:
    """Matrices A (4, 6), G (6, 3) and B (6, 6) such that A ((G g) * (B d)) correlates d (6) with g (3), in float64.

    Toom and Cook's construction: evaluate two polynomials at the points and at infinity, multiply, interpolate; then
    transposed. Blahut, Fast Algorithms for Signal Processing (2010), section 5.2.
    """
    at = np.array(points)
    evaluate = np.vander(at, OUT, increasing=True).T
    kernel = np.vander(at, TILE - OUT + 1, increasing=True)
    others = [np.delete(at, place) for place in range(len(at))]
    kernel /= [[np.prod(point - rest)] for point, rest in zip(at, others, strict=True)]
    interpolate = [[*np.poly(rest)[::-1], 0.0] for rest in others]
    at_infinity = np.eye(OUT)[:, -1:], np.eye(TILE - OUT + 1)[-1:], [np.poly(at)[::-1]]
    return (
        np.hstack([evaluate, at_infinity[0]]),
        np.vstack([kernel, at_infinity[1]]),
        np.vstack([interpolate, at_infinity[2]]),
    )


def is_for(model: Any) -> bool:
    """Whether a model has convolutions that are faster so on maps that are large enough."""
    return any(_is_wide(node) for node in of_kind(model, "Convolution"))


def winograd(model: Any) -> dict[str, Array]:
    """Rewrite the convolutions of a model that are faster so, of those whose maps have a known size.

    Returns what must be given to it beside its own inputs: nothing where there is no such convolution.
    """
    found = [node for node in of_kind(model, "Convolution") if _is_wide(node) and _is_large(node)]
    if not found:
        return {}
    _, kernel, _ = matrices()
    added = {
        TRANSFORM: np.kron(kernel, kernel).astype(np.float32),
        NUMBERS: np.arange(max(node.get_output_shape(0)[1] for node in found), dtype=np.int32),
    }
    inputs = {name: ops.parameter(array.shape, array.dtype.type, name=name) for name, array in added.items()}
    for name, each in inputs.items():
        each.output(0).set_names({name})
    places: dict[tuple[int, ...], Node] = {}
    for node in found:
        replace(node, _convolution(node, inputs, places))
    model.add_parameters(list(inputs.values()))
    model.validate_nodes_and_infer_types()
    return added


def _is_wide(node: Node) -> bool:
    """Whether it is a plain convolution of 3x3 with constant kernels between enough channels."""
    attributes, kernel = node.get_attributes(), node.input_value(1)
    if not constant_behind(kernel) or attributes["auto_pad"] != "explicit":
        return False
    plain = all(attributes[name] == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
    channels_out, channels_in, *sides = kernel.get_shape()
    return plain and list(sides) == [3, 3] and bool(min(channels_out, channels_in) >= FEWEST_CHANNELS)


def _is_large(node: Node) -> bool:
    """Whether its maps have tiles enough; not where their size is unknown."""
    if node.input_value(0).get_partial_shape().is_dynamic:
        return False
    batch, _, height, width = node.input_value(0).get_shape()
    return bool(batch * -(-height // OUT) * -(-width // OUT) >= FEWEST_TILES)


def _convolution(node: Node, inputs: Mapping[str, Node], places: dict[tuple[int, ...], Node]) -> Node:
    """The same convolution. `places` keeps constants that convolutions of maps of one size share."""
    batch, channels, height, width = node.input_value(0).get_shape()
    kernels = node.input_value(1).get_shape()[0]
    down, across = -(-height // OUT), -(-width // OUT)
    pixels = _shaped(ops.transpose(node.input_value(0), integers(*CHANNELS_LAST)), -1, channels)
    pixels = ops.concat([pixels, ops.constant(np.zeros((1, channels), np.float32))], 0)  # what lies beyond the border
    numbers = ops.slice(inputs[NUMBERS], integers(0), integers(kernels), integers(1))
    taps = _shaped(ops.gather(node.input_value(1), numbers, integers(0)), kernels * channels, -1)
    transformed = _shaped(ops.matmul(inputs[TRANSFORM], taps, False, True), TILE**2, kernels, channels)
    bands = -(-4 * TILE**2 * batch * down * across * channels // LARGEST_BAND)
    edges = np.linspace(0, down, min(bands, down) + 1).astype(int)
    done = []
    for first, end in itertools.pairwise(edges):
        key = (batch, height, width, int(first), int(end))
        if key not in places:
            places[key] = ops.constant(_pixels_of_tiles(*key).astype(np.int32))
        done.append(_band(pixels, places[key], transformed, (batch, int(end - first), across)))
    whole = done[0] if len(done) == 1 else ops.concat(done, 1)
    if (down * OUT, across * OUT) != (height, width):
        whole = ops.slice(whole, integers(0, 0), integers(height, width), integers(1, 1), integers(1, 2))
    return ops.transpose(whole, integers(*CHANNELS_FIRST))


def _band(pixels: Node, places: Node, kernels: Node, tiles: tuple[int, int, int]) -> Node:
    """Rows of tiles (pictures, tiles down, tiles across) of a map, convolved: (B, height, width, channels)."""
    out, _, tile = (ops.constant(np.kron(each, each).astype(np.float32)) for each in matrices())
    count, (channels_out, channels) = int(np.prod(tiles)), kernels.get_output_shape(0)[1:]
    gathered = _shaped(ops.gather(pixels, places, integers(0)), TILE**2, count * channels)
    transformed = _shaped(ops.matmul(tile, gathered, False, False), TILE**2, count, channels)
    products = _shaped(ops.matmul(transformed, kernels, False, True), TILE**2, count * channels_out)
    batch, down, across = tiles
    back = _shaped(ops.matmul(out, products, False, False), OUT, OUT, batch, down, across, channels_out)
    return _shaped(ops.transpose(back, integers(2, 3, 0, 4, 1, 5)), batch, down * OUT, across * OUT, channels_out)


def _shaped(value: Node, *shape: int) -> Node:
    return ops.reshape(value, integers(*shape), special_zero=False)


def _pixels_of_tiles(batch: int, height: int, width: int, first: int, end: int) -> Array:
    """Which pixel lies at each of a tile's 36 places, for rows `first` to `end` of tiles: (36 * tiles).

    Pixels are counted through all maps of the batch; one more stands for all beyond the border.
    """
    place, pictures = np.arange(TILE), np.arange(batch)
    y = place[:, None] - 1 + OUT * np.arange(first, end)
    x = place[:, None] - 1 + OUT * np.arange(-(-width // OUT))
    y, x = y[:, None, None, :, None], x[None, :, None, None, :]  # of (6, 6, batch, tiles down, tiles across)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixel = (pictures[:, None, None] * height + y) * width + x
    return np.where(inside, pixel, batch * height * width).reshape(-1)
