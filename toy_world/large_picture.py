"""Large pictures with one small thing to find among others: the world in which `twinlens.locate` is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import dist
from random import Random

from PIL import Image

from .picture import outline_box, render
from .world import COLOURS, KINDS, SHAPES, Kind, Scene, Thing, describe_kind, draw_ground, draw_shade

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

LARGE_IMAGE_SIZE = 4096  # pixels per side
SMALLEST, LARGEST = 64, 512  # pixels across; the thing to find has the smallest size
_OTHERS = range(8, 21)  # how many other things there are
_ALIKE = 2  # of them, so many have the colour of the thing to find, and so many its shape
_GAP = 16  # pixels between things, and from a thing to the border


@dataclass(frozen=True)
class LargePicture:
    """A picture of `LARGE_IMAGE_SIZE` pixels per side: the first thing of its scene is the one to find."""

    scene: Scene

    @property
    def text(self) -> str:
        """The words for the thing to find, such as "a red star"."""
        return describe_kind(self.scene.things[0].kind)

    @property
    def box(self) -> Box:
        """The box around the thing to find, in pixels."""
        return outline_box(self.scene.things[0], LARGE_IMAGE_SIZE)

    def render(self) -> Image.Image:
        """Draw the picture."""
        return render(self.scene, LARGE_IMAGE_SIZE)


def draw_large_picture(seed: int, kinds: Sequence[Kind] = KINDS) -> LargePicture:
    """Draw a picture with one thing of 64 pixels and 8 to 20 others of 64 to 512 pixels on one ground.

    Its kind is one of `kinds`, by turns. No other thing is of its kind, two at least have its colour and two its shape;
    the rest are of any kind. Sizes are spread evenly on a logarithmic scale, places evenly, and nothing overlaps.
    """
    random = Random(f"large {seed}")
    wanted = kinds[seed % len(kinds)]
    colour, shape = wanted
    others = [(colour, other) for other in random.sample([s for s in SHAPES if s != shape], _ALIKE)]
    others += [(other, shape) for other in random.sample([c for c in COLOURS if c != colour], _ALIKE)]
    different = [kind for kind in KINDS if kind != wanted]
    others += random.choices(different, k=random.choice(_OTHERS) - len(others))
    sizes = [SMALLEST, *(SMALLEST * (LARGEST / SMALLEST) ** random.random() for _ in others)]
    things: list[Thing] = []
    for kind, pixels in sorted(zip([wanted, *others], sizes, strict=True), key=lambda pair: -pair[1]):
        things.append(_place(random, kind, pixels / 2 / LARGE_IMAGE_SIZE, things))  # the largest first: they find room
    return LargePicture(Scene((things[-1], *things[:-1]), draw_ground(random)))


def _place(random: Random, kind: Kind, radius: float, others: Sequence[Thing]) -> Thing:
    gap = _GAP / LARGE_IMAGE_SIZE
    while True:
        x, y = (random.uniform(radius + gap, 1 - radius - gap) for _ in range(2))
        if all(dist((x, y), (other.x, other.y)) > radius + other.radius + gap for other in others):
            return Thing(*kind, "small", x, y, radius, draw_shade(random, kind[0]))
