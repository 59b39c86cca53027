"""Parts of labelled images by a seed: what is learnt from, what is tested on, and a few examples of each class."""

from collections.abc import Sequence
from random import Random


def split_by_class(labels: Sequence[int], test_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the images to learn from and of those to test on, drawn from each class by the seed.

    `test_share` of the images of a class, rounded, are tested on: at least one, and not the only one. Both lists are in
    the order of the images. Raises ValueError for a share outside of 0..1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1, got {test_share}.")
    test: list[int] = []
    for label, places in _places_by_class(labels).items():
        count = min(max(1, round(test_share * len(places))), len(places) - 1)
        test += Random(f"split {seed} {label}").sample(places, count)
    chosen = set(test)
    return [place for place in range(len(labels)) if place not in chosen], sorted(test)


def draw_examples(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Return the places of `shots` images of each class that has any, drawn by the seed, in the order of the images.

    The examples of more shots contain those of fewer. Raises ValueError for a class with fewer images.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}.")
    drawn: list[int] = []
    for label, places in _places_by_class(labels).items():
        if len(places) < shots:
            raise ValueError(f"Expected {shots} images of every class to learn from, class {label} has {len(places)}.")
        shuffled = Random(f"examples {seed} {label}").sample(places, len(places))
        drawn += shuffled[:shots]
    return sorted(drawn)


def _places_by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return places
