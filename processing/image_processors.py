"""Image processors: one implementation, and a page of constants for each family."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs

from . import image_steps
from .contract import image_contract, numbered
from .image_input import flatten_images, open_image, to_levels
from .pil_memory import borrowed_levels

Engine = Literal["pillow", "torch", "official"]
ENGINES = get_args(Engine)
Run = Callable[..., list[Any]]  # `map`, in threads

_WHITE = (255, 255, 255)


class DualEncoderImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """The settings beside transformers' own.

    resize_engine: "pillow"; "torch" for `F.interpolate`, at most one level away, several times faster and at home on
        accelerators; "official" for what the family's own code computes.
    background: levels (red, green, blue) behind transparent images, or "ignore" for what lies under the transparency.
        By default white, as in transformers; official code ignores.
    do_exif_transpose: turn photographs upright by their EXIF data, which no family's official code does.
    num_workers: threads that decode and resize, 0 for the caller's; by default PyTorch's number, which is 1 in a
        DataLoader's worker.
    pin_memory: give the batch in page-locked memory where there is an accelerator.
    """

    resize_engine: Engine | None
    background: tuple[int, ...] | list[int] | Literal["ignore"] | None
    do_exif_transpose: bool | None
    num_workers: int | None
    pin_memory: bool | None


class DualEncoderImageProcessor(PilBackend):
    """Images to `pixel_values`, float32 of shape (images, channels, height, width).

    Settings, their names and their JSON are transformers' own and those of `DualEncoderImageProcessorKwargs`; loading,
    saving and the checks of settings are inherited, the steps are in `image_steps`.
    """

    valid_kwargs = DualEncoderImageProcessorKwargs
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resize_engine = "pillow"

    def preprocess(self, images: Any, *args: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Take PIL images, arrays, tensors, paths, URLs or bytes of files, one or nested in lists.

        `return_tensors` is "pt", "np", or None for a list of arrays. Tensors on an accelerator are resized there by the
        engines "torch" and "official", and with `device` so is everything else.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")
        return super().preprocess(images, *args, return_tensors=return_tensors, **kwargs)

    def explain(self) -> None:
        """Print in words what happens to an image."""
        print(numbered(image_contract(self)))

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        background, engine = kwargs.get("background"), kwargs.get("resize_engine")
        if engine not in (None, *ENGINES):
            raise ValueError(f"resize_engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        if engine == "official" and background is None:
            kwargs["background"] = "ignore"
        elif background not in (None, "ignore"):
            if len(background) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in background):
                raise ValueError(f"background must be three levels of 0..255 or 'ignore', got {background!r}")
            kwargs["background"] = tuple(background)
        return super()._standardize_kwargs(**kwargs)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        settings = SimpleNamespace(**({"openai_order": False} | kwargs))
        flat = flatten_images(images)
        if not flat:
            raise ValueError("expected at least one image, got none")
        groups = _groups(flat)
        workers = torch.get_num_threads() if settings.num_workers is None else settings.num_workers
        with _threads(min(len(groups), workers)) as run:
            resized: list[Any] = [None] * len(flat)
            work = run(lambda indices: self._resized(indices, flat, settings), groups)
            for indices, results in zip(groups, work, strict=True):
                for index, result in zip(indices, results, strict=True):
                    resized[index] = result
            return self._batch(resized, settings, run)

    def _resized(self, indices: list[int], images: list[Any], settings: Any) -> list[tuple[torch.Tensor, bool]]:
        """Give each image resized and cropped, as levels and whether they were fractions of 0..1.

        More than one index means tensors on an accelerator that are of one shape, for which a launch is enough.
        """
        try:
            read = [self._read(images[index], settings) for index in indices]
        except (TypeError, ValueError) as error:
            if len(images) == 1:
                raise
            raise type(error)(f"image {' or '.join(map(str, indices))} of {len(images)}: {error}") from error
        if isinstance(first := read[0][0], Image.Image):
            batch = self._levels(first, settings)[None]
        else:
            batch = first[None] if len(read) == 1 else torch.stack([levels for levels, _ in read])  # type: ignore[misc]
            batch = self._resize(batch, settings) if settings.do_resize else batch
        if settings.do_center_crop:
            size, place = settings.crop_size, round if settings.openai_order else math.floor
            batch = image_steps.center_crop(batch, size.height, size.width, place)
        return [(levels, fractions) for levels, (_, fractions) in zip(batch, read, strict=True)]

    def _read(self, image: Any, settings: Any) -> tuple[Image.Image | torch.Tensor, bool]:
        """Give what the engine resizes: a PIL image or levels (channels, height, width), and whether as fractions."""
        if not isinstance(image, np.ndarray | torch.Tensor):
            return open_image(image, bool(settings.do_exif_transpose)), False
        layout = settings.input_data_format
        levels, fractions = to_levels(image, None if layout is None else layout == "channels_first")
        if settings.resize_engine == "pillow" or len(levels) == 4:
            return image_steps.to_pil(levels), fractions
        grey = len(levels) == 1 and settings.do_convert_rgb
        return (levels.expand(3, -1, -1) if grey else levels).to(settings.device or levels.device), fractions

    def _levels(self, image: Image.Image, settings: Any) -> torch.Tensor:
        """Give a PIL image converted and resized, as levels (channels, height, width)."""
        dithered = image.mode in ("1", "P")
        if settings.resize_engine == "official":
            image = image_steps.high_byte(image)
        if settings.do_convert_rgb:
            if settings.background != "ignore":
                image = image_steps.over(image, settings.background or _WHITE)
            if not settings.openai_order:
                image = image_steps.to_rgb(image)
        resized = self._resize_pil(image, dithered, settings) if settings.do_resize else image
        if isinstance(resized, Image.Image):
            resized = image_steps.to_rgb(resized) if settings.do_convert_rgb else resized
            return image_steps.from_pil(resized).to(settings.device)
        return resized.expand(3, -1, -1) if settings.do_convert_rgb else resized

    def _resize_pil(self, image: Image.Image, dithered: bool, settings: Any) -> Image.Image | torch.Tensor:
        height, width = self._target_size(image.height, image.width, settings)
        # Only Pillow resizes palettes and transparency in a way that means something.
        by_pillow = settings.resize_engine == "pillow" or image.mode not in ("RGB", "L")
        if not by_pillow and (settings.resize_engine == "official" or settings.device):
            return self._resize(image_steps.from_pil(image).to(settings.device)[None], settings)[0]
        # The patterns of dithering bring out more than one level of error in torch's kernel.
        given, wanted = (image.height, image.width), (height, width)
        if by_pillow or dithered or not image_steps.kernel_suffices(given, wanted, settings.resample):
            return image_steps.resize_pillow(image, height, width, settings.resample)
        with borrowed_levels(image) as levels:
            return image_steps.resize_torch(levels[None], height, width, settings.resample)[0, :3]

    def _resize(self, levels: torch.Tensor, settings: Any) -> torch.Tensor:
        height, width = self._target_size(levels.shape[-2], levels.shape[-1], settings)
        if settings.resize_engine == "official":
            return image_steps.resize_tensorflow(levels, height, width)
        return image_steps.resize_torch(levels, height, width, settings.resample)

    def _target_size(self, height: int, width: int, settings: Any) -> tuple[int, int]:
        size = dict(settings.size)
        if size.keys() == {"height", "width"}:
            return size["height"], size["width"]
        if size.keys() == {"shortest_edge"}:
            return image_steps.shorter_side_to(size["shortest_edge"], height, width)
        raise ValueError(f"size must hold 'height' and 'width', or 'shortest_edge', got {size}")

    def _table(self, channels: int, fractions: bool, settings: Any) -> torch.Tensor | None:
        """Give the value of every level, or None where levels are wanted. Fractions return to 0..1 in any case."""
        factor = 1 / 255 if fractions else settings.rescale_factor if settings.do_rescale else None
        mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else (None, None)
        return None if factor is None and mean is None else image_steps.value_table(channels, factor, mean, std)

    def _batch(self, resized: list[tuple[torch.Tensor, bool]], settings: Any, run: Run) -> BatchFeature:
        shapes = [tuple(levels.shape) for levels, _ in resized]
        tables = [self._table(len(levels), fractions, settings) for levels, fractions in resized]
        dtype = torch.uint8 if tables == [None] * len(tables) else torch.float32
        frame: tuple[int, ...] | None
        if settings.do_pad:
            frame = _frame(shapes, settings.pad_size)
        elif len(set(shapes)) == 1:
            frame = shapes[0]
        elif settings.return_tensors is None:
            frame = None
        else:
            raise ValueError(
                "a batch needs images of one shape, got (channels, height, width) "
                f"{', '.join(map(str, sorted(set(shapes))))}: "
                "switch on do_resize, do_center_crop and do_convert_rgb, or pass return_tensors=None"
            )
        batch: Any
        if frame is None:
            batch = targets = [torch.empty(shape, dtype=dtype) for shape in shapes]
        else:
            new = torch.zeros if settings.do_pad else torch.empty
            batch = new((len(shapes), *frame), dtype=dtype, **_place(resized, settings))
            targets = [place[..., :height, :width] for place, (_, height, width) in zip(batch, shapes, strict=True)]
        run(image_steps.look_up, [levels for levels, _ in resized], tables, targets)
        return BatchFeature({"pixel_values": _returned(batch, settings.return_tensors)})


def _groups(images: list[Any]) -> list[list[int]]:
    """Put the indices of tensors on an accelerator together by shape, and leave everything else by itself."""
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        shared = isinstance(image, torch.Tensor) and image.device.type != "cpu"
        groups.setdefault((image.device, image.dtype, image.shape) if shared else index, []).append(index)
    return list(groups.values())


@contextmanager
def _threads(number: int) -> Iterator[Run]:
    """Give a `map` that works in as many threads. Decoders, resizing and look-ups let go of Python's lock."""
    if number <= 1:
        yield lambda function, *columns: list(map(function, *columns))
        return
    with ThreadPoolExecutor(number - 1) as pool:

        def run(function: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
            rows = list(zip(*columns, strict=True))
            results: list[Any] = [None] * len(rows)
            queue = iter(range(len(rows)))  # shared: a task for each image would cost a tenth of the work

            def work() -> None:
                for index in queue:
                    results[index] = function(*rows[index])

            others = [pool.submit(work) for _ in range(number - 1)]
            work()
            for other in others:
                other.result()
            return results

        yield run


def _place(images: list[tuple[torch.Tensor, bool]], settings: Any) -> dict[str, Any]:
    """Say where a batch goes: to the accelerator if one of its images is there."""
    device = next((pixels.device for pixels, _ in images if pixels.device.type != "cpu"), torch.device("cpu"))
    pinned = bool(settings.pin_memory) and device.type == "cpu" and torch.accelerator.is_available()
    return {"device": device, "pin_memory": pinned}


def _frame(shapes: list[tuple[int, ...]], pad_size: Any) -> tuple[int, ...]:
    channels, heights, widths = (list(sides) for sides in zip(*shapes, strict=True))
    height, width = (pad_size.height, pad_size.width) if pad_size else (max(heights), max(widths))
    if len(set(channels)) > 1 or max(heights) > height or max(widths) > width:
        raise ValueError(f"images of {sorted(set(shapes))} cannot be padded to {height}x{width}")
    return channels[0], height, width


def _returned(batch: Any, return_tensors: str | None) -> Any:
    if return_tensors == "pt":
        return batch
    if return_tensors == "np":
        return batch.cpu().numpy()
    return [pixels.cpu().numpy() for pixels in batch]


class CLIPImageProcessorKwargs(DualEncoderImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """CLIP's own setting.

    openai_order: resize in the image's own mode and convert to RGB afterwards, and round the place of the crop half to
        even, as `openai/CLIP` does; transformers converts first and rounds down.
    """

    openai_order: bool | None


class CLIPImageProcessor(DualEncoderImageProcessor):
    """CLIP: the shorter side to 224, the middle, then mean and deviation of its training images.

    Source: `openai/clip-vit-base-patch32`, preprocessor_config.json; `clip/clip.py`, `_transform`.
    """

    valid_kwargs = CLIPImageProcessorKwargs
    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    do_center_crop = True
    resample = Image.Resampling.BICUBIC
    image_mean = [0.48145466, 0.4578275, 0.40821073]
    image_std = [0.26862954, 0.26130258, 0.27577711]

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("resize_engine") == "official":  # is Pillow, in OpenAI's order
            kwargs |= {"resize_engine": "pillow", "openai_order": True}
        return kwargs


class SiglipImageProcessor(DualEncoderImageProcessor):
    """SigLIP and fixed-size SigLIP 2: the whole image to a square whatever its aspect, values of -1..1.

    Source: `google/siglip-base-patch16-224`, preprocessor_config.json. SigLIP 2's folders say bilinear.
    """

    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]


class Siglip2ImageProcessorKwargs(DualEncoderImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """NaFlex's own settings: the side of a patch in pixels, and how many patches an image may become."""

    patch_size: int
    max_num_patches: int


class Siglip2ImageProcessor(DualEncoderImageProcessor):
    """SigLIP 2 NaFlex: the largest grid of patches that keeps the aspect, values of -1..1.

    Gives `pixel_values` (images, max_num_patches, patch_size * patch_size * channels) filled up with zeros,
    `pixel_attention_mask` (images, max_num_patches) with 1 for patches, and `spatial_shapes` (images, 2), patches down
    and across. Source: `google/siglip2-base-patch16-naflex`, preprocessor_config.json.
    """

    valid_kwargs = Siglip2ImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    resample = Image.Resampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    patch_size = 16
    max_num_patches = 256

    def _validate_preprocess_kwargs(self, do_resize: bool | None = None, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)  # which would ask for a size to resize to

    def _target_size(self, height: int, width: int, settings: Any) -> tuple[int, int]:
        patch, most = settings.patch_size, settings.max_num_patches
        target = image_steps.largest_grid(height, width, patch, most)
        if (loss := max(height / target[0], width / target[1])) > 4:
            warnings.warn(
                f"an image shrinks {loss:.1f} times to fit max_num_patches={most} patches of {patch}x{patch} pixels: "
                "raise max_num_patches to keep its details",
                stacklevel=2,
            )
        return target

    def _resize(self, levels: torch.Tensor, settings: Any) -> torch.Tensor:
        if settings.resize_engine != "official":
            return super()._resize(levels, settings)
        # The official order: values first, so that what is resized is never rounded to levels.
        values = torch.empty(levels.shape, device=levels.device)
        for image, target in zip(levels, values, strict=True):
            image_steps.look_up(image, self._table(len(image), False, settings), target)
        height, width = self._target_size(levels.shape[-2], levels.shape[-1], settings)
        return image_steps.resize_values(values, height, width, settings.resample)

    def _batch(self, resized: list[tuple[torch.Tensor, bool]], settings: Any, run: Run) -> BatchFeature:
        patch, most, place = settings.patch_size, settings.max_num_patches, _place(resized, settings)
        shapes = {tuple(pixels.shape) for pixels, _ in resized}
        grids = [(pixels.shape[-2] // patch, pixels.shape[-1] // patch) for pixels, _ in resized]
        if len({channels for channels, _, _ in shapes}) > 1 or any(
            height % patch or width % patch or height * width > most * patch * patch for _, height, width in shapes
        ):
            raise ValueError(
                f"expected images of equally many channels and of at most {most} whole patches of {patch}x{patch}, "
                f"got (channels, height, width) {sorted(shapes)}: switch on do_resize and do_convert_rgb"
            )
        patches = torch.zeros((len(resized), most, patch * patch * len(resized[0][0])), **place)
        mask = torch.zeros((len(resized), most), dtype=torch.int32, **place)

        def fill(image: tuple[torch.Tensor, bool], target: torch.Tensor, visible: torch.Tensor) -> None:
            pixels, fractions = image[0].to(target.device), image[1]
            values = pixels
            if pixels.dtype == torch.uint8:
                values = torch.empty(pixels.shape, device=pixels.device)
                image_steps.look_up(pixels, self._table(len(pixels), fractions, settings), values)
            cut = image_steps.to_patches(values, patch)
            target[: len(cut)] = cut
            visible[: len(cut)] = 1

        run(fill, resized, patches, mask)
        data = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids, **place)}
        return BatchFeature({name: _returned(batch, settings.return_tensors) for name, batch in data.items()})
