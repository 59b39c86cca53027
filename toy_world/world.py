"""The world: coloured shapes on a dark ground, the kinds held out for testing, and the captions true of a scene."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import dist
from random import Random
from typing import Literal

Rgb = tuple[int, int, int]
Kind = tuple[str, str]  # colour and shape
Form = Literal["one", "group", "pair"]

COLOURS: dict[str, Rgb] = {
    "red": (230, 40, 45),
    "orange": (255, 140, 20),
    "yellow": (255, 230, 50),
    "green": (40, 190, 80),
    "cyan": (60, 220, 230),
    "blue": (50, 100, 255),
    "purple": (160, 70, 230),
    "pink": (255, 130, 200),
    "white": (250, 250, 250),
    "grey": (140, 140, 140),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "arrow", "diamond")
SIZES = {"small": 0.11, "medium": 0.16, "large": 0.22}  # radius, as a share of the side of the picture
COUNTS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
PHRASINGS = ("{}", "{}", "a photo of {}", "a picture of {}", "an image of {}", "i can see {}", "there {be} {}")

KINDS: tuple[Kind, ...] = tuple(product(COLOURS, SHAPES))
# Two shapes of every colour and two colours of every shape occur in no scene and in no caption of the training split.
HELD_OUT = frozenset(
    (colour, SHAPES[(place + step) % len(SHAPES)]) for place, colour in enumerate(COLOURS) for step in (3, 7)
)
SEEN = tuple(kind for kind in KINDS if kind not in HELD_OUT)

_SIZES_OF_SEVERAL = ("small", "medium")  # two large things would hardly fit
_GRID_LINES = 8  # in each direction; centres of things lie where they cross
_MIN_GAP = 0.015  # between things, and from a thing to the border, as a share of the side of the picture
_GENERAL_SHARE = 0.3  # the share of captions that leave the colour or the shape out


@dataclass(frozen=True)
class Thing:
    """One coloured shape. Positions and lengths are shares of the side of the picture; the origin is its top left."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    paint: Rgb  # a shade of the colour

    @property
    def kind(self) -> Kind:
        return self.colour, self.shape

    @property
    def place(self) -> str | None:
        """The place in the picture in words, or None where no words fit."""
        across, down = self.x - 0.5, self.y - 0.5
        if max(abs(across), abs(down)) < 0.15:
            return "in the middle"
        if min(abs(across), abs(down)) < 0.1:
            return None
        return f"in the {'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


@dataclass(frozen=True)
class Scene:
    """One thing, up to four of a kind, or two of different kinds, on a ground."""

    things: tuple[Thing, ...]
    ground: tuple[Rgb, ...]  # 3 x 3 shades, between which the background is interpolated


