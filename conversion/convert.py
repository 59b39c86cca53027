"""Conversion of an official checkpoint to a folder that plain transformers loads, with proof that nothing changed."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..catalogue.download import Progress, published_vocabulary
from ..formats import (
    Checkpoint,
    FormatError,
    LoadOptions,
    absolute_path,
    check_options,
    read_source,
    readable_errors,
    write_safetensors,
)
from ..formats.atomic import complete_or_absent
from ..formats.finite import is_finite
from ..formats.openai_tower import OpenAITowerLayout
from ..formats.table import cast
from ..parity.certificate import Certificate
from ..parity.preprocessing import Choices
from ..parity.verify import certify_folder, model_class_of
from ..processing import DualEncoderProcessor, Preprocessing, build_processor
from ..processing.processor_loading import holds_image_settings
from ..processing.sentence_transformers import save_sentence_transformers_files
from .export import save_layout
from .model_card import model_card

logger = logging.getLogger(__name__)

DType = Literal["float32", "float16", "bfloat16", "keep"]
WITHOUT_TOKENIZER = (
    "The folder has no tokenizer, so it takes images and token ids, not text. "
    "Convert again with --tokenizer and the vocabulary that the model was trained with."
)


class ParityError(ValueError):
    """An error of a converted model is above its tolerance; `certificate` holds every number."""

    def __init__(self, certificate: Certificate) -> None:
        comparison, output = certificate.worst
        if output.passed and certificate.preprocessing is not None:
            fault = " ".join(certificate.sentences())
        else:
            fault = (
                f"{output.name} of {comparison.subject} is {output.scaled_error:.1e} from {comparison.reference}, the "
                f"tolerance is {output.tolerance:.0e}."
            )
        super().__init__(f"The conversion is wrong: {fault} Nothing was written; --no-verify writes it regardless.")
        self.certificate = certificate


@overload
def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    dtype: DType | None = None,
    verify: Literal[True] = True,
    overwrite: bool = False,
    progress: Progress = ...,
    **options: Unpack[LoadOptions],
) -> Certificate: ...


@overload
def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    dtype: DType | None = None,
    verify: bool,
    overwrite: bool = False,
    progress: Progress = ...,
    **options: Unpack[LoadOptions],
) -> Certificate | None: ...


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    dtype: DType | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
    **options: Unpack[LoadOptions],
) -> Certificate | None:
    """Convert an official checkpoint to a transformers folder; return the measured parity, None without `verify`.

    `source` is a file, a folder, or a name of the catalogue. A name is downloaded, and has to have the geometry that
    its entry states, and the hash where one is published; a published vocabulary comes with it. `options` are those of
    `read_checkpoint`: `image_size`, `vision_activation`, `vision_heads`, `eos_token_id`. `dtype` is float32 by default;
    "keep" is the dtype of a file that has only one. The folder keeps the layout of the source, from which `export`
    writes it again.
    The folder appears complete or not at all. Raises ParityError where an error is above its tolerance,
    FileExistsError where the folder is not empty, FormatError for a source that cannot be converted.
    """
    check_options(options)
    folder = absolute_path(folder)
    check_destination(Path(source), folder, overwrite)
    checkpoint, entry = read_source(source, progress=progress, **options)
    if isinstance(checkpoint.layout, OpenAITowerLayout):
        raise FormatError(
            f"{checkpoint.path} holds the {checkpoint.layout.tower} tower of a CLIP alone, and a converted CLIP has "
            "both. CLIPVisionModelWithProjection, CLIPResNetVisionModel or CLIPTextModelWithProjection loads the file, "
            "and saves a folder."
        )
    stored_dtype = _stored_dtype(checkpoint, dtype)
    tokenizer = tokenizer or published_vocabulary(source, entry, progress=progress)
    choices = Choices(preprocessing, text_cleanup, tokenizer is not None)
    with readable_errors(tokenizer or checkpoint.path):
        processor = _processor(checkpoint, preprocessing, tokenizer=tokenizer, text_cleanup=text_cleanup)
    if processor.tokenizer is not None:
        checkpoint = checkpoint.with_end_of_text(processor.tokenizer.eos_token_id)
    notes = checkpoint.notes
    if processor.tokenizer is None:
        name = checkpoint.layout.names_tokenizer
        notes += (WITHOUT_TOKENIZER + (f" The source names it: {name}." if name else ""),)
    certificate = None
    check_destination(Path(source), folder, overwrite)  # again: reading the source may have taken minutes
    with complete_or_absent(folder, overwrite=overwrite) as (partial,):
        progress("writing weights")
        partial.mkdir()
        _save_model(checkpoint, stored_dtype, partial)
        processor.save_pretrained(partial)
        save_layout(checkpoint.layout, partial, choices)
        save_sentence_transformers_files(checkpoint.config, processor, partial)
        if verify:
            certificate = certify_folder(checkpoint, partial, strict=True, notes=notes, progress=progress)
            if not certificate.passed:
                raise ParityError(certificate)
            certificate.save(partial / "parity.json")
            notes = certificate.notes
        card = model_card(checkpoint, processor, certificate, notes, entry)
        (partial / "README.md").write_text(card, encoding="utf-8")
    for note in notes:
        logger.warning(note)
    return certificate


def _stored_dtype(checkpoint: Checkpoint, dtype: DType | None) -> torch.dtype:
    if dtype not in (None, *get_args(DType)):
        raise ValueError(f"dtype must be one of {', '.join(get_args(DType))}, got {dtype!r}.")
    if dtype != "keep":
        return getattr(torch, dtype or "float32")
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"dtype keep needs a file with one dtype, {checkpoint.path} has {names}. Choose one of them.")
    return dtypes.pop()


def _processor(
    checkpoint: Checkpoint, preprocessing: Preprocessing, *, tokenizer: str | Path | None, text_cleanup: str | None
) -> DualEncoderProcessor:
    """Build the processor from what the checkpoint states; a folder of transformers has its own."""
    folder = checkpoint.files[0].parent
    if checkpoint.format == "transformers" and holds_image_settings(folder):
        text_settings = {} if text_cleanup is None else {"text_cleanup": text_cleanup}
        return DualEncoderProcessor.from_pretrained(folder, tokenizer=tokenizer, **text_settings)
    return build_processor(
        checkpoint.config, checkpoint, tokenizer=tokenizer, text_cleanup=text_cleanup, preprocessing=preprocessing
    )


def _save_model(checkpoint: Checkpoint, dtype: torch.dtype, folder: Path) -> None:
    """Write the files that `save_pretrained` of our model would, without holding the weights in memory twice."""
    config = copy.deepcopy(checkpoint.config)
    model_class = model_class_of(config)
    with torch.device("meta"):
        expected = model_class(config).to(dtype).state_dict()

    def stored_weights() -> Iterator[tuple[str, Tensor]]:
        for name, weight in checkpoint.weights():
            value = cast(weight, dtype)
            if not is_finite(value):
                raise ValueError(f"{name} has values beyond the range of {dtype}. Choose bfloat16 or float32.")
            yield name, value

    write_safetensors(folder / "model.safetensors", expected, stored_weights())
    config.architectures = [model_class.__name__]
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    config.save_pretrained(folder)


def check_destination(source: Path, folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError where `folder` is not free, or with `overwrite` no model folder or one with the source."""
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        if not overwrite:
            raise FileExistsError(f"{folder} is not empty. Choose another folder, or --overwrite to replace all of it.")
        if not (folder / "config.json").is_file():
            raise FileExistsError(f"{folder} has no config.json, so it is no model folder and --overwrite spares it.")
        if folder in (source.resolve(), *source.resolve().parents):
            raise FileExistsError(f"{source} lies in {folder}, which --overwrite would remove. Move one of them.")
    elif folder.exists():
        raise FileExistsError(f"{folder} is a file, expected a folder.")
