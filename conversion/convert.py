"""An official checkpoint file becomes a folder that plain transformers loads, with the proof that nothing changed."""

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
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..formats import Checkpoint, read_checkpoint
from ..modeling import DualEncoderModel
from ..processing import Preprocessing, build_processor
from .certificate import Certificate, certify
from .model_card import model_card

logger = logging.getLogger(__name__)

DType = Literal["float32", "float16", "bfloat16", "keep"]
NO_TOKENIZER = (
    "The folder has no tokenizer, so it takes images and token ids, not text. "
    "Convert again with --tokenizer and the vocabulary that the model was trained with."
)


class ParityError(ValueError):
    """A converted model missed a bar; `certificate` holds every number."""

    def __init__(self, certificate: Certificate) -> None:
        comparison, row = certificate.worst
        super().__init__(
            f"The conversion is wrong: {row.name} of {comparison.subject} is {row.scaled_error:.1e} from "
            f"{comparison.reference}, the bar is {row.bar:.0e}. Nothing was written; --no-verify writes it regardless."
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
    dtype: DType | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Certificate | None:
    """Convert an official checkpoint to a transformers folder, measured against the references; None without `verify`.

    `dtype` is float32 unless given; "keep" is the file's own where it has only one. The folder appears complete or not
    at all. Raises ParityError where a bar is missed, FileExistsError for a destination that is not empty.
    """
    source, folder = Path(source), Path(folder).expanduser().resolve()
    _check_destination(source, folder, overwrite)
    progress(f"reading {source.name}")
    checkpoint = read_checkpoint(source, image_size=image_size)
    stored_dtype = _stored_dtype(checkpoint, dtype)
    processor = build_processor(
        checkpoint.config, tokenizer=tokenizer, text_cleanup=text_cleanup, preprocessing=preprocessing
    )
    notes: tuple[str, ...] = (NO_TOKENIZER,) if processor.tokenizer is None else ()

    with _complete_or_absent(folder, overwrite) as partial:
        progress("writing weights")
        _save(_build(checkpoint, stored_dtype), partial)
        processor.save_pretrained(partial)
        certificate = None
        if verify:
            certificate = _certify_folder(checkpoint, partial, stored_dtype, notes, progress)
            if not certificate.passed:
                raise ParityError(certificate)
            certificate.save(partial / "parity.json")
            notes = certificate.notes
        card = model_card(checkpoint, processor, certificate, notes)
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


def _build(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Our model with the official weights, every one of them and no other."""
    model, info = DualEncoderModel.from_pretrained(
        None,
        config=checkpoint.config,
        state_dict=checkpoint.state_dict(),
        dtype=dtype,
        output_loading_info=True,
    )
    if problems := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise ValueError(f"{checkpoint.path} does not fill the model exactly: {problems}.")
    return model.eval()


def _save(model: PreTrainedModel, folder: Path) -> None:
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{name} has values beyond the range of {value.dtype}. Choose bfloat16 or float32.")
    model.save_pretrained(folder)


def _certify_folder(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, notes: tuple[str, ...], progress: Callable[[str], None]
) -> Certificate:
    """Judge the folder as it loads; where its dtype rounds the weights, judge them unrounded and report the cost."""
    original = _build(checkpoint, torch.float32)
    stored = type(original).from_pretrained(folder, dtype=torch.float32).eval()
    weights = original.state_dict()
    exact = True
    for name, value in stored.state_dict().items():
        if not torch.equal(value, weights[name].to(dtype).float()):
            raise ValueError(f"{name} as read back from the new folder differs from what was written there.")
        exact = exact and torch.equal(value, weights[name])
    if exact:
        model, rounded = stored, None
    else:
        model, rounded = original, stored
        notes += (f"The weights are rounded to {str(dtype).removeprefix('torch.')}; the parity table has the cost.",)
    del original, weights  # room for one more model
    native = getattr(transformers, type(model).__name__).from_pretrained(folder, dtype=torch.float32)
    return certify(checkpoint, model, rounded=rounded, native=native, notes=notes, progress=progress)


def _check_destination(source: Path, folder: Path, overwrite: bool) -> None:
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        if not overwrite:
            raise FileExistsError(f"{folder} is not empty. Choose another folder, or --overwrite to replace all of it.")
        if not (folder / "config.json").is_file():
            raise FileExistsError(f"{folder} has no config.json, so it is no model folder and --overwrite spares it.")
        if folder in source.resolve().parents:
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
