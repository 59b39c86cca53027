"""Drawings of scenes. Pillow draws every thing four times as large and averages, so that edges are smooth."""

from math import ceil, cos, pi, sin

from PIL import Image, ImageDraw

from .world import Scene, Thing

Outline = list[tuple[float, float]]  # within a circle of radius 1, y downwards

IMAGE_SIZE = 64  # pixels per side, for both small checkpoints
_SUPERSAMPLING = 4


def _polygon(corners: int, turn: float = -pi / 2, radius: float = 1.0, x: float = 0.0) -> Outline:
    angles = [turn + 2 * pi * corner / corners for corner in range(corners)]
    return [(x + radius * cos(angle), radius * sin(angle)) for angle in angles]


def _star() -> Outline:
    return [point for pair in zip(_polygon(5), _polygon(5, -pi / 2 + pi / 5, 0.42), strict=True) for point in pair]


def _heart() -> Outline:
    angles = [2 * pi * step / 40 for step in range(40)]
    points = [(16 * sin(t) ** 3, 13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) for t in angles]
    return [(x / 17.6, -y / 17.6 - 0.09) for x, y in points]


def _cross(arm: float = 0.32, reach: float = 0.94) -> Outline:
    quarter = [(arm, -arm), (arm, -reach), (-arm, -reach)]
    turned = [quarter]
    for _ in range(3):
        turned.append([(y, -x) for x, y in turned[-1]])
    return [point for part in turned for point in part]


# The outline of each shape, and of the hole in it.
_OUTLINES: dict[str, list[Outline]] = {
    "circle": [_polygon(48, radius=0.9)],
    "square": [_polygon(4, pi / 4)],
    "triangle": [_polygon(3)],
    "star": [_star()],
    "heart": [_heart()],
    "cross": [_cross()],
    "ring": [_polygon(48, radius=0.95), _polygon(48, radius=0.5)],
    "moon": [_polygon(48, radius=0.95), _polygon(48, radius=0.8, x=0.45)],
    "arrow": [[(1, 0), (0.1, -0.8), (0.1, -0.3), (-0.95, -0.3), (-0.95, 0.3), (0.1, 0.3), (0.1, 0.8)]],
    "diamond": [[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]],
}


def render(scene: Scene, image_size: int = IMAGE_SIZE) -> Image.Image:
    """Draw a scene as a square RGB picture with `image_size` pixels per side."""
    picture = Image.new("RGB", (3, 3))
    picture.putdata(scene.ground)
    picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
    for thing in scene.things:
        mask, left, top = _mask(thing, image_size)
        picture.paste(thing.paint, (left, top), mask)
    return picture


def outline_box(thing: Thing, image_size: int) -> tuple[float, float, float, float]:
    """Return the (left, top, right, bottom) of a thing in a picture with `image_size` pixels per side, in pixels."""
    columns, rows = zip(*_OUTLINES[thing.shape][0], strict=True)
    reach = image_size * thing.radius
    left, right = (image_size * thing.x + reach * edge(columns) for edge in (min, max))
    top, bottom = (image_size * thing.y + reach * edge(rows) for edge in (min, max))
    return left, top, right, bottom


def _mask(thing: Thing, image_size: int) -> tuple[Image.Image, int, int]:
    """Return the coverage of a small part of the picture by the thing, and the left and top of that part."""
    reach = ceil(thing.radius * image_size) + 1
    left, top = (round(place * image_size) - reach for place in (thing.x, thing.y))
    mask = Image.new("L", (2 * reach * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    scale = image_size * _SUPERSAMPLING
    middle_x, middle_y = scale * thing.x - left * _SUPERSAMPLING, scale * thing.y - top * _SUPERSAMPLING
    for outline, level in zip(_OUTLINES[thing.shape], (255, 0), strict=False):
        points = [(middle_x + scale * thing.radius * x, middle_y + scale * thing.radius * y) for x, y in outline]
        draw.polygon(points, fill=level)
    return mask.reduce(_SUPERSAMPLING), left, top
