"""The processor of a converted folder against what its source states: pixels and ids of the same pictures and texts.

The reference is the source's own code where it is installed (open_clip, openai-clip, timm), else it is restated from
the statement (`reference_pixels`, `reference_texts`).
"""

import math
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..catalogue import PHOTOGRAPH
from ..configuration import family_of, is_single_tower
from ..formats import Checkpoint, read_json
from ..formats.layout import LAYOUT_FILE
from ..processing import DualEncoderProcessor
from ..runtime.logs import without_warnings
from . import reference_pixels, reference_texts
from .certificate import InputCheck, PreprocessingCheck
from .reference_pixels import PatchSteps, PixelSteps
from .reference_texts import Vocabulary

TEXTS = {
    "plain": "a photo of a cat",
    "punctuation": "It's a dog-friendly cafe, isn't it? (Yes!)",
    "upper case": "A Photo Of NASA's ROCKET",
    "HTML entities": "Fish &amp; chips, caf&eacute; &quot;Sea&quot; &lt;3",
    "curly quotes": "“Don’t” — ‘déjà vu’",
    "underscores": "img_2041_final",
    "Cyrillic": "Фотография красной кошки",
    "Greek": "ΜΙΑ ΚΟΚΚΙΝΗ ΓΑΤΑΣ",
    "Japanese": "赤い猫の写真",
    "emoji": "so cute 😻",
    "empty": "",
    "too long": "one red cat and two blue dogs on a green hill " * 9,
}


class Choices(NamedTuple):
    """What whoever converted a folder chose over the statements of its source."""

    preprocessing: str = "official"  # or "hub"
    text_cleanup: str | None = None
    tokenizer: bool = False  # a vocabulary was given

    @classmethod
    def of_folder(cls, folder: Path, processor: DualEncoderProcessor) -> "Choices":
        """Return the choices that a folder records; one without a record is taken at its word."""
        recorded = read_json(folder / LAYOUT_FILE, {}).get("choices")
        if isinstance(recorded, dict):
            return cls(**{name: recorded[name] for name in cls._fields if name in recorded})
        images = processor.image_processor
        is_official = images.resize_engine == "official" or getattr(images, "openai_order", False)
        return cls("official" if is_official else "hub", getattr(processor.tokenizer, "text_cleanup", None), True)


class Reference(NamedTuple):
    """Another implementation: its name, and what it makes of one picture or text."""

    name: str
    compute: Callable[[Any], Any]
    rgb_only: bool = False  # it takes no pictures of other modes


