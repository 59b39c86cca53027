"""What stands out in a map of patches, and the regions of a picture that it belongs to."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .crops import Box

Grid = npt.NDArray[np.float32]  # (rows, columns) of patches


@dataclass
class Region:
    """A place that may hold the thing: its centre and its size in pixels, and the scores of the looks at it."""

    x: float
    y: float
    width: float
    height: float
    scores: list[float] = field(default_factory=list)
    weight: float = 0.0  # of the measurements that the place is the mean of

    @property
    def size(self) -> float:
        return math.hypot(self.width, self.height) / math.sqrt(2)

    @property
    def score(self) -> float:
        """The best score of the looks at the region itself, of which the first was only towards it."""
        return max(self.scores[1:] or self.scores, default=0.0)

    def refine(self, seen: "Region", side: float) -> None:
        """Take a measurement in a crop of this side into the mean: the closer the crop, the more it counts."""
        share = (1 / side) / (self.weight + 1 / side)
        self.weight += 1 / side
        for name in ("x", "y", "width", "height"):
            setattr(self, name, getattr(self, name) + share * (getattr(seen, name) - getattr(self, name)))


def distinct_regions(regions: Sequence[Region]) -> list[Region]:
    """Return regions with the best first, without those that lie on a better one."""
    kept: list[Region] = []
    for region in sorted(regions, key=lambda region: -region.score):
        if all(
            math.dist((region.x, region.y), (other.x, other.y)) > 0.5 * max(region.size, other.size) for other in kept
        ):
            kept.append(region)
    return kept


def whole_region(crop: Box) -> Region:
    """Return a crop as one region."""
    left, top, right, bottom = crop
    return Region((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def overlap_of(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    across, down = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down or 1)


def standardize(values: Grid) -> Grid:
    """Return values from their median in units of their spread, the median distance from it, as of a normal law."""
    distance = values - np.median(values)
    spread: Grid = distance / (1.4826 * np.median(np.abs(distance)) + 1e-4)
    return spread


def find_peaks(values: Grid, *, most: int, lowest: float, border: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield (x, y, width, height) of the regions around the peaks of a map, in patches, the highest first.

    A region grows from its peak to where the map falls below `border` of it, into no other region. Its place and its
    size are those of a box with the same mean and variance. Peaks below `lowest` of the highest are left out.
    """
    free = np.ones(values.shape, bool)
    highest = values.max()
    y, x = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    for _ in range(most):
        open_values = np.where(free, values, -np.inf)
        peak = np.unravel_index(open_values.argmax(), values.shape)
        if not open_values[peak] > max(0.0, lowest * highest):
            return
        region = _grow(open_values > border * open_values[peak], (int(peak[0]), int(peak[1])))
        free &= ~region
        weights = np.where(region, values, 0)
        weights = weights / weights.sum()
        middle_x, middle_y = float((weights * x).sum()), float((weights * y).sum())
        # A patch is as wide as a box of variance 1/12; one whose map is half beside it is narrower.
        across, down = (
            math.sqrt(12 * (float((weights * (places - middle) ** 2).sum()) + 1 / 36))
            for places, middle in ((x, middle_x), (y, middle_y))
        )
        yield middle_x, middle_y, across, down


def _grow(inside: npt.NDArray[np.bool_], start: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the part of `inside` that touches `start`, corners included."""
    rows, columns = inside.shape
    found = np.zeros_like(inside)
    found[start] = True
    while True:
        padded = np.pad(found, 1)
        near = [padded[down : down + rows, across : across + columns] for down in range(3) for across in range(3)]
        grown = inside & np.any(near, axis=0)
        if (grown == found).all():
            return found
        found = grown
