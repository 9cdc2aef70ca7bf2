"""Pictures of coloured shapes: which scenes exist, which are kept out of training, and how one is drawn.

A *scene* is five class numbers (shape, colour, background, size, position), in the order of `ATTRIBUTES`.
A scene is drawn from signed distances, so a picture, a small copy or a crop of it all cost only their own pixels.
"""

import hashlib
import itertools
import math

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
POSITIONS = ("centre", "left", "right", "top", "bottom")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "background": COLOURS,
    "size": SIZES,
    "position": POSITIONS,
}

PICTURE_SIZE = 128
HELD_OUT_SHARE = 0.1

RGB = torch.tensor(
    [
        (214, 45, 48),
        (246, 142, 38),
        (252, 216, 66),
        (52, 160, 74),
        (44, 98, 214),
        (134, 62, 178),
        (244, 243, 238),
        (28, 28, 34),
    ],
    dtype=torch.float32,
)
# In units of half the frame: the frame runs from -1 to 1 on both axes, y downwards.
_RADIUS = torch.tensor([0.40, 0.62])
_CENTRE = torch.tensor([(0.0, 0.0), (-0.36, 0.0), (0.36, 0.0), (0.0, -0.36), (0.0, 0.36)])
# Which wobbles are those of the two colours.
FIGURE_TINT, GROUND_TINT = slice(4, 7), slice(7, 10)
_WOBBLE_SCALE = torch.tensor([0.03, 0.03, 0.02, math.radians(5.0)] + [7.0] * 6)


def _is_held_out(scene: tuple[int, ...]) -> bool:
    """Whether a combination is never trained on; depends on nothing but the combination itself."""
    digest = hashlib.sha256(",".join(map(str, scene)).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _all_scenes() -> tuple[Tensor, Tensor]:
    scenes = [s for s in itertools.product(*(range(len(v)) for v in ATTRIBUTES.values())) if s[1] != s[2]]
    trained = [s for s in scenes if not _is_held_out(s)]
    held_out = [s for s in scenes if _is_held_out(s)]
    return torch.tensor(trained), torch.tensor(held_out)


TRAINED_SCENES, HELD_OUT_SCENES = _all_scenes()


def sample_scenes(count: int, generator: torch.Generator, pool: Tensor = TRAINED_SCENES) -> Tensor:
    """`count` scenes of the pool, int64 (count, 5)."""
    return pool[torch.randint(len(pool), (count,), generator=generator)]


def sample_wobbles(count: int, generator: torch.Generator) -> Tensor:
    """How each drawing departs from its scene's ideal: (count, 10) in -1..1 (place, size, angle, both colours)."""
    return torch.rand(count, len(_WOBBLE_SCALE), generator=generator) * 2 - 1


def _polygon_distance(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon, negative inside."""
    best = torch.full_like(x, 1e9)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, corners[-1:] + corners[:-1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        best = torch.minimum(best, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        above_a, below_b, left = wy >= 0, y < by, ex * wy > ey * wx
        flips = (above_a & below_b & left) | ~(above_a | below_b | left)
        sign = torch.where(flips, -sign, sign)
    return sign * best.sqrt()


def _fan(radii: list[float]) -> list[tuple[float, float]]:
    """Corners around the origin at even angles, the first one pointing up."""
    step = 2 * math.pi / len(radii)
    return [(r * math.sin(i * step), -r * math.cos(i * step)) for i, r in enumerate(radii)]


def _cross_corners(reach: float, half_width: float) -> list[tuple[float, float]]:
    a, b = reach, half_width
    return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]


def _shape_distance(shape: int, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a shape of radius 1 around the origin. Shapes are scaled to look equally large."""
    name = SHAPES[shape]
    if name == "circle":
        return torch.hypot(x, y) - 0.94
    if name == "ring":
        return (torch.hypot(x, y) - 0.74).abs() - 0.24
    if name == "square":
        return _polygon_distance(x, y, [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)])
    if name == "triangle":
        return _polygon_distance(x, y - 0.18, _fan([1.12] * 3))
    if name == "star":
        return _polygon_distance(x, y - 0.05, _fan([1.08, 0.46] * 5))
    return _polygon_distance(x, y, _cross_corners(0.98, 0.32))


def edge_distances(
    scenes: Tensor,
    wobbles: Tensor,
    size: int = PICTURE_SIZE,
    corners: Tensor | None = None,
    span: float = 2.0,
) -> Tensor:
    """Signed distances to the figures' edges, float32 (n, size, size), in units of the frame, negative inside.

    `corners` (n, 2) and `span` pick a window of the frame (in its units); without them it is the whole frame.
    """
    n = len(scenes)
    corners = torch.full((n, 2), -1.0) if corners is None else corners
    axis = (torch.arange(size) + 0.5) / size * span
    offsets = wobbles * _WOBBLE_SCALE
    centre = _CENTRE[scenes[:, 4]] + offsets[:, :2]
    radius = (_RADIUS[scenes[:, 3]] + offsets[:, 2])[:, None, None]
    x = ((corners[:, :1] + axis) - centre[:, :1])[:, None, :].expand(n, size, size)
    y = ((corners[:, 1:] + axis) - centre[:, 1:])[:, :, None].expand(n, size, size)
    cos, sin = offsets[:, 3].cos()[:, None, None], offsets[:, 3].sin()[:, None, None]
    u, v = (x * cos + y * sin) / radius, (y * cos - x * sin) / radius
    distance = torch.empty(n, size, size)
    for shape in scenes[:, 0].unique().tolist():
        rows = scenes[:, 0] == shape
        distance[rows] = _shape_distance(shape, u[rows], v[rows])
    return distance * radius


def _cover(distances: Tensor, pixel: float) -> Tensor:
    """How much of each pixel the figure covers. An edge about one and a half pixels wide: no stair to learn."""
    return (0.5 - distances / (1.5 * pixel)).clamp(0, 1)


def draw(
    scenes: Tensor,
    wobbles: Tensor,
    size: int = PICTURE_SIZE,
    corners: Tensor | None = None,
    span: float = 2.0,
) -> Tensor:
    """Draw scenes, float32 (n, 3, size, size) in -1..1; `corners` and `span` as in `edge_distances`."""
    cover = _cover(edge_distances(scenes, wobbles, size, corners, span), span / size)[:, None]
    offsets = wobbles * _WOBBLE_SCALE
    figure = (RGB[scenes[:, 1]] + offsets[:, FIGURE_TINT])[:, :, None, None]
    ground = (RGB[scenes[:, 2]] + offsets[:, GROUND_TINT])[:, :, None, None]
    return (ground + (figure - ground) * cover).clamp(0, 255) / 127.5 - 1


def draw_depth(scenes: Tensor, wobbles: Tensor, size: int = PICTURE_SIZE) -> Tensor:
    """Depth maps of scenes, float32 (n, 3, size, size) in 0..1, three equal channels, nearer is brighter.

    Ground and figure lean like a floor (0.1 at the top edge, 0.3 at the bottom one); the figure stands 0.6 nearer.
    """
    lean = 0.1 + 0.2 * (torch.arange(size) + 0.5) / size
    cover = _cover(edge_distances(scenes, wobbles, size), 2.0 / size)
    return (lean[:, None] + 0.6 * cover)[:, None].expand(-1, 3, -1, -1)
