"""The settings of the image processors: those that callers may pass, and those that one call works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
from transformers.processing_utils import ImagesKwargs

from ..messages import quoted

Color = tuple[int, int, int]  # levels of 0..255: red, green, blue
EngineName = Literal["pillow", "torch", "official"]

ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
WHITE: Color = (255, 255, 255)
_MAX_SIDE = 65_536  # pixels


class DualEncoderImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """The settings that come on top of transformers' own.

    resize_engine: "pillow"; "torch" for `F.interpolate`, which differs from Pillow by at most one level (by two for one
        value in two million), is several times faster and runs on accelerators; "official" for what the family's own
        code computes.
    background: levels (red, green, blue) behind transparent images, or "ignore" to keep the colours that lie under the
        transparency. By default white, as in transformers; official code ignores transparency.
    do_exif_transpose: turn photographs upright by their EXIF data, which no family's official code does.
    num_workers: number of threads that decode and resize, 0 for the caller's thread only; by default PyTorch's number
        of threads, which is 1 in a DataLoader's worker.
    pin_memory: return the batch in page-locked memory where there is an accelerator.
    """

    resize_engine: EngineName | None
    background: tuple[int, ...] | list[int] | Literal["ignore"] | None
    do_exif_transpose: bool | None
    num_workers: int | None
    pin_memory: bool | None


class WholeImageProcessorKwargs(DualEncoderImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """The settings of the families that return whole images.

    openai_order: resize in the image's own mode and convert to RGB afterwards, and round the offset of the crop half to
        even, as `openai/CLIP` and open_clip do; transformers converts first and rounds down.
    rgb_first: with `openai_order`, convert to RGB before the resize all the same, as timm does.
    fill_color: level of 0..255, or three (red, green, blue), of the crop where it is larger than the image; by default
        0. transformers has no such setting and fills with 0.
    """

    openai_order: bool | None
    rgb_first: bool | None
    fill_color: int | tuple[int, ...] | list[int] | None


class Siglip2ImageProcessorKwargs(DualEncoderImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """NaFlex's own settings.

    patch_size: side of a patch in pixels.
    max_num_patches: largest number of patches that an image may become.
    """

    patch_size: int
    max_num_patches: int


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings of one call: the processor's own, overridden by those of the call, and checked.

    Names and meanings are those of the kwargs above and of transformers' `ImagesKwargs`. The defaults are what None
    means there: a step is left out. Sizes hold transformers' keys, such as "height" and "width".
    """

    do_resize: bool = False
    size: Mapping[str, int] = field(default_factory=dict)
    resample: int = -1  # no filter, which is an error where images are resized
    resize_engine: EngineName = "pillow"
    do_center_crop: bool = False
    crop_size: Mapping[str, int] = field(default_factory=dict)
    do_rescale: bool = False
    rescale_factor: float | None = None
    do_normalize: bool = False
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None
    do_pad: bool = False
    pad_size: Mapping[str, int] = field(default_factory=dict)
    do_convert_rgb: bool = False
    background: Color | Literal["ignore"] = WHITE
    do_exif_transpose: bool = False
    input_data_format: str | None = None
    device: Any = None  # all that `torch.Tensor.to` takes
    num_workers: int | None = None
    pin_memory: bool = False
    return_tensors: str | None = None
    openai_order: bool = False
    rgb_first: bool = False
    fill_color: int | Color = 0
    patch_size: int = 0  # NaFlex; 0 for families that return whole images
    max_num_patches: int = 0  # NaFlex

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of a file that no image can be computed with."""
        for name in ("size", "crop_size", "pad_size"):
            for side, pixels in getattr(self, name).items():
                if pixels is not None and not (isinstance(pixels, Integral) and 1 <= int(pixels) <= _MAX_SIDE):
                    raise ValueError(f"{name}[{quoted(side)}] must be 1 to {_MAX_SIDE:,} pixels, got {_short(pixels)}.")
        for name in ("rescale_factor", "image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and not _is_finite(value):
                raise ValueError(f"{name} must be a finite number, or one for each channel, got {_short(value)}.")
        if not isinstance(self.resample, int) or not 0 <= self.patch_size <= _MAX_SIDE:
            raise ValueError(
                f"resample must be a filter of Pillow and patch_size a number of pixels, got {_short(self.resample)} "
                f"and {_short(self.patch_size)}."
            )

    @property
    def resizes_own_mode(self) -> bool:
        """Whether an image is resized in its own mode and converted to RGB afterwards."""
        return self.openai_order and not self.rgb_first

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> "ImageSettings":
        """Take the settings out of the keyword arguments that transformers' base class collects and checks."""
        known = {field.name: kwargs[field.name] for field in fields(cls) if kwargs.get(field.name) is not None}
        sizes = {name: dict(value) for name, value in known.items() if name in ("size", "crop_size", "pad_size")}
        return cls(**(known | sizes))


def _is_finite(numbers: Any) -> bool:
    try:
        return not isinstance(numbers, str) and bool(np.isfinite(np.asarray(numbers, np.float64)).all())
    except (TypeError, ValueError, OverflowError):
        return False


def _short(value: object) -> str:
    return repr(value) if isinstance(value, int | float) and abs(value) < 1e20 else f"a {type(value).__name__}"
