"""Small things in big pictures: a search that finds likely regions first, and then looks at them closely.

It follows the guided search of V* (arXiv:2312.14135). Every look is one crop of the full-resolution picture, encoded at
the model's own resolution. A coarse grid of crops gives one map of the whole picture; its peaks are looked at, and the
best of them again, centred anew and at several scales, while the budget of encodings lasts.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
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
from .crops import Box, covering_grid, cut_out, evenly_spread, stitch
from .labels import check_labels
from .maps import image_inputs, project_tokens
from .regions import Region, distinct_regions, find_peaks, overlap_of, standardize, whole_region

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
        if len(kept) < max_boxes and all(overlap_of(box, other) <= _OVERLAP for other, _ in kept):
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

    def run(self) -> list[Region]:
        """Return the regions that were looked at most closely, or all where no look was left for a second one."""
        regions = self.overview()
        left = self.left
        closely: list[Region] = []
        for number, (share, zooms) in enumerate(_ROUNDS):
            chosen = regions[: max(1, round(share * left / len(zooms)))]
            looks = [(region, zoom) for region in chosen for zoom in zooms][: self.left]
            if not looks:
                break
            found = self.look_at(looks, first=number == 0)
            regions = distinct_regions(found if number == 0 else chosen)
            closely = closely or [region for region in regions if len(region.scores) > 1]
        return closely or regions

    def overview(self) -> list[Region]:
        """Return the peaks of one map of the whole picture, the highest first. They have no score yet.

        The map adds up two values of a patch, each in its own spread over all patches: how far its vector lies from the
        middle of its crop's, and how much of that points to the text.
        """
        width, height = self.image.size
        columns, rows, side = covering_grid(width, height, max(1, int(_OVERVIEW_SHARE * self.budget)), self.resolution)
        lefts, tops = evenly_spread(width, side, columns), evenly_spread(height, side, rows)
        crops = [(left, top, left + side, top + side) for top in tops for left in lefts]
        scores, patches = self.encode(crops)
        away = patches - patches.flatten(1, 2).median(dim=1).values[:, None, None]  # (crops, rows, columns, dim)
        novelty, towards = away.norm(dim=-1).numpy(), (away @ self.text_embeds).numpy()
        cell = side / novelty.shape[1]
        places_y, row_of, y_in = stitch(height, tops, side, cell)
        places_x, column_of, x_in = stitch(width, lefts, side, cell)
        index = (row_of * columns)[:, None] + column_of, y_in[:, None], x_in[None]
        stitched = standardize(novelty[index]) + _TEXT_WEIGHT * standardize(towards[index])
        regions = [
            Region(places_x + x * cell, places_y + y * cell, max(_POINT, w - 0.6) * cell, max(_POINT, h - 0.6) * cell)
            for x, y, w, h in find_peaks(stitched, most=self.budget, lowest=0.0, border=0.5)
        ]
        if self.left < 1 or not regions:
            best = max(range(len(crops)), key=lambda place: scores[place])
            regions = self.regions_in(crops[best], patches[best]) or [whole_region(crops[best])]
            for region in regions:
                region.scores = [scores[best]]
        return regions

    def look_at(self, looks: Sequence[tuple[Region, float]], first: bool) -> list[Region]:
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

    def regions_in(self, crop: Box, patches: Tensor) -> list[Region]:
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
            Region(left + x * cell, top + y * cell, width * cell, height * cell)
            for x, y, width, height in find_peaks(
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
            images = [cut_out(self.image, crop, self.resolution) for crop in crops[start : start + self.batch_size]]
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

    def box_of(self, region: Region) -> Box:
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
