"""Checkpoints of a run: they appear whole or not at all, and a run goes on from the last whole one."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

from ..catalogue.download import file_sha256
from ..formats import read_json
from ..formats.atomic import complete_or_absent
from ..messages import listed, shown

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"  # the sizes and hashes of the other files
STATE = "trainer_state.json"  # transformers' name
_NAME = re.compile(r"checkpoint-(\d{1,18})")  # transformers' name; the number is that of the updates


@contextmanager
def complete_checkpoint(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Yield a hidden folder in which all processes write a checkpoint of the name of `folder`.

    It becomes `folder`, by one rename, when all files of all processes are on the disk, and else is removed. Raises
    OSError where writing fails.
    """
    with ExitStack() as stack:
        hidden: list[Any] = [None]
        if accelerator.is_main_process:
            hidden = [str(path) for path in stack.enter_context(complete_or_absent(folder, overwrite=True))]
        broadcast_object_list(hidden)
        try:
            yield Path(hidden[0])
        except RuntimeError as error:  # what PyTorch raises on a full disk
            raise OSError(str(error)) from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _lift(Path(hidden[0]), folder.name)
            _write_manifest(Path(hidden[0]))
    accelerator.wait_for_everyone()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is whole, None where there is no checkpoint.

    A warning names newer ones, and what is wrong with them. Raises ValueError where none is whole.
    """
    numbers = {path: int(match[1]) for path in folder.glob("*/") if (match := _NAME.fullmatch(path.name))}
    damaged: list[str] = []
    for checkpoint in sorted(numbers, key=lambda path: numbers[path], reverse=True):
        if not (faults := _faults(checkpoint)):
            if damaged:
                logger.warning("Not whole, so %s is taken: %s.", checkpoint.name, listed(damaged))
            return checkpoint
        damaged.append(f"{checkpoint.name}, in which {listed(faults)}")
    if damaged:
        raise ValueError(
            f"No checkpoint in {folder} is whole: {listed(damaged)}. Restore the files, or train into another folder."
        )
    return None


def check_whole(checkpoint: Path, needed: Iterable[str]) -> None:
    """Raise ValueError, with all that is wrong, for a checkpoint that is not whole or lacks a file that is needed."""
    missing = [f"{name} is missing" for name in needed if not (checkpoint / name).is_file()]
    if faults := _faults(checkpoint) or missing:
        raise ValueError(f"{checkpoint} is not whole: {listed(faults)}.")


def remove_unfinished(folder: Path) -> None:
    """Remove the hidden folders of checkpoints whose writing was killed."""
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _lift(folder: Path, name: str) -> None:
    """Move what is in the folder `name` up into `folder`."""
    for path in (folder / name).iterdir():
        path.rename(folder / path.name)
    (folder / name).rmdir()


def _file_names(checkpoint: Path) -> set[str]:
    return {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}


def _write_manifest(checkpoint: Path) -> None:
    files = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": file_sha256(checkpoint / name)}
        for name in sorted(_file_names(checkpoint))
    }
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def _faults(checkpoint: Path) -> list[str]:
    """Return what is wrong with the files of a checkpoint, [] for a whole one. Nothing in them is interpreted."""
    try:
        expected = read_json(checkpoint / MANIFEST, {}).get("files")
    except ValueError:
        expected = None
    if not isinstance(expected, dict) or not all(isinstance(facts, dict) for facts in expected.values()):
        return [f"{MANIFEST} is missing or damaged"]
    present = _file_names(checkpoint) - {MANIFEST}
    faults = [f"{shown(name)} is missing" for name in expected if name not in present]
    faults += [f"{shown(name)} is not one of its files" for name in sorted(present - expected.keys())]
    for name in sorted(present & expected.keys()):
        file, facts = checkpoint / name, expected[name]
        if (size := file.stat().st_size) != facts.get("bytes"):
            faults.append(f"{shown(name)} has {size:,} bytes, expected {shown(facts.get('bytes'))}")
        elif _sha256(file, file.stat().st_mtime_ns) != facts.get("sha256"):
            faults.append(f"{shown(name)} has changed since it was written")
    return faults


@cache
def _sha256(file: Path, modified: int) -> str:
    """Return the hash of a file, read again only where its time of modification is another."""
    return file_sha256(file)
