"""Image processors: one implementation, and a page of constants for each family."""

import math
import warnings
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from transformers import ImageProcessingMixin  # noqa: F401  # diffusers looks for it beside the class of a component
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature

from ..catalogue.download import is_name, suggest_names
from ..messages import quoted
from . import image_steps, resizing
from .description import describe_image_steps, numbered
from .image_batches import (
    Pixels,
    ResizedImage,
    common_shape,
    convert_to_rgb,
    group_by_shape,
    lookup_table,
    naming,
    number_images,
    open_as_image,
    output_device,
    shapes_in_words,
    stack_levels,
    to_requested_type,
    to_rgb_tensor,
    to_values,
    warn_of_two_scales,
)
from .image_input import ImageItem, flatten_images
from .image_settings import (
    ENGINE_NAMES,
    DualEncoderImageProcessorKwargs,
    EngineName,
    ImageSettings,
    Siglip2ImageProcessorKwargs,
    WholeImageProcessorKwargs,
)
from .resizing import ResizeEngine, Size
from .threads import ThreadMap, thread_map

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on


class DualEncoderImageProcessor(PilBackend):
    """Images to `pixel_values`, float32 of shape (images, channels, height, width).

    Settings, their names and their JSON are transformers' own and those of `DualEncoderImageProcessorKwargs`; loading,
    saving and the checks of settings are inherited, the steps are in `image_steps` and `resizing`.
    """

    valid_kwargs = DualEncoderImageProcessorKwargs
    resize_engines: ClassVar[dict[EngineName, ResizeEngine]] = {"pillow": resizing.PILLOW, "torch": resizing.TORCH}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resize_engine = "pillow"
    official_is_pillow: ClassVar[bool] = False  # the family's own code resizes with Pillow, before it converts to RGB

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> "Self":
        """Load as transformers does, or by a name of `twinlens list` as `DualEncoderProcessor.from_pretrained` does."""
        if is_name(pretrained_model_name_or_path):
            from .processor_loading import part_of_processor  # which imports this module

            return part_of_processor(cls, "image_processor", pretrained_model_name_or_path, **kwargs)
        with suggest_names(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from settings as transformers does, but read a null `do_convert_rgb` as not stated.

        The Hub's folders of SigLIP 2 have one, with which transformers refuses pictures of any other mode than RGB.
        """
        if image_processor_dict.get("do_convert_rgb") is None:
            image_processor_dict = {**image_processor_dict, "do_convert_rgb": cls.do_convert_rgb}
        return super().from_dict(image_processor_dict, **kwargs)

    def preprocess(self, images: Any, *args: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Preprocess images of any form that `open_image` reads, arrays and tensors, one or nested in collections.

        `return_tensors` is "pt", "np", or None for a list of arrays. Tensors on an accelerator are resized there by the
        engines "torch" and "official", and so is everything else if `device` is given.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}.")
        return super().preprocess(images, *args, return_tensors=return_tensors, **kwargs)

    def describe(self) -> str:
        """Return what happens to an image, as a numbered list in words."""
        settings = self._own_settings()
        return numbered(describe_image_steps(settings, self.resize_engines[settings.resize_engine]))

    def explain(self) -> None:
        """Print `describe()`."""
        print(self.describe())

    def placement(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return where `pixel_values` come from in an image of this height and width: (left, top, across, down).

        The upper left corner of `pixel_values` lies at (left, top), which are below 0 where the image was filled up.
        One of their pixels covers across x down pixels of the image.
        """
        settings = self._own_settings()
        new_height, new_width = self._target_size(height, width, settings) if settings.do_resize else (height, width)
        across, down, left, top = width / new_width, height / new_height, 0, 0
        if settings.do_center_crop:
            rounding = image_steps.round_crop_offset if settings.openai_order else math.floor
            left = rounding((new_width - settings.crop_size["width"]) / 2)
            top = rounding((new_height - settings.crop_size["height"]) / 2)
        return left * across, top * down, across, down

    def _own_settings(self) -> ImageSettings:
        own_kwargs = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        return ImageSettings.from_kwargs(self._standardize_kwargs(**own_kwargs))

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        background, engine = kwargs.get("background"), kwargs.get("resize_engine")
        if engine not in (None, *ENGINE_NAMES):
            raise ValueError(f"resize_engine must be one of {', '.join(ENGINE_NAMES)}, got {quoted(engine)}.")
        if engine == "official" and background is None:
            kwargs["background"] = "ignore"
        elif background not in (None, "ignore"):
            if len(background) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in background):
                raise ValueError(f"background must be three levels of 0..255 or 'ignore', got {quoted(background)}.")
            kwargs["background"] = tuple(background)
        resample = getattr(kwargs.get("resample"), "value", kwargs.get("resample"))  # torchvision's are texts
        if isinstance(resample, str):
            kwargs["resample"] = resizing.filter_named(resample)
        if engine == "official" and (self.official_is_pillow or kwargs.get("openai_order")):
            kwargs |= {"resize_engine": "pillow", "openai_order": True}
        fill = kwargs.get("fill_color")
        if fill is not None:
            levels = fill if isinstance(fill, list | tuple) else [fill] * 3
            if len(levels) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in levels):
                raise ValueError(f"fill_color must be a level of 0..255 or three, got {quoted(fill)}.")
            kwargs["fill_color"] = fill if isinstance(fill, int) else tuple(fill)
        return super()._standardize_kwargs(**kwargs)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Open, convert, resize, crop, and compute values: all that `preprocess` does after its checks."""
        settings = ImageSettings.from_kwargs(kwargs)
        items = number_images(flatten_images(images))
        if not items:  # what one image would give, without its row
            one = self._preprocess_image_like_inputs(Image.new("RGB", (1, 1)), *args, **kwargs)
            return BatchFeature({name: values[:0] for name, values in one.items()})
        groups = group_by_shape([item.image for item in items])
        workers = torch.get_num_threads() if settings.num_workers is None else settings.num_workers
        with thread_map(min(len(groups), workers)) as run:
            resized: dict[int, ResizedImage] = {}  # by the place of the image in the call
            work = run(lambda places: self._open_and_resize([items[place] for place in places], settings), groups)
            for places, results in zip(groups, work, strict=True):
                resized |= zip(places, results, strict=True)
            ordered = [resized[place] for place in range(len(items))]
            warn_of_two_scales(ordered)
            return self._to_batch(ordered, settings, run)

    def _open_and_resize(self, items: list[ImageItem], settings: ImageSettings) -> list[ResizedImage]:
        """Open, convert, resize and crop images.

        More than one means tensors of one shape on an accelerator, which are resized together.
        """
        engine = self.resize_engines[settings.resize_engine]
        opened = []
        for item in items:
            with naming(item.name):
                opened.append(open_as_image(item, engine, settings))
        with naming(*(item.name for item in items)):
            were_fractions = [image.were_fractions for image in opened]
            pixels = stack_levels([image.pixels for image in opened])
            is_dithered = isinstance(pixels, Image.Image) and pixels.mode in ("1", "P")
            if engine is resizing.TORCH and is_dithered and not settings.device:
                engine = resizing.PILLOW  # dithering brings out more than one level of error in torch's kernel
            pixels = convert_to_rgb(pixels, engine, settings)
            if settings.do_resize:
                pixels = self._resize(pixels, were_fractions, engine, settings)
            height, width = (settings.crop_size.get(side, 0) for side in ("height", "width"))
            if settings.openai_order and settings.do_center_crop and isinstance(pixels, Image.Image):
                pixels = image_steps.fill_up(pixels, height, width, settings.fill_color)
            tensor = to_rgb_tensor(pixels, settings)
            if settings.do_center_crop:
                rounding = image_steps.round_crop_offset if settings.openai_order else math.floor
                tensor = image_steps.center_crop(tensor, height, width, rounding, settings.fill_color)
        return [
            ResizedImage(pixels, image.were_fractions, image.highest, item.name)
            for pixels, image, item in zip(tensor, opened, items, strict=True)
        ]

    def _resize(
        self, pixels: Pixels, were_fractions: list[bool], engine: ResizeEngine, settings: ImageSettings
    ) -> Pixels:
        """Resize a PIL image or levels (images, channels, height, width) by an engine."""
        resample = Image.Resampling(settings.resample)
        if isinstance(pixels, Image.Image):
            if pixels.mode not in ("RGB", "L"):
                engine = resizing.PILLOW  # no other resizes palettes and transparency in a way that means something
            if engine.resize_image is not None and not (settings.device and engine.resize_levels):
                return engine.resize_image(pixels, *self._target_size(pixels.height, pixels.width, settings), resample)
            pixels = image_steps.from_pil(pixels).to(settings.device)[None]
        height, width = self._target_size(pixels.shape[-2], pixels.shape[-1], settings)
        if engine.takes_values:
            pixels = to_values(pixels, were_fractions, settings)
        assert engine.resize_levels is not None  # otherwise `open_as_image` has turned tensors into PIL images
        return engine.resize_levels(pixels, height, width, resample)

    def _target_size(self, height: int, width: int, settings: ImageSettings) -> Size:
        """Return the (height, width) that an image of this height and width is resized to."""
        size = settings.size
        if size.keys() == {"height", "width"}:
            return size["height"], size["width"]
        if size.keys() == {"shortest_edge"}:
            return resizing.resize_shorter_side(size["shortest_edge"], height, width)
        if size.keys() == {"shortest_edge", "longest_edge"}:
            return resizing.resize_within(size["shortest_edge"], size["longest_edge"], height, width)
        if size.keys() == {"max_height", "max_width"}:
            limits = size["max_height"], size["max_width"]
            return resizing.resize_to_fit(limits, height, width, half_to_even=settings.openai_order)
        raise ValueError(
            "size must hold 'height' and 'width', 'max_height' and 'max_width', or 'shortest_edge' and perhaps "
            f"'longest_edge', got {size}."
        )

    def _to_batch(self, images: list[ResizedImage], settings: ImageSettings, run: ThreadMap) -> BatchFeature:
        """Compute the values of images and put them into one batch."""
        tables = []
        for image in images:
            with naming(image.name):
                tables.append(lookup_table(len(image.pixels), image.were_fractions, settings))
        dtype = torch.uint8 if all(table is None for table in tables) else torch.float32
        shapes = [tuple(image.pixels.shape) for image in images]
        batch: torch.Tensor | list[torch.Tensor]
        if (shape := common_shape(images, settings)) is None:
            batch = targets = [torch.empty(shape, dtype=dtype) for shape in shapes]
        else:
            new = torch.zeros if settings.do_pad else torch.empty
            batch = new((len(images), *shape), dtype=dtype, **output_device(images, settings))
            targets = [image[..., :height, :width] for image, (_, height, width) in zip(batch, shapes, strict=True)]
        run(image_steps.apply_lookup_table, [image.pixels for image in images], tables, targets)
        return BatchFeature({"pixel_values": to_requested_type(batch, settings.return_tensors)})


class CLIPImageProcessor(DualEncoderImageProcessor):
    """CLIP: the shorter side to 224, the middle, then mean and deviation of its training images.

    `resize_engine="official"` is Pillow in OpenAI's order. Of open_clip's other ways to resize, "squash" is
    `size={"height": 224, "width": 224}, do_center_crop=False`, and "longest" `size={"max_height": 224, "max_width":
    224}`, which fills up with `fill_color`.
    Source: `openai/clip-vit-base-patch32`, preprocessor_config.json; `clip/clip.py`, `_transform`.
    """

    official_is_pillow = True
    valid_kwargs = WholeImageProcessorKwargs
    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    do_center_crop = True
    resample = Image.Resampling.BICUBIC
    image_mean = [0.48145466, 0.4578275, 0.40821073]
    image_std = [0.26862954, 0.26130258, 0.27577711]


class SiglipImageProcessor(DualEncoderImageProcessor):
    """SigLIP and fixed-size SigLIP 2: the whole image to a square whatever its aspect, values of -1..1.

    Source: `google/siglip-base-patch16-224`, preprocessor_config.json. SigLIP 2's folders say bilinear. Models that
    open_clip trained have its pixels instead, which are `openai_order=True`.
    """

    valid_kwargs = WholeImageProcessorKwargs
    resize_engines = DualEncoderImageProcessor.resize_engines | {"official": resizing.BIG_VISION_SIGLIP}
    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]


class Siglip2ImageProcessor(DualEncoderImageProcessor):
    """SigLIP 2 NaFlex: the largest grid of patches that keeps the aspect, values of -1..1.

    Returns `pixel_values` (images, max_num_patches, patch_size * patch_size * channels) filled up with zeros,
    `pixel_attention_mask` (images, max_num_patches) with 1 for patches, and `spatial_shapes` (images, 2), patches down
    and across. Source: `google/siglip2-base-patch16-naflex`, preprocessor_config.json.
    """

    valid_kwargs = Siglip2ImageProcessorKwargs
    resize_engines = DualEncoderImageProcessor.resize_engines | {"official": resizing.BIG_VISION_NAFLEX}
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    resample = Image.Resampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    patch_size = 16
    max_num_patches = 256

    def _validate_preprocess_kwargs(self, do_resize: bool | None = None, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)  # without do_resize, for which it would ask for a size

    def _target_size(self, height: int, width: int, settings: ImageSettings) -> Size:
        patch, most = settings.patch_size, settings.max_num_patches
        new_height, new_width = resizing.largest_grid(height, width, patch, most)
        if (shrinkage := max(height / new_height, width / new_width)) > 4:
            warnings.warn(
                f"An image shrinks {shrinkage:.1f} times to fit max_num_patches={most} patches of {patch}x{patch} "
                "pixels: raise max_num_patches to keep its details.",
                stacklevel=2,
            )
        return new_height, new_width

    def _to_batch(self, images: list[ResizedImage], settings: ImageSettings, run: ThreadMap) -> BatchFeature:
        patch, most = settings.patch_size, settings.max_num_patches
        shapes = {tuple(image.pixels.shape) for image in images}
        grids = [(image.pixels.shape[-2] // patch, image.pixels.shape[-1] // patch) for image in images]
        if len({channels for channels, _, _ in shapes}) > 1 or any(
            height % patch or width % patch or height * width > most * patch * patch for _, height, width in shapes
        ):
            raise ValueError(
                f"Expected images of equally many channels and of at most {most} whole patches of {patch}x{patch}, "
                f"got (channels, height, width) {shapes_in_words(images)}: switch on do_resize and "
                "do_convert_rgb."
            )
        channels, where = len(images[0].pixels), output_device(images, settings)
        patches = torch.zeros((len(images), most, patch * patch * channels), **where)
        mask = torch.zeros((len(images), most), dtype=torch.int32, **where)

        def fill(image: ResizedImage, target: torch.Tensor, target_mask: torch.Tensor) -> None:
            pixels = image.pixels.to(target.device)
            if pixels.dtype == torch.uint8:
                with naming(image.name):
                    (pixels,) = to_values(pixels[None], [image.were_fractions], settings)
            cut = image_steps.to_patches(pixels, patch)
            target[: len(cut)] = cut
            target_mask[: len(cut)] = 1

        run(fill, images, patches, mask)
        data = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids, **where)}
        return BatchFeature({name: to_requested_type(batch, settings.return_tensors) for name, batch in data.items()})
