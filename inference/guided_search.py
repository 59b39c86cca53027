"""Small things in big pictures: a search that finds likely regions first, and then looks at them closely.

It follows the guided search of V* (arXiv:2312.14135). Every look is one crop of the full-resolution picture, encoded at
the model's own resolution. A coarse grid of crops gives one map of the whole picture; its peaks are looked at, and the
best of them again, centred anew and at several scales, while the budget of encodings lasts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..modeling import DualEncoderModel
from ..modeling.dual_encoder import l2_normalize
from ..processing import DualEncoderProcessor, image_steps
from ..processing.image_arrays import to_levels
from ..processing.image_input import open_image
from ..processing.image_settings import WHITE
from ..runtime import check_finite_rows
from .labels import check_labels
from .maps import image_inputs, project_tokens

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture
Grid = npt.NDArray[np.float32]  # (rows, columns) of patches

MAX_ENCODINGS = 60
_OVERVIEW_SHARE = 0.3  # of the budget, at most, for the grid of crops that comes first
# After the overview: shares of what is left, and the sides of the crops in each round, as multiples of the size of the
# thing. A round looks at as many regions as it can pay for, the best first.
_ROUNDS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.5, (2.7,)),
    (0.25, (2.3,)),
    (0.12, (2.7,)),
    (0.13, (2.5, 2.9)),
)
# A thing smaller than a patch of the overview lights up one or two. It is taken for so many patches wide, and one that
# is seen larger for 0.6 patches less.
_POINT = 0.65
_TEXT_WEIGHT = 0.5  # of the similarity with the text in the overview, beside how much a patch stands out
_BORDER = 0.3  # a region reaches to where its map falls below this share of its peak; 0.5 in the overview
_REGIONS_OF_A_LOOK = 2  # at most, where one crop shows several things
_LATER_REGION = 0.05  # cosine that a further region of a crop counts less than the first
_OVERLAP = 0.3  # intersection over union above which two boxes are one


class Located(NamedTuple):
    """What a search found, best first."""

    boxes: Tensor  # (boxes, 4): left, top, right, bottom in pixels of the picture
    scores: Tensor  # (boxes,): the cosine of the best crop around each box with the text
    encodings: int  # how many crops were encoded
    crops: list[Box]  # all of them, in the order in which they were looked at


@dataclass
class _Region:
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

    def refine(self, seen: "_Region", side: float) -> None:
        """Take a measurement in a crop of this side into the mean: the closer the crop, the more it counts."""
        share = (1 / side) / (self.weight + 1 / side)
        self.weight += 1 / side
        for name in ("x", "y", "width", "height"):
            setattr(self, name, getattr(self, name) + share * (getattr(seen, name) - getattr(self, name)))


def locate(
    model: DualEncoderModel,
    processor: DualEncoderProcessor,
    image: Any,
    text: str,
    *,
    max_encodings: int = MAX_ENCODINGS,
    max_boxes: int = 5,
    batch_size: int = 32,
) -> Located:
    """Return where in a picture a text fits best, after at most `max_encodings` encodings of crops.

    The picture is anything that the processor takes as one image. There is always a box: whether the text fits at all
    is what the score says. Raises ValueError for an empty text or a budget below 1.
    """
    (text,) = check_labels([text])
    for name, value in {"max_encodings": max_encodings, "max_boxes": max_boxes, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    search = Search(model, processor, open_rgb(processor, image), text, max_encodings, batch_size)
    regions = search.run()
    kept: list[tuple[Box, float]] = []
    for region in sorted(regions, key=lambda region: -region.score):
        box = search.box_of(region)
        if len(kept) < max_boxes and all(_overlap(box, other) <= _OVERLAP for other, _ in kept):
            kept.append((box, region.score))
    boxes, scores = zip(*kept, strict=True)
    return Located(torch.tensor(boxes), torch.tensor(scores), len(search.crops), search.crops)


class Search:
    """One search in one picture: what was looked at, and what is left of the budget."""

    def __init__(
        self,
        model: DualEncoderModel,
        processor: DualEncoderProcessor,
        image: Image.Image,
        text: str,
        budget: int,
        batch_size: int,
    ) -> None:
        self.model, self.processor, self.image, self.budget, self.batch_size = (
            model,
            processor,
            image,
            budget,
            batch_size,
        )
        self.text_embeds = model.encode(text, processor, kind="text")
        self.resolution = _resolution(model, processor)
        self.crops: list[Box] = []

    @property
    def left(self) -> int:
        return self.budget - len(self.crops)

    def run(self) -> list[_Region]:
        """Return the regions that were looked at most closely, or all where no look was left for a second one."""
        regions = self.overview()
        left = self.left
        closely: list[_Region] = []
        for number, (share, zooms) in enumerate(_ROUNDS):
            chosen = regions[: max(1, round(share * left / len(zooms)))]
            looks = [(region, zoom) for region in chosen for zoom in zooms][: self.left]
            if not looks:
                break
            found = self.look_at(looks, first=number == 0)
            regions = _distinct(found if number == 0 else chosen)
            closely = closely or [region for region in regions if len(region.scores) > 1]
        return closely or regions

    def overview(self) -> list[_Region]:
        """Return the peaks of one map of the whole picture, the highest first. They have no score yet.

        The map adds up two values of a patch, each in its own spread over all patches: how far its vector lies from the
        middle of its crop's, and how much of that points to the text.
        """
        width, height = self.image.size
        columns, rows, side = _grid(width, height, max(1, int(_OVERVIEW_SHARE * self.budget)), self.resolution)
        lefts, tops = _spread(width, side, columns), _spread(height, side, rows)
        crops = [(left, top, left + side, top + side) for top in tops for left in lefts]
        scores, patches = self.encode(crops)
        away = patches - patches.flatten(1, 2).median(dim=1).values[:, None, None]  # (crops, rows, columns, dim)
        novelty, towards = away.norm(dim=-1).numpy(), (away @ self.text_embeds).numpy()
        cell = side / novelty.shape[1]
        places_y, row_of, y_in = _stitch(height, tops, side, cell)
        places_x, column_of, x_in = _stitch(width, lefts, side, cell)
        index = (row_of * columns)[:, None] + column_of, y_in[:, None], x_in[None]
        stitched = _standardized(novelty[index]) + _TEXT_WEIGHT * _standardized(towards[index])
        regions = [
            _Region(places_x + x * cell, places_y + y * cell, max(_POINT, w - 0.6) * cell, max(_POINT, h - 0.6) * cell)
            for x, y, w, h in _peaks(stitched, most=self.budget, lowest=0.0, border=0.5)
        ]
        if self.left < 1 or not regions:
            best = max(range(len(crops)), key=lambda place: scores[place])
            regions = self.regions_in(crops[best], patches[best]) or [_whole(crops[best])]
            for region in regions:
                region.scores = [scores[best]]
        return regions

    def look_at(self, looks: Sequence[tuple[_Region, float]], first: bool) -> list[_Region]:
        """Look at regions, each in a crop of a multiple of its size. Returns what the crops show.

        Regions that were looked at `first` stand for what their crops show; others are measured again.
        """
        crops = [self.square(region.x, region.y, zoom * region.size) for region, zoom in looks]
        scores, patches = self.encode(crops)
        found = []
        for (region, _), crop, score, vectors in zip(looks, crops, scores, patches, strict=True):
            seen = self.regions_in(crop, vectors)
            if first:
                for place, other in enumerate(seen or [region]):
                    other.scores = [score - place * _LATER_REGION]
                    found.append(other)
                continue
            region.scores.append(score)
            if seen:
                nearest = min(seen, key=lambda other: math.dist((other.x, other.y), (region.x, region.y)))
                if math.dist((nearest.x, nearest.y), (region.x, region.y)) < region.size:
                    region.refine(nearest, crop[2] - crop[0])
        return found

    def regions_in(self, crop: Box, patches: Tensor) -> list[_Region]:
        """Return what stands out in a crop from its patches (rows, columns, dim), the most prominent first."""
        left, top, cell = crop[0], crop[1], (crop[2] - crop[0]) / len(patches)
        middles = (torch.arange(len(patches)) + 0.5) * cell
        rows, columns = (
            (start + middles > 0) & (start + middles < length)
            for start, length in ((top, self.image.height), (left, self.image.width))
        )
        inside = rows[:, None] & columns  # the rest of the crop lies outside of the picture
        if not inside.any():
            return []
        distance = (patches - patches[inside].median(dim=0).values).norm(dim=-1)
        distance = torch.where(inside, distance, distance[inside].median())
        return [
            _Region(left + x * cell, top + y * cell, width * cell, height * cell)
            for x, y, width, height in _peaks(
                (distance - distance.median()).numpy(), most=_REGIONS_OF_A_LOOK, lowest=0.5, border=_BORDER
            )
        ]

    @torch.no_grad()
    def encode(self, crops: list[Box]) -> tuple[list[float], Tensor]:
        """Return the cosine of each crop with the text, and its patches (crops, rows, columns, dim) on the CPU."""
        self.crops += crops
        scores: list[float] = []
        patches = []
        for start in range(0, len(crops), self.batch_size):
            images = [_cut(self.image, crop, self.resolution) for crop in crops[start : start + self.batch_size]]
            inputs = image_inputs(self.model, self.processor(images=images).to(self.model.device))
            outputs = self.model.get_image_features(**inputs, return_dict=True)
            embeds = check_finite_rows(l2_normalize(outputs.pooler_output).cpu(), "embeddings of crops")
            scores += (embeds @ self.text_embeds).tolist()
            tower = self.model.vision_model
            rows, columns = tower.grid(**inputs)
            tokens = outputs.last_hidden_state[:, tower.config.num_class_tokens :][:, : rows * columns]
            patches.append(project_tokens(self.model, tokens).unflatten(1, (rows, columns)).cpu())
        return scores, torch.cat(patches) if patches else torch.empty(0)

    def square(self, x: float, y: float, side: float) -> Box:
        """Return a square crop around a point, moved into the picture where it fits into it."""
        width, height = self.image.size
        side = min(max(side, min(self.resolution, width, height) / 2), max(width, height))
        left, top = (
            min(max(middle - side / 2, 0), length - side) if side <= length else (length - side) / 2
            for middle, length in ((x, width), (y, height))
        )
        return left, top, left + side, top + side

    def box_of(self, region: _Region) -> Box:
        """Return the box of a region, cut to the picture."""
        width, height = self.image.size
        left, right = (min(max(region.x + half * region.width, 0), width) for half in (-0.5, 0.5))
        top, bottom = (min(max(region.y + half * region.height, 0), height) for half in (-0.5, 0.5))
        return left, top, right, bottom


def open_rgb(processor: DualEncoderProcessor, image: Any) -> Image.Image:
    """Return an image of any kind that the processor takes as RGB."""
    if isinstance(image, np.ndarray | Tensor):
        opened = image_steps.to_pil(to_levels(image).levels)
    else:
        opened = open_image(image, bool(getattr(processor.image_processor, "do_exif_transpose", False)))
    return image_steps.to_rgb(image_steps.composite_over(opened, WHITE))


def _resolution(model: DualEncoderModel, processor: DualEncoderProcessor) -> int:
    """Return the side in pixels at which the model sees a square image; patches of NaFlex count as pixels."""
    values = processor(images=Image.new("RGB", (64, 64)))["pixel_values"]
    return math.isqrt(values.numel() // model.config.vision_config.num_channels)


def _cut(image: Image.Image, crop: Box, size: int) -> Image.Image:
    """Return a square crop resized to `size` pixels, averaged over what a pixel covers.

    Outside of the picture it has the mean colour of what is inside.
    """
    inside = max(crop[0], 0), max(crop[1], 0), min(crop[2], image.width), min(crop[3], image.height)
    scale = size / (crop[2] - crop[0])
    left, top, right, bottom = (round((edge - crop[side % 2]) * scale) for side, edge in enumerate(inside))
    new_size = max(1, right - left), max(1, bottom - top)
    part = image.resize(new_size, Image.Resampling.BICUBIC, box=inside, reducing_gap=2.0)
    if new_size == (size, size):
        return part
    canvas = Image.new("RGB", (size, size), part.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    canvas.paste(part, (left, top))
    return canvas


def _grid(width: int, height: int, most: int, smallest: int) -> tuple[int, int, float]:
    """Return (columns, rows, side) of the smallest squares that cover a picture, at most so many, none too small."""
    sides = sorted({length / count for length in (width, height) for count in range(1, most + 1)} | {float(smallest)})
    for side in sides:
        columns, rows = (max(1, math.ceil(length / side - 1e-9)) for length in (width, height))
        if columns * rows <= most and (side >= smallest or columns * rows == 1):
            return columns, rows, side
    return 1, 1, float(max(width, height))


def _spread(length: int, side: float, count: int) -> list[float]:
    """Return where `count` crops begin along one side of a picture, evenly spread; one crop lies in the middle."""
    return [(length - side) / 2] if count == 1 else [place * (length - side) / (count - 1) for place in range(count)]


def _stitch(
    length: int, starts: list[float], side: float, cell: float
) -> tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where one map of all crops begins along an axis, and the crop and the patch in it for each of its places.

    Where crops overlap, the one whose middle is nearer counts.
    """
    first = max(0.0, starts[0])
    middles = first + (np.arange(max(1, math.ceil((length - first) / cell - 1e-9))) + 0.5) * cell
    middles = middles.clip(max=length - 1e-3)
    crop = np.abs(middles[:, None] - (np.asarray(starts) + side / 2)).argmin(axis=1)
    patch = ((middles - np.asarray(starts)[crop]) / cell).astype(np.int64).clip(0, round(side / cell) - 1)
    return first, crop, patch


def _standardized(values: Grid) -> Grid:
    """Return values from their median in units of their spread, the median distance from it, as of a normal law."""
    distance = values - np.median(values)
    spread: Grid = distance / (1.4826 * np.median(np.abs(distance)) + 1e-4)
    return spread


def _peaks(values: Grid, *, most: int, lowest: float, border: float) -> Iterator[tuple[float, float, float, float]]:
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


def _distinct(regions: Sequence[_Region]) -> list[_Region]:
    """Return regions with the best first, without those that lie on a better one."""
    kept: list[_Region] = []
    for region in sorted(regions, key=lambda region: -region.score):
        if all(
            math.dist((region.x, region.y), (other.x, other.y)) > 0.5 * max(region.size, other.size) for other in kept
        ):
            kept.append(region)
    return kept


def _whole(crop: Box) -> _Region:
    left, top, right, bottom = crop
    return _Region((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def _overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    across, down = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down or 1)
