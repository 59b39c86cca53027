"""Pixels as a source's own code makes them: restated from what the source says, with Pillow's and NumPy's functions.

It shares no code with `processing` or with `formats.pixels`, so that a mistake there cannot hide here.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR}  # open_clip and timm: all other names are bicubic


class PixelSteps(NamedTuple):
    """One way to make pixels. `side` is that to which an image is resized, `crop` that of the result."""

    mode: str  # "shortest", "squash" or "longest": which side `side` is
    side: int
    crop: int
    mean: Any
    std: Any
    resample: int | None = Image.Resampling.BICUBIC  # None: TensorFlow's bilinear, truncated
    fill: Any = 0
    own_mode: bool = True  # resized in the image's own mode, RGB afterwards; else RGB first
    background: tuple[int, int, int] | None = None  # behind transparent images
    half_to_even: bool = True  # rounds as torchvision and open_clip do; else as transformers

    def apply(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the pixels of an image, (3, crop, crop)."""
        if self.background is not None and image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        if not self.own_mode:
            image = image.convert("RGB")
        width, height = image.size
        sides = height / self.side, width / self.side
        scale = min(self.side / height, self.side / width)
        size = {
            "squash": (self.side, self.side),
            "longest": (round(width / max(sides)), round(height / max(sides)))
            if self.half_to_even
            else (int(width * scale), int(height * scale)),
            "shortest": (
                self.side if width <= height else int(self.side * width / height),
                self.side if height <= width else int(self.side * height / width),
            ),
        }[self.mode]
        if self.resample is None:
            image = Image.fromarray(_tensorflow_bilinear(np.asarray(image), *size))
        else:
            image = image.resize(size, Image.Resampling(self.resample))
        image = self._crop(image)
        levels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
        mean, std = (np.asarray(value, np.float32) for value in (self.mean, self.std))
        pixels: npt.NDArray[np.float32] = ((levels - mean) / std).transpose(2, 0, 1)
        return pixels

    def _crop(self, image: Image.Image) -> Image.Image:
        missing = [max(0, self.crop - length) for length in image.size]
        if any(missing):
            left, top = ((length + (not self.half_to_even)) // 2 for length in missing)
            bands, fill = len(image.getbands()), self.fill
            if not isinstance(fill, int):
                image, fill = (image if bands == 3 else image.convert("RGB")), tuple(fill)
            elif bands > 1:
                fill = (fill,) * bands
            image = ImageOps.expand(image, (left, top, missing[0] - left, missing[1] - top), fill)
        rounding = round if self.half_to_even else math.floor
        left, top = (rounding((length - self.crop) / 2) for length in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))


class PatchSteps(NamedTuple):
    """One way to make pixels for NaFlex: the largest grid of whole patches that keeps the aspect."""

    patch: int  # pixels per side of a patch
    most: int  # patches of an image
    mean: Any = SIGLIP_MEAN
    std: Any = SIGLIP_STD
    resample: int | None = None  # None: the values, not the levels, are resized, bilinear with antialiasing
    background: tuple[int, int, int] | None = None  # behind transparent images

    def apply(self, image: Image.Image) -> npt.NDArray[Any]:
        """Return the pixels of an image, (3, height, width), both sides multiples of `patch`."""
        if self.background is not None and image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        image = image.convert("RGB")
        height, width = _largest_grid(image.height, image.width, self.patch, self.most)
        if self.resample is not None:
            image = image.resize((width, height), Image.Resampling(self.resample))
        values = (np.asarray(image) / 255 - np.asarray(self.mean)) / np.asarray(self.std)
        if self.resample is None:
            down, across = _tensorflow_weights(image.height, height), _tensorflow_weights(image.width, width)
            values = np.einsum("hy,wx,yxc->hwc", down, across, values, optimize=True)
        return values.transpose(2, 0, 1)


def _largest_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Return the pixels (height, width) of big_vision's search for a scale in float32, `_get_image_size_for_seq`."""

    def scaled(ratio: np.float32) -> npt.NDArray[np.float32]:
        sides = np.array([height, width], np.float32) * ratio
        return np.maximum(np.float32(patch) * np.ceil(sides / np.float32(patch)), np.float32(patch))

    low, high = np.float32(1e-6), np.float32(100)
    while high - low >= np.float32(1e-5):
        middle = (low + high) / np.float32(2)
        low, high = (middle, high) if np.prod(scaled(middle) / np.float32(patch)) <= most else (low, middle)
    new_height, new_width = scaled(low).astype(int).tolist()
    return new_height, new_width


def _tensorflow_weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """Return the weights of old pixels for each new one, (new, old), in the float32 of `scale_and_translate_op.cc`.

    A triangle, which is wider when shrinking, as `tf.image.resize` has it for bilinear with antialiasing.
    """
    one, half = np.float32(1), np.float32(0.5)
    step = one / (np.float32(new) / np.float32(old))
    centres = (np.arange(new, dtype=np.float32)[:, None] + half) * step
    distances = np.arange(old, dtype=np.float32) + half - centres
    weights = np.maximum(0, one - np.abs(distances * (one / max(one, step))))
    return weights / weights.sum(1, keepdims=True)


