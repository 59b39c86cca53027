"""Statements about preprocessing in open_clip's terms, translated to settings of image processors and back.

The reference is `open_clip.transform.image_transform_v2`, which resizes an image in one of three ways: "shortest"
brings its shorter side to the model's size and cuts out the middle, "squash" changes its aspect, "longest" fits all of
it and fills the rest with `fill_color`. The image processors of both families do all three.
"""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from PIL import Image

from ..messages import quoted
from .errors import FormatError

# open_clip's defaults (transform.py, PreprocessCfg) of the fields that a JSON leaves open.
OPEN_CLIP_PIXELS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
STATED_PIXELS = tuple(name for name in OPEN_CLIP_PIXELS if name != "fill_color")  # those that the catalogue states
READ_FIELDS = (*OPEN_CLIP_PIXELS, "mode", "size")
_RESIZE_MODES = ("shortest", "squash", "longest")
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,  # either of the two in training; open_clip evaluates with this one
}


def stated_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that state something about pixels: open_clip takes null, 0, "" and [] for fields left open."""
    return {name: value for name, value in fields.items() if value and name in READ_FIELDS}


def image_settings(
    stated: Mapping[str, Any], section: str, *, image_size: int, resized_size: int | None = None
) -> dict[str, Any]:
    """Return what a source states as settings of an image processor, open_clip's defaults where it leaves them open.

    `resized_size` is the side to which an image is resized before its middle of `image_size` is cut out, where they
    differ. Without statements there are no settings. Raises FormatError with everything that cannot be honoured;
    `section` is the place in the JSON.
    """
    stated = stated_fields(stated)
    if faults := [f"{section}.{fault}" for fault in _unsupported(stated, image_size)]:
        raise FormatError(
            f"the source states pixels that this version cannot make: {'; '.join(faults)}. If the model was trained "
            "with other ones, correct the JSON; otherwise make its pixels with the code that it was published for."
        )
    if not stated:
        return {}
    pixels = OPEN_CLIP_PIXELS | stated
    side, crops = resized_size or image_size, pixels["resize_mode"] != "squash" or resized_size is not None
    size = {
        "shortest": {"shortest_edge": side},
        "squash": {"height": side, "width": side},
        "longest": {"max_height": side, "max_width": side},
    }[pixels["resize_mode"]]
    settings = {
        "image_mean": _per_channel(pixels["mean"]),
        "image_std": _per_channel(pixels["std"]),
        "resample": _RESAMPLE[pixels["interpolation"]],
        "size": size,
        "do_center_crop": crops,
        # Such a source was trained on Pillow's pixels in this order, which are CLIP's "official" ones; SigLIP's are
        # big_vision's.
        "openai_order": True,
    }
    if crops:
        settings["crop_size"] = {"height": image_size, "width": image_size}
    if pixels["resize_mode"] == "longest":
        settings["fill_color"] = pixels["fill_color"]
    return settings


def disagreements(stated: Mapping[str, Any], published: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note where the repository of a published checkpoint states other pixels than the catalogue."""
    differences = [
        f"{name} {quoted(stated[name])}, not {value!r}"
        for name, value in published.items()
        if stated.get(name) is not None and _comparable(stated[name]) != _comparable(value)
    ]
    if not differences:
        return ()
    return (
        f"The repository states other pixels than open_clip's own table: {'; '.join(differences)}. "
        "The repository was followed.",
    )


def preprocess_cfg(image_processor: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return open_clip's `preprocess_cfg` for the settings of an image processor, as its `to_dict` returns them.

    Raises FormatError where open_clip cannot make such pixels.
    """
    square, size = {"height": image_size, "width": image_size}, dict(image_processor["size"])
    crop = bool(image_processor.get("do_center_crop"))
    resize_mode, fits = "squash", size == square
    if crop:
        longest = {"max_height": image_size, "max_width": image_size}
        resize_mode = "longest" if size == longest else "shortest"
        fits = size in (longest, {"shortest_edge": image_size}) and dict(image_processor["crop_size"]) == square
    faults = [f"{step} false" for step in ("do_resize", "do_rescale", "do_normalize") if not image_processor[step]]
    if not fits:
        faults.append(f"size {size} with do_center_crop {crop}, for a model of {image_size} pixels per side")
    resample = Image.Resampling(image_processor["resample"])
    if resample not in _RESAMPLE.values():
        faults.append(f"resample {resample.name.lower()}")
    if faults:
        raise FormatError(
            f"open_clip cannot make the pixels of this folder's preprocessor_config.json: {', '.join(faults)}. "
            "It brings the shorter side to the model's size and crops, or the longer one and fills up, or squashes, by "
            "bicubic or bilinear interpolation, and normalises. Change those settings, or export to another format."
        )
    return {
        "mean": list(image_processor["image_mean"]),
        "std": list(image_processor["image_std"]),
        "interpolation": resample.name.lower(),
        "resize_mode": resize_mode,
        **({"fill_color": image_processor.get("fill_color") or 0} if resize_mode == "longest" else {}),
    }


def _unsupported(stated: Mapping[str, Any], image_size: int) -> Iterator[str]:
    for name in ("mean", "std"):
        values = _per_channel(stated.get(name, 1))
        if len(values) != 3 or not all(map(_is_finite_number, values)) or (name == "std" and 0 in values):
            yield f"{name} is {quoted(stated[name])}, expected three numbers"
    if (interpolation := stated.get("interpolation", "bicubic")) not in tuple(_RESAMPLE):
        yield f"interpolation is {quoted(interpolation)}, expected {' or '.join(map(repr, _RESAMPLE))}"
    if (resize_mode := stated.get("resize_mode", "shortest")) not in _RESIZE_MODES:
        yield f"resize_mode is {quoted(resize_mode)}, expected {' or '.join(map(repr, _RESIZE_MODES))}"
    fill = stated.get("fill_color", 0)
    levels = fill if isinstance(fill, list | tuple) else [fill] * 3  # a list of one is none of open_clip's
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        yield f"fill_color is {quoted(fill)}, expected a level of 0..255, or three"
    if (mode := stated.get("mode", "RGB")) != "RGB":
        yield f"mode is {quoted(mode)}, expected 'RGB'"
    size = stated.get("size", image_size)
    if any(side != image_size for side in (size if isinstance(size, list | tuple) else [size])):
        yield f"size is {quoted(size)}, but the model takes {image_size} pixels per side"


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _per_channel(value: Any) -> list[Any]:
    """Return the value of each channel; open_clip takes one number for all three."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * 3 if len(values) == 1 else values


def _comparable(value: Any) -> Any:
    return _per_channel(value) if isinstance(value, Real | list | tuple) else value
