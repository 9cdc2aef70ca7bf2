"""Convolutions of 3x3 by Winograd's algorithm, for OpenVINO in float32: a quarter of the multiplications.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). For F(4x4, 3x3) a map is cut into tiles of
6x6 pixels that overlap by two; tiles and kernels are transformed, multiplied by one matrix product for each of the 36
places, summed over the channels, and transformed back into 4x4 pixels. Small maps have few tiles, to which 36 matrices
of transformed kernels are much: they are cut by F(2x2, 3x3) into tiles of 4x4, which save less and need 16. OpenVINO
has no such kernel, but all of it can be written as a gather and matrix products, which run at the processor's full
speed. docs/benchmarks.md has the measurements.

Rounding errors are five times those of a plain convolution (1.5e-6 of the result's size, root mean square). In
bfloat16 they would be too large.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from openvino import opset13 as ops

from kandinsky22.arrays import Array
from kandinsky22.backends.openvino.rewrites import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    Node,
    constant_behind,
    integers,
    of_kind,
    replace,
)

Points = tuple[float, ...]

KERNEL = 3

F4, F2 = (0.0, 0.75, -0.75, 1.5, -1.5), (0.0, 1.0, -1.0)
"""F(4x4, 3x3) and F(2x2, 3x3), named by where their polynomials are evaluated, beside infinity.

Those of F4 have a fifth of the largest error of Lavin and Gray's 0, ±1, ±2.
"""

FEWEST_CHANNELS = 256
"""With fewer, moving the tiles takes as long as the multiplications that are saved."""

FEWEST_TILES = {F4: 64, F2: 128}
"""With fewer, transforming the kernels does. The first that has enough is taken."""

LARGEST_BAND = 64 << 20
"""Bytes of tiles that are made at once: a map is worked through in bands of rows of tiles."""

KERNELS = "winograd_kernels_{}"
"""Inputs that are added to a model: the kernels that are transformed, as they are in the file.