def _tensorflow_bilinear(levels: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Resize (height, width, 3) between the four nearest pixels, as `tf.image.resize`, and truncate, as `tf.cast`."""

    def along(old: int, new: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
        positions = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new))
        positions -= np.float32(0.5)
        before = np.floor(positions)
        after = np.minimum(np.ceil(positions), old - 1).astype(int)
        return np.maximum(before, 0).astype(int), after, positions - before

    values = levels.astype(np.float32)
    top, bottom, down = along(len(levels), height)
    left, right, across = along(levels.shape[1], width)
    rows = values[:, left] + (values[:, right] - values[:, left]) * across[:, None]
    resized = rows[top] + (rows[bottom] - rows[top]) * down[:, None, None]
    return resized.astype(np.uint8)


def openai_steps(size: int) -> PixelSteps:
    """Return the pixels of openai/CLIP (`clip.py`, `_transform`)."""
    return PixelSteps("shortest", size, size, CLIP_MEAN, CLIP_STD)


def big_vision_steps(size: int) -> PixelSteps:
    """Return the pixels of google-research/big_vision for SigLIP: `resize(SIZE)|value_range(-1, 1)`."""
    return PixelSteps("squash", size, size, SIGLIP_MEAN, SIGLIP_STD, resample=None, own_mode=False)


def naflex_steps(patch: int, most: int) -> PatchSteps:
    """Return the pixels of google-research/big_vision for NaFlex: `value_range(-1, 1)|resize_to_sequence(...)`."""
    return PatchSteps(patch, most)


def open_clip_steps(stated: Mapping[str, Any], size: int) -> PixelSteps:
    """Return the pixels of `open_clip.transform.image_transform_v2` for a `preprocess_cfg`."""
    return PixelSteps(
        stated.get("resize_mode") or "shortest",
        size,
        size,
        stated.get("mean") or CLIP_MEAN,
        stated.get("std") or CLIP_STD,
        _FILTERS.get(stated.get("interpolation") or "", Image.Resampling.BICUBIC),
        stated.get("fill_color") or 0,
    )


def timm_steps(stated: Mapping[str, Any], size: int) -> PixelSteps:
    """Return the pixels of `timm.data.create_transform` for a `pretrained_cfg`."""
    mean = stated.get("mean") or (0.485, 0.456, 0.406)
    return PixelSteps(
        {"squash": "squash", "border": "longest"}.get(stated.get("crop_mode") or "", "shortest"),
        math.floor(size / (stated.get("crop_pct") or 0.875)),
        size,
        mean,
        stated.get("std") or (0.229, 0.224, 0.225),
        _FILTERS.get(stated.get("interpolation") or "", Image.Resampling.BICUBIC),
        tuple(round(255 * value) for value in mean),
        own_mode=False,
    )


def hub_steps(official: PixelSteps | PatchSteps, filter_of_hub: int) -> PixelSteps | PatchSteps:
    """Return what plain transformers makes with the same numbers: RGB first, over white, the crop rounded down."""
    if isinstance(official, PatchSteps):
        return official._replace(resample=filter_of_hub, background=(255, 255, 255))
    resample = filter_of_hub if official.resample is None else official.resample
    return official._replace(resample=resample, own_mode=False, background=(255, 255, 255), half_to_even=False)


def transformers_steps(settings: Mapping[str, Any]) -> PixelSteps | PatchSteps | None:
    """Return the pixels that a `preprocessor_config.json` states; None where it is of a rarer form than restated here.

    `resize_engine`, `openai_order`, `rgb_first` and `background` are twinlens' own words.
    """
    size, crop = settings.get("size"), settings.get("crop_size")
    numbers = [settings.get(name) for name in ("image_mean", "image_std", "resample")]
    steps = [settings.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")]
    rescaled = settings.get("rescale_factor") in (None, 1 / 255)
    if None in numbers or not all(steps) or not rescaled or settings.get("do_pad"):
        return None
    engine, openai_order = settings.get("resize_engine") or "pillow", bool(settings.get("openai_order"))
    background = settings.get("background") or ("ignore" if engine == "official" else (255, 255, 255))
    behind = None if background == "ignore" else tuple(background)
    if "max_num_patches" in settings:  # NaFlex
        patch, most = settings.get("patch_size", 16), settings["max_num_patches"]
        if engine == "torch" or (engine == "official" and numbers[2] != Image.Resampling.BILINEAR):
            return None
        return PatchSteps(patch, most, numbers[0], numbers[1], numbers[2] if engine == "pillow" else None, behind)
    if not isinstance(size, dict):
        return None
    keys, sides, cropped = {*size}, {*size.values()}, bool(settings.get("do_center_crop"))
    mode = {("shortest_edge",): "shortest", ("height", "width"): "squash", ("max_height", "max_width"): "longest"}.get(
        tuple(sorted(keys))
    )
    crops = {*crop.values()} if cropped and isinstance(crop, dict) else sides
    if mode is None or len(sides) != 1 or len(crops) != 1 or (cropped and not isinstance(crop, dict)):
        return None
    if engine == "torch" or (engine == "official" and (openai_order or cropped)) or (mode != "squash" and not cropped):
        return None
    return PixelSteps(
        mode,
        min(sides),
        min(crops),
        numbers[0],
        numbers[1],
        numbers[2] if engine == "pillow" else None,
        settings.get("fill_color") or 0,
        openai_order and not settings.get("rgb_first"),
        behind,
        half_to_even=openai_order,
    )