@cache
def pictures() -> dict[str, Image.Image]:
    """Return a photograph in the modes and shapes that preprocessing treats differently."""
    with Image.open(PHOTOGRAPH) as file:
        photograph = file.convert("RGB")
    photograph.thumbnail((320, 320))
    width, height = photograph.size
    transparent = photograph.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photograph.size))
    return {
        "photograph": photograph,
        "RGBA": transparent,
        "palette": photograph.quantize(64, Image.Quantize.FASTOCTREE),
        "1-bit": photograph.convert("1"),
        "greyscale": photograph.convert("L"),
        "tall": photograph.crop((width // 2 - 41, 0, width // 2 + 40, height)),
        "wide": photograph.crop((0, height // 2 - 30, width, height // 2 + 33)),
        "small": photograph.resize((45, 37)),
    }


def check_preprocessing(
    checkpoint: Checkpoint, folder: Path, processor: DualEncoderProcessor, choices: Choices | None = None
) -> PreprocessingCheck:
    """Compare the processor of a converted folder with the code and the statement of its source."""
    choices = choices or Choices.of_folder(folder, processor)
    return PreprocessingCheck(
        _check_images(checkpoint, processor, choices), _check_texts(checkpoint, folder, processor, choices)
    )


def _check_images(checkpoint: Checkpoint, processor: DualEncoderProcessor, choices: Choices) -> InputCheck | None:
    if (reference := _pixel_reference(checkpoint, processor, choices)) is None:
        return None
    errors = {}
    for name, picture in pictures().items():
        if reference.rgb_only and picture.mode != "RGB":
            continue
        expected = reference.compute(picture)
        pixels = _pixels(processor, picture)
        errors[name] = float(np.abs(pixels - expected).max()) if pixels.shape == expected.shape else math.nan
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return InputCheck(reference.name, len(errors), errors[worst], (worst,))


def _pixels(processor: DualEncoderProcessor, picture: Image.Image) -> npt.NDArray[Any]:
    """Return the pixels of a picture, (channels, height, width), for NaFlex put together from their patches."""
    features = processor.image_processor(picture, return_tensors="np")
    (pixels,) = features["pixel_values"]
    if "spatial_shapes" not in features:
        return pixels
    patches = pixels[features["pixel_attention_mask"][0] == 1]
    side = math.isqrt(patches.shape[1] // 3)
    grid = patches.reshape(*features["spatial_shapes"][0], side, side, 3)
    rows, columns = grid.shape[:2]
    return grid.transpose(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def _check_texts(
    checkpoint: Checkpoint, folder: Path, processor: DualEncoderProcessor, choices: Choices
) -> InputCheck | None:
    if processor.tokenizer is None or is_single_tower(checkpoint.config):
        return None
    is_clip = checkpoint.config.text_config.pooling == "first_eos"
    reference = _text_reference(checkpoint, folder, choices)
    with without_warnings("twinlens.processing"):
        rows = np.asarray(processor(text=list(TEXTS.values()), return_tensors="np")["input_ids"]).tolist()
    different = []
    for (name, text), row in zip(TEXTS.items(), rows, strict=True):
        expected = list(reference.compute(text))
        if is_clip:  # what follows the end has no effect, and padding is anybody's choice
            expected = expected[: expected.index(max(expected)) + 1]
            row = row[: len(expected)]
        if row != expected:
            different.append(name)
    return InputCheck(reference.name, len(rows), 0.0, tuple(different))


def _pixel_reference(checkpoint: Checkpoint, processor: DualEncoderProcessor, choices: Choices) -> Reference | None:
    """Return whoever makes the pixels of a source; None for settings of transformers that are not restated here."""
    config = checkpoint.config
    vision = config if is_single_tower(config) else config.vision_config
    json = checkpoint.layout.sidecar_json
    original = None
    steps: PixelSteps | PatchSteps | None
    if checkpoint.format == "transformers":
        folder = checkpoint.files[0].parent
        nested = read_json(folder / "processor_config.json", {}).get("image_processor")  # as transformers 5 saves it
        settings = nested or read_json(folder / "preprocessor_config.json")
        if settings is not None:
            steps = reference_pixels.transformers_steps(settings)
            return steps and Reference("the settings of its image processor, restated in NumPy", steps.apply)
    stated: dict[str, Any] = {}
    size = 0 if vision.flexible_size else vision.image_size
    if checkpoint.format == "open_clip":
        stated = {**checkpoint.published_pixels, **_truthy(json.get("preprocess_cfg") or {})}
    elif checkpoint.format == "timm":
        stated = _truthy(json.get("pretrained_cfg", json))  # old files have it at the top
    is_timm = checkpoint.format == "timm"
    if stated.keys() & (_TIMM_FIELDS if is_timm else _OPEN_CLIP_FIELDS):
        steps = (reference_pixels.timm_steps if is_timm else reference_pixels.open_clip_steps)(stated, size)
        name = "timm's create_transform" if is_timm else "open_clip's image_transform_v2"
        original = _timm_pixels if is_timm else _open_clip_pixels
    elif vision.flexible_size:
        steps = reference_pixels.naflex_steps(vision.patch_size, processor.image_processor.max_num_patches)
        name = "big_vision's value_range and resize_to_sequence"
    elif "big_vision" in family_of(config).official_formats:
        steps, name = reference_pixels.big_vision_steps(size), "big_vision's resize and value_range"
    else:
        steps, name = reference_pixels.openai_steps(size), "openai/CLIP's _transform"
        original = _open_clip_pixels if checkpoint.format == "open_clip" else _openai_pixels
    if choices.preprocessing == "hub":
        bilinear = not is_single_tower(config) and config.text_config.pad_token_id == 0
        filter_of_hub = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        steps, name, original = reference_pixels.hub_steps(steps, filter_of_hub), "the steps of the Hub's folders", None
    # open_clip's transforms take RGB only where they fill up with three levels.
    rgb_only = not isinstance(stated.get("fill_color", 0), int)
    if original is not None and (installed := _installed(original, stated, size)):
        return installed._replace(rgb_only=rgb_only)
    return Reference(f"{name}, restated in NumPy", steps.apply, rgb_only)


_OPEN_CLIP_FIELDS = {"mean", "std", "interpolation", "resize_mode", "fill_color", "mode", "size"}
_TIMM_FIELDS = {"mean", "std", "interpolation", "crop_pct", "crop_mode"}


def _truthy(fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _installed(original: Callable[..., Reference], *arguments: Any) -> Reference | None:
    """Return the source's own code, None where it is not installed, or does not import beside what else is."""
    try:
        return original(*arguments)
    except Exception:  # a torchvision for another PyTorch raises RuntimeError, for one
        return None


def _open_clip_pixels(stated: dict[str, Any], size: int) -> Reference:
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    cfg = {**merge_preprocess_dict(PreprocessCfg(), stated), "size": size}
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    return Reference(f"open_clip_torch {version('open_clip_torch')}", lambda image: transform(image).numpy())


def _openai_pixels(stated: dict[str, Any], size: int) -> Reference:
    from clip.clip import _transform

    transform = _transform(size)
    return Reference(f"openai-clip {version('openai-clip')}", lambda image: transform(image).numpy())


def _timm_pixels(stated: dict[str, Any], size: int) -> Reference:
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg={**stated, "input_size": (3, size, size)})
    transform = create_transform(**config, is_training=False)
    return Reference(f"timm {version('timm')}", lambda image: transform(image.convert("RGB")).numpy())


def _text_reference(checkpoint: Checkpoint, folder: Path, choices: Choices) -> Reference:
    """Return whoever makes the ids of a source."""
    config = checkpoint.config.text_config
    length, is_clip = config.max_position_embeddings, config.pooling == "first_eos"
    text_cfg = (checkpoint.layout.sidecar_json.get("model_cfg") or {}).get("text_cfg") or {}
    is_open_clip = checkpoint.format == "open_clip"
    named = text_cfg.get("hf_tokenizer_name") if is_open_clip else None
    clean = (text_cfg.get("tokenizer_kwargs") or {}).get("clean") or ("whitespace" if named else "lower")
    is_official = is_clip and config.vocab_size == 49408 and not choices.tokenizer
    if choices.text_cleanup is None and not choices.tokenizer:
        original: Callable[..., Reference] | None = None
        if is_open_clip and checkpoint.vocabulary is not None:
            original = _open_clip_named_ids
        elif is_open_clip and is_official:
            original = _open_clip_ids
        elif checkpoint.format == "openai" and is_official:
            original = _openai_ids
        if original is not None and (installed := _installed(original, checkpoint.vocabulary, clean, length)):
            return installed
    if is_official and checkpoint.format != "transformers":
        vocabulary = Vocabulary.official_clip()
    else:
        source = checkpoint.vocabulary if not choices.tokenizer else None
        files = [place / "tokenizer.json" for place in (source, folder) if place is not None]
        vocabulary = Vocabulary.from_tokenizer_json(next(filter(Path.is_file, files)), is_clip=is_clip)
    cleanup = choices.text_cleanup
    stated = named or "tokenizer_kwargs" in text_cfg
    if is_clip:
        if is_open_clip:
            cleanup = "open_clip_lower" if named and clean == "whitespace" else f"open_clip_{clean}"
        elif checkpoint.format == "transformers":
            cleanup = _tokenizer_settings(checkpoint).get("text_cleanup")
        return Reference(
            "SimpleTokenizer, restated with regex",
            lambda text: reference_texts.clip_ids(text, vocabulary, cleanup=cleanup, length=length),
        )
    if cleanup is None:
        cleanup = (
            f"open_clip_{clean}"
            if is_open_clip and stated
            else _tokenizer_settings(checkpoint).get("text_cleanup") or "lower"
        )
    pad = config.pad_token_id
    if checkpoint.format == "transformers":  # whose configurations of SigLIP 2 may not say that it pads with 0
        stated_pad = _tokenizer_settings(checkpoint).get("pad_token")
        name = stated_pad.get("content") if isinstance(stated_pad, dict) else stated_pad
        pad = vocabulary.ids.get(name or "")
    return Reference(
        "SentencePiece, restated in Python",
        lambda text: reference_texts.siglip_ids(text, vocabulary, cleanup=cleanup, length=length, pad=pad),
    )


def _tokenizer_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a folder of transformers, or of twinlens, states about its tokenizer."""
    if checkpoint.format != "transformers":
        return {}
    settings: dict[str, Any] = read_json(checkpoint.files[0].parent / "tokenizer_config.json", {})
    return settings


def _open_clip_ids(folder: None, clean: str, length: int) -> Reference:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(clean=clean, context_length=length)
    return Reference(f"open_clip_torch {version('open_clip_torch')}", lambda text: tokenizer([text])[0].tolist())


def _open_clip_named_ids(folder: Path, clean: str, length: int) -> Reference:
    from open_clip.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(str(folder), clean=clean, context_length=length)
    return Reference(f"open_clip_torch {version('open_clip_torch')}", lambda text: tokenizer([text])[0].tolist())


def _openai_ids(folder: None, clean: str, length: int) -> Reference:
    from clip import tokenize

    name = f"openai-clip {version('openai-clip')}"
    return Reference(name, lambda text: tokenize([text], context_length=length, truncate=True)[0].tolist())