What depends on constants alone is computed when a model is compiled, and kept. Kernels that are given to it, in half
precision and mapped from the file, are transformed in each run and take no memory. Their number is left open: for an
input of a known size OpenVINO sets memory aside, although it is given some.
"""


def matrices(points: Points) -> tuple[Array, Array, Array]:
    """Matrices A (m, m + 2), G (m + 2, 3) and B (m + 2, m + 2) of F(m, 3), of which `points` are m + 1, in float64.

    They are such that A ((G g) * (B d)) correlates d (m + 2) with g (3). Toom and Cook's construction: evaluate two
    polynomials at the points and at infinity, multiply, interpolate; then transposed. Blahut, Fast Algorithms for
    Signal Processing (2010), section 5.2.
    """
    at, out = np.array(points), _sides(points)[0]
    evaluate = np.vander(at, out, increasing=True).T
    kernel = np.vander(at, KERNEL, increasing=True)
    others = [np.delete(at, place) for place in range(len(at))]
    kernel /= [[np.prod(point - rest)] for point, rest in zip(at, others, strict=True)]
    interpolate = [[*np.poly(rest)[::-1], 0.0] for rest in others]
    at_infinity = np.eye(out)[:, -1:], np.eye(KERNEL)[-1:], [np.poly(at)[::-1]]
    return (
        np.hstack([evaluate, at_infinity[0]]),
        np.vstack([kernel, at_infinity[1]]),
        np.vstack([interpolate, at_infinity[2]]),
    )


def is_for(model: Any) -> bool:
    """Whether a model has convolutions that are faster so on maps that are large enough."""
    return any(_wide_kernels(node) is not None for node in of_kind(model, "Convolution"))


def winograd(model: Any) -> dict[str, Node]:
    """Rewrite the convolutions of a model that are faster so, of those whose maps have a known size.

    Returns the constants that must be given to it beside its own inputs: none where there is no such convolution. They
    own the memory of their `tensor_view`.
    """
    places: dict[tuple[int, ...], Node] = {}
    given: dict[str, Node] = {}
    for number, node in enumerate(of_kind(model, "Convolution")):
        constant, points = _wide_kernels(node), _points(node)
        if constant is None or points is None:
            continue
        name = KERNELS.format(number)
        shape = [-1, *list(constant.get_output_shape(0))[1:]]
        kernels = ops.parameter(shape, constant.get_output_element_type(0), name=name)
        kernels.output(0).set_names({name})
        replace(node, _convolution(node, points, ops.convert(kernels, "f32"), places))
        model.add_parameters([kernels])
        given[name] = constant
    model.validate_nodes_and_infer_types()
    return given


def _wide_kernels(node: Node) -> Node | None:
    """The constant kernels of a plain convolution of 3x3 between enough channels; None for any other."""
    attributes, kernels = node.get_attributes(), node.input_value(1)
    plain = all(attributes[name] == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
    if not plain or attributes["auto_pad"] != "explicit" or list(kernels.get_shape())[2:] != [KERNEL] * 2:
        return None
    return constant_behind(kernels) if min(kernels.get_shape()[:2]) >= FEWEST_CHANNELS else None


def _points(node: Node) -> Points | None:
    """Which algorithm is the fastest for its maps; None where they have too few tiles, or an unknown size."""
    if node.input_value(0).get_partial_shape().is_dynamic:
        return None
    batch, _, height, width = node.input_value(0).get_shape()
    tiles = {points: batch * math.prod(_tiles(points, height, width)) for points in FEWEST_TILES}
    return next((points for points, fewest in FEWEST_TILES.items() if tiles[points] >= fewest), None)


def _tiles(points: Points, height: int, width: int) -> tuple[int, int]:
    """How many tiles a map has, down and across."""
    out = _sides(points)[0]
    return -(-height // out), -(-width // out)


def _sides(points: Points) -> tuple[int, int]:
    """Sides of what a tile gives, and of a tile."""
    return len(points) + 2 - KERNEL, len(points) + 1


def _convolution(node: Node, points: Points, kernels: Node, places: dict[tuple[int, ...], Node]) -> Node:
    """The same convolution. `places` keeps constants that convolutions of maps of one size share."""
    batch, channels, height, width = node.input_value(0).get_shape()
    channels_out = node.get_output_shape(0)[1]
    (out, tile), (down, across) = _sides(points), _tiles(points, height, width)
    pixels = _shaped(ops.transpose(node.input_value(0), integers(*CHANNELS_LAST)), -1, channels)
    taps = _shaped(kernels, channels_out * channels, -1)
    places_of_taps = ops.matmul(_both_ways(matrices(points)[1]), taps, False, True)
    transformed = _shaped(places_of_taps, tile**2, channels_out, channels)
    bands = -(-4 * tile**2 * batch * down * across * channels // LARGEST_BAND)
    edges = np.linspace(0, down, min(bands, down) + 1).astype(int)
    done = []
    for first, end in itertools.pairwise(edges):
        key = (out, batch, height, width, int(first), int(end))
        if key not in places:
            places[key] = ops.constant(_pixels_of_tiles(points, *key[1:]).astype(np.int32))
        done.append(_band(points, pixels, places[key], transformed, (batch, int(end - first), across)))
    whole = done[0] if len(done) == 1 else ops.concat(done, 1)
    if (down * out, across * out) != (height, width):
        whole = ops.slice(whole, integers(0, 0), integers(height, width), integers(1, 1), integers(1, 2))
    return ops.transpose(whole, integers(*CHANNELS_FIRST))


def _band(points: Points, pixels: Node, places: Node, kernels: Node, tiles: tuple[int, int, int]) -> Node:
    """Rows of tiles (pictures, tiles down, tiles across) of a map, convolved: (B, height, width, channels)."""
    to_pixels, _, to_places = matrices(points)
    count, (channels_out, channels) = math.prod(tiles), kernels.get_output_shape(0)[1:]
    out, tile = _sides(points)
    gathered = _shaped(ops.gather(pixels, places, integers(0)), tile**2, count * channels)
    transformed = _shaped(ops.matmul(_both_ways(to_places), gathered, False, False), tile**2, count, channels)
    products = _shaped(ops.matmul(transformed, kernels, False, True), tile**2, count * channels_out)
    batch, down, across = tiles
    back = ops.matmul(_both_ways(to_pixels), products, False, False)
    back = _shaped(back, out, out, batch, down, across, channels_out)
    return _shaped(ops.transpose(back, integers(2, 3, 0, 4, 1, 5)), batch, down * out, across * out, channels_out)


def _both_ways(matrix: Array) -> Node:
    """What `matrix` does to a column, as one matrix that does it to columns and rows of a tile's places."""
    return ops.constant(np.kron(matrix, matrix).astype(np.float32))


def _shaped(value: Node, *shape: int) -> Node:
    return ops.reshape(value, integers(*shape), special_zero=False)


def _pixels_of_tiles(points: Points, batch: int, height: int, width: int, first: int, end: int) -> Array:
    """Which pixel lies at each of a tile's places, for rows `first` to `end` of tiles: (36 or 16 times tiles).

    Pixels are counted through all maps of the batch; one number too large stands for all beyond the border, since
    OpenVINO gathers zeros from beyond the end.
    """
    out, tile = _sides(points)
    place, pictures = np.arange(tile), np.arange(batch)
    y = place[:, None] - 1 + out * np.arange(first, end)
    x = place[:, None] - 1 + out * np.arange(_tiles(points, height, width)[1])
    y, x = y[:, None, None, :, None], x[None, :, None, None, :]  # of (6, 6, batch, tiles down, tiles across)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixel = (pictures[:, None, None] * height + y) * width + x
    return np.where(inside, pixel, batch * height * width).reshape(-1)