def relation(first: Thing, second: Thing) -> str | None:
    """Return how the first lies to the second, or None where it is diagonal."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) > 1.5 * abs(down):
        return "left of" if across < 0 else "right of"
    if abs(down) > 1.5 * abs(across):
        return "above" if down < 0 else "below"
    return None


def draw_scene(
    random: Random, kinds: Sequence[Kind] = SEEN, form: Form | None = None, count: int | None = None
) -> Scene:
    """Draw a scene of things of these kinds. Its form, and the count of a group, are random unless given."""
    form = form or random.choices(("one", "group", "pair"), (6, 2, 2))[0]
    if form == "pair":
        chosen = random.sample(kinds, 2)
        sizes = random.choices(_SIZES_OF_SEVERAL, k=2)
    else:
        count = 1 if form == "one" else count or random.randint(2, len(COUNTS))
        chosen = [random.choice(kinds)] * count
        sizes = [random.choice(list(SIZES) if count == 1 else _SIZES_OF_SEVERAL)] * count
    things: list[Thing] = []
    while not things or (form == "pair" and relation(*things) is None):
        things = _scatter(random, chosen, sizes)
    return Scene(tuple(things), draw_ground(random))


def _scatter(random: Random, kinds: Sequence[Kind], sizes: Sequence[str]) -> list[Thing]:
    """Place things that neither touch each other nor leave the picture. Returns an empty list if two are too close."""
    things: list[Thing] = []
    for (colour, shape), size in zip(kinds, sizes, strict=True):
        radius = SIZES[size]
        lines = [
            line / _GRID_LINES
            for line in range(_GRID_LINES)
            if _MIN_GAP <= line / _GRID_LINES - radius <= 1 - 2 * radius - _MIN_GAP
        ]
        x, y = random.choice(lines), random.choice(lines)
        if any(dist((x, y), (other.x, other.y)) < radius + other.radius + _MIN_GAP for other in things):
            return []
        things.append(Thing(colour, shape, size, x, y, radius, draw_shade(random, colour)))
    return things


def draw_shade(random: Random, colour: str) -> Rgb:
    """Draw a shade of a colour."""
    red, green, blue = (min(255, max(0, level + random.randint(-12, 12))) for level in COLOURS[colour])
    return red, green, blue


def draw_ground(random: Random) -> tuple[Rgb, ...]:
    """Draw nine shades of a dark colour, so that every thing is lighter than the ground."""
    base = colorsys.hsv_to_rgb(random.random(), random.uniform(0.2, 0.7), random.uniform(0.1, 0.25))
    return tuple(_shade(random, base) for _ in range(9))


def _shade(random: Random, base: tuple[float, float, float]) -> Rgb:
    light = random.uniform(0.7, 1.3)
    red, green, blue = (round(255 * level * light) for level in base)
    return red, green, blue


def draw_caption(random: Random, scene: Scene) -> str:
    """Draw one of the true captions of a scene."""
    exact, general = statements(scene)
    statement = random.choice(general if general and random.random() < _GENERAL_SHARE else exact)
    be = "are" if statement.split()[0] in COUNTS[1:] else "is"
    return random.choice(PHRASINGS).format(statement, be=be)


def statements(scene: Scene) -> tuple[list[str], list[str]]:
    """Return what is true of a scene: exact statements with every colour and shape, and general ones."""
    first, *others = scene.things
    if not others:
        return _about_one(first)
    if others[0].kind == first.kind:
        return _about_group(first, len(scene.things))
    return _about_pair(first, others[0])


def describe_kind(kind: Kind, count: int = 1) -> str:
    """Return the words for one or several of a kind: "a red star", "two red stars"."""
    return _article(" ".join(kind)) if count == 1 else f"{COUNTS[count - 1]} {_plural(' '.join(kind))}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    return f"{noun}{'es' if noun[-1] == 's' else 's'}"


def _about_one(thing: Thing) -> tuple[list[str], list[str]]:
    colour, shape = thing.kind
    nouns = [f"{colour} {shape}", f"{thing.size} {colour} {shape}"]
    places = ["", f" {thing.place}"] if thing.place else [""]
    exact = [_article(noun) + place for noun in nouns for place in places]
    return exact, [_article(shape), f"something {colour}", f"{_article(shape)}{places[-1]}"]


def _about_group(thing: Thing, count: int) -> tuple[list[str], list[str]]:
    colour, shape = thing.kind
    exact = [describe_kind(thing.kind, count), f"{COUNTS[count - 1]} {thing.size} {_plural(f'{colour} {shape}')}"]
    return exact, [f"{COUNTS[count - 1]} {_plural(shape)}", f"{COUNTS[count - 1]} {colour} things"]


def _about_pair(first: Thing, second: Thing) -> tuple[list[str], list[str]]:
    exact, general = [], []
    relations = relation(first, second), relation(second, first)
    for here, there, lies in ((first, second, relations[0]), (second, first, relations[1])):
        names = describe_kind(here.kind), describe_kind(there.kind)
        exact += [f"{names[0]} {lies} {names[1]}"] * 2 + [f"{names[0]} and {names[1]}"]  # relations are twice as likely
        if here.shape != there.shape:
            general.append(f"{_article(here.shape)} {lies} {_article(there.shape)}")
        if here.colour != there.colour:
            general.append(f"something {here.colour} {lies} something {there.colour}")
    return exact, general
