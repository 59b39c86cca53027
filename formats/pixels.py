"""Statements about preprocessing in open_clip's terms, translated to settings of image processors and back.

The reference is `open_clip.transform.image_transform_v2`, which resizes an image in one of three ways: "shortest"
brings its shorter side to the model's size and cuts out the middle, "squash" changes its aspect, "longest" fits all of
it and fills the rest with `fill_color`. CLIP's image processor does the first two, SigLIP's the second.
"""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from PIL import Image

from .errors import FormatError

STATED_PIXELS = ("mean", "std", "interpolation", "resize_mode")
CLIP_RESIZE_MODES = ("shortest", "squash")
SIGLIP_RESIZE_MODES = ("squash",)
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,  # either of the two in training; open_clip evaluates with this one
}


def image_settings(
    stated: Mapping[str, Any], section: str, *, image_size: int, resize_modes: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a JSON states as settings of the family's image processor, which can do `resize_modes`.

    A field that is missing or null states nothing. Raises FormatError with everything that cannot be honoured;
    `section` is the place in the JSON.
    """
    stated = {name: value for name, value in stated.items() if value is not None}
    if faults := [f"{section}.{fault}" for fault in _unsupported(stated, image_size, resize_modes)]:
        raise FormatError(
            f"the source states pixels that this version cannot make: {'; '.join(faults)}. If the model was trained "
            "with other ones, correct the JSON; otherwise make its pixels with the code that it was published for."
        )
    settings: dict[str, Any] = {
        f"image_{name}": _per_channel(stated[name]) for name in ("mean", "std") if name in stated
    }
    if "interpolation" in stated:
        settings["resample"] = _RESAMPLE[stated["interpolation"]]
        if resize_modes == SIGLIP_RESIZE_MODES:
            # Such a source was trained on Pillow's pixels, without transparency, and not on big_vision's, which are
            # SigLIP's "official" ones. CLIP's "official" pixels are Pillow's.
            settings |= {"resize_engine": "pillow", "background": "ignore"}
    if stated.get("resize_mode") == "squash" and "shortest" in resize_modes:
        settings |= {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
    return settings


def disagreements(stated: Mapping[str, Any], published: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note where the repository of a published checkpoint states other pixels than the catalogue."""
    differences = [
        f"{name} {stated[name]!r}, not {value!r}"
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
        resize_mode = "shortest"
        fits = size == {"shortest_edge": image_size} and dict(image_processor["crop_size"]) == square
    faults = [f"{step} false" for step in ("do_resize", "do_rescale", "do_normalize") if not image_processor[step]]
    if not fits:
        faults.append(f"size {size} with do_center_crop {crop}, for a model of {image_size} pixels per side")
    resample = Image.Resampling(image_processor["resample"])
    if resample not in _RESAMPLE.values():
        faults.append(f"resample {resample.name.lower()}")
    if faults:
        raise FormatError(
            f"open_clip cannot make the pixels of this folder's preprocessor_config.json: {', '.join(faults)}. "
            "It brings the shorter side to the model's size and crops, or squashes, by bicubic or bilinear "
            "interpolation, and normalises. Change those settings, or export to another format."
        )
    return {
        "mean": list(image_processor["image_mean"]),
        "std": list(image_processor["image_std"]),
        "interpolation": resample.name.lower(),
        "resize_mode": resize_mode,
    }


def _unsupported(stated: Mapping[str, Any], image_size: int, resize_modes: tuple[str, ...]) -> Iterator[str]:
    for name in ("mean", "std"):
        values = _per_channel(stated.get(name, 0))
        if len(values) != 3 or not all(isinstance(value, Real) for value in values):
            yield f"{name} is {stated[name]!r}, expected three numbers"
    if (interpolation := stated.get("interpolation", "bicubic")) not in tuple(_RESAMPLE):
        yield f"interpolation is {interpolation!r}, expected {' or '.join(map(repr, _RESAMPLE))}"
    if (resize_mode := stated.get("resize_mode", resize_modes[0])) not in resize_modes:
        fill = f" with fill_color {stated.get('fill_color', 0)!r}" if resize_mode == "longest" else ""
        yield f"resize_mode is {resize_mode!r}{fill}, expected {' or '.join(map(repr, resize_modes))}"
    if (mode := stated.get("mode", "RGB")) != "RGB":
        yield f"mode is {mode!r}, expected 'RGB'"
    size = stated.get("size", image_size)
    if any(side != image_size for side in (size if isinstance(size, list | tuple) else [size])):
        yield f"size is {size!r}, but the model takes {image_size} pixels per side"


def _per_channel(value: Any) -> list[Any]:
    """Return the value of each channel; open_clip takes one number for all three."""
    return list(value) if isinstance(value, list | tuple) else [value] * 3


def _comparable(value: Any) -> Any:
    return _per_channel(value) if isinstance(value, Real | list | tuple) else value
