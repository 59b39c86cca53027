"""An official checkpoint file becomes a folder that plain transformers loads, with the proof that nothing changed."""

import copy
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NoReturn, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..catalogue import BUNDLED, bundled_checkpoint
from ..catalogue.download import download_file
from ..configuration import family_of
from ..formats import Activation, Checkpoint, write_safetensors
from ..formats.source import read_source
from ..formats.table import is_finite
from ..parity.certificate import Certificate
from ..parity.verify import certify_folder, model_class_of
from ..processing import DualEncoderProcessor, Preprocessing, build_processor
from .export import save_layout
from .model_card import model_card

logger = logging.getLogger(__name__)

DType = Literal["float32", "float16", "bfloat16", "keep"]
NO_TOKENIZER = (
    "The folder has no tokenizer, so it takes images and token ids, not text. "
    "Convert again with --tokenizer and the vocabulary that the model was trained with."
)


class ParityError(ValueError):
    """An error of a converted model is above its tolerance; `certificate` holds every number."""

    def __init__(self, certificate: Certificate) -> None:
        comparison, output = certificate.worst
        super().__init__(
            f"The conversion is wrong: {output.name} of {comparison.subject} is {output.scaled_error:.1e} from "
            f"{comparison.reference}, the tolerance is {output.tolerance:.0e}. Nothing was written; --no-verify writes "
            "it regardless."
        )
        self.certificate = certificate


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    vision_activation: Activation | None = None,
    vision_heads: int | None = None,
    dtype: DType | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Certificate | None:
    """Convert an official checkpoint to a transformers folder, measured against the references; None without `verify`.

    `source` is a file, a folder, or a name of the catalogue, which is downloaded and has to have the geometry, and the
    hash where one is published, that stand there; a vocabulary that is published comes with it. `image_size`,
    `vision_activation` and `vision_heads` are those of `read_checkpoint`. The folder remembers the layout of the
    source, for the way back.
    `dtype` is float32 unless given; "keep" is the file's own where it has only one. The folder appears complete or not
    at all. Raises ParityError where an error is above its tolerance, FileExistsError where the folder is not empty.
    """
    folder = Path(folder).expanduser().resolve()
    _check_destination(Path(source), folder, overwrite)
    checkpoint, row = read_source(
        source,
        image_size=image_size,
        vision_activation=vision_activation,
        vision_heads=vision_heads,
        progress=progress,
    )
    if tokenizer is None and str(source) in BUNDLED and not Path(source).exists():
        tokenizer = bundled_checkpoint(str(source)).vocabulary
    if row is not None and tokenizer is None and row.vocabulary.address:
        tokenizer = download_file(row.vocabulary.address, sha256=row.vocabulary.sha256, progress=progress)
    stored_dtype = _stored_dtype(checkpoint, dtype)
    processor = _processor(checkpoint, preprocessing, tokenizer=tokenizer, text_cleanup=text_cleanup)
    notes: tuple[str, ...] = (NO_TOKENIZER,) if processor.tokenizer is None else ()

    with _complete_or_absent(folder, overwrite) as partial:
        progress("writing weights")
        _save_model(checkpoint, stored_dtype, partial)
        processor.save_pretrained(partial)
        save_layout(checkpoint.layout, partial)
        certificate = None
        if verify:
            certificate = certify_folder(checkpoint, partial, strict=True, notes=notes, progress=progress)
            if not certificate.passed:
                raise ParityError(certificate)
            certificate.save(partial / "parity.json")
            notes = certificate.notes
        card = model_card(checkpoint, processor, certificate, notes, row)
        (partial / "README.md").write_text(card, encoding="utf-8")
    for note in notes:
        logger.warning(note)
    return certificate


def _stored_dtype(checkpoint: Checkpoint, dtype: DType | None) -> torch.dtype:
    if dtype not in (None, *get_args(DType)):
        raise ValueError(f"dtype must be one of {', '.join(get_args(DType))}, got {dtype!r}.")
    if dtype != "keep":
        return getattr(torch, dtype or "float32")
    found = {tensor.dtype for tensor in checkpoint.tensors.values()}
    if len(found) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise ValueError(f"dtype keep needs a file with one dtype, {checkpoint.path} has {names}. Choose one of them.")
    return found.pop()


def _processor(
    checkpoint: Checkpoint, preprocessing: Preprocessing, *, tokenizer: str | Path | None, text_cleanup: str | None
) -> DualEncoderProcessor:
    """Build it from what the checkpoint says; a folder of transformers has its own."""
    folder, config = checkpoint.files[0].parent, checkpoint.config
    if checkpoint.format == "transformers" and (folder / "preprocessor_config.json").is_file():
        chosen = {} if text_cleanup is None else {"text_cleanup": text_cleanup}
        return DualEncoderProcessor.from_pretrained(folder, tokenizer=tokenizer, **chosen)
    family = family_of(config)
    if config.model_type != family.model_type:  # an image tower alone
        config = family.config(vision_config=config.to_dict())
    settings = checkpoint.layout.image_settings()
    return build_processor(
        config, tokenizer=tokenizer, text_cleanup=text_cleanup, preprocessing=preprocessing, **settings
    )


def _save_model(checkpoint: Checkpoint, dtype: torch.dtype, folder: Path) -> None:
    """Write what `save_pretrained` of our model with these weights would, without two of them in memory."""
    config = copy.deepcopy(checkpoint.config)
    model_class = model_class_of(config)
    with torch.device("meta"):
        model = model_class(config)

    def stored_weights() -> Iterator[tuple[str, Tensor]]:
        for name, weight in checkpoint.weights():
            value = weight.to(dtype)
            if not is_finite(value):
                raise ValueError(f"{name} has values beyond the range of {dtype}. Choose bfloat16 or float32.")
            yield name, value

    shapes = {name: value.shape for name, value in model.state_dict().items()}
    write_safetensors(folder / "model.safetensors", dtype, shapes, stored_weights())
    config.architectures = [model_class.__name__]
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    config.save_pretrained(folder)


def _check_destination(source: Path, folder: Path, overwrite: bool) -> None:
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


@contextmanager
def _complete_or_absent(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a hidden sibling to fill; rename it to `folder` as the last step, or remove it on any error or signal."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    with _termination_as_exception():
        try:
            partial.mkdir(parents=True)
            yield partial
            _sync(partial)
            _replace(folder, partial, overwrite)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in new_parents:
                with suppress(OSError):
                    parent.rmdir()
            if isinstance(error, (OSError, SafetensorError)):  # no space, no permission, ...
                raise OSError(f"Writing {folder} failed: {error}") from error
            raise


def _replace(folder: Path, partial: Path, overwrite: bool) -> None:
    old = partial.with_suffix(".old")
    try:
        if folder.exists() and overwrite:
            folder.rename(old)
        elif folder.exists():
            folder.rmdir()  # it was empty when we began; if it no longer is, this fails
        partial.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the disk hold every file before the rename makes them visible, all with the usual permissions."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors lets nobody but the owner read
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what was begun is removed; a handler of the caller's stays in place."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
