"""Which files of a model folder go to the Hub, and why the others stay."""

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from ..formats import read_json, read_small
from ..formats.folder_files import CARD, PROOF, loaded_files
from ..formats.layout import LAYOUT_FILE
from ..processing.sentence_transformers import FILES as SENTENCE_TRANSFORMERS_FILES

# Beside what a model and its processor are loaded from, and the pictures that the card shows.
_FURTHER_FILES = {CARD, PROOF, LAYOUT_FILE, *SENTENCE_TRANSFORMERS_FILES}
# Graphs where `twinlens onnx` writes them, and the terms under which the weights may be used.
_FURTHER_PATTERN = re.compile(
    r"onnx/(vision_|text_)?model\.onnx(_data)?|openvino/openvino_(vision_|text_)?model\.(xml|bin)"
    r"|(LICENSE|NOTICE)(\.txt|\.md)?"
)
_PICTURE = re.compile(r"!\[[^\]]{0,200}\]\(\s{0,9}<?([^)\s>]+)|<img\s[^>]{0,200}?\bsrc=[\"']([^\"']+)", re.IGNORECASE)
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_RELATIVE_IMPORT = re.compile(r"^[ \t]*from[ \t]+\.(\w+)[ \t]+import\b", re.MULTILINE)  # which transformers follows
_NAME_CODE = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

CODE = "code, with which plain transformers loads this model; --include-code uploads it"
_OTHER_CODE = "code that no auto_map names"
_OTHER = "no part of a model folder; --include uploads it"


class UploadFiles(NamedTuple):
    """The files of a folder that are uploaded, with their bytes, and those that are left out, with the reason."""

    files: dict[str, int]
    left_out: dict[str, str]


def choose_files(folder: Path, include: Sequence[str] = (), *, include_code: bool = False) -> UploadFiles:
    """Choose what belongs to a model folder, what `include` names, and with `include_code` what `auto_map` names.

    An item of `include` is the path of a file or a folder in `folder`, or a pattern for paths. What is hidden and links
    that lead elsewhere are never uploaded. Raises ValueError for an item that names nothing to upload, and for what an
    interrupted conversion left.
    """
    code = code_files(folder)
    belongs = {*_FURTHER_FILES, *loaded_files(folder), *_pictures(folder)} | (code if include_code else set())
    files: dict[str, int] = {}
    left_out: dict[str, str] = {}
    refused: dict[str, str] = {}  # those that no option uploads
    for name, problem in _walk(folder):
        if name.endswith(".partial"):
            raise ValueError(f"{folder / name} is what an interrupted conversion left. Remove it, and convert again.")
        is_included = any(_matches(name, item) for item in include)
        if problem is not None:
            refused[name] = problem
        elif name in code and not include_code:
            refused[name] = CODE
        elif name in belongs or _FURTHER_PATTERN.fullmatch(name) or is_included:
            files[name] = (folder / name).stat().st_size
        else:
            left_out[name] = _OTHER_CODE if name.endswith(".py") else _OTHER
    for item in include:
        if not any(_matches(name, item) for name in files):
            found = next((f"{name} is {reason}" for name, reason in refused.items() if _matches(name, item)), None)
            raise ValueError(f"--include {item} names no file of {folder} to upload{f': {found}' if found else ''}.")
    return UploadFiles(files, _joined(dict(sorted({**left_out, **refused}.items())), files))


def _matches(name: str, item: str) -> bool:
    item = item.removeprefix("./").rstrip("/")
    return name == item or name.startswith(f"{item}/") or fnmatchcase(name, item)


def _walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the path of each file in a folder, with the reason if it may never be uploaded.

    Of folders that are hidden or links, the folder itself is yielded, and nothing in it.
    """

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        here = Path(root)
        for name in sorted([*folders, *files]):
            path = here / name
            problem = _problem(folder, path)
            if name in folders and problem is not None:
                folders.remove(name)
            if name not in folders:
                yield path.relative_to(folder).as_posix(), problem
        folders.sort()


def _problem(folder: Path, path: Path) -> str | None:
    """Return why a file or a folder may never be uploaded; None where it may."""
    if path.name == "__pycache__":
        return "a cache"
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if folder not in target.parents:
            return "a link that leaves the folder"
        if any(part.startswith(".") for part in target.relative_to(folder).parts):
            return "a link to what is hidden"
        if target.is_dir():
            return "a link to a folder"
    return None if path.is_file() or path.is_dir() else "no file"


def _is_own(folder: Path, name: str) -> bool:
    """Return whether a folder has a file of this name that may be read and uploaded."""
    return (folder / name).is_file() and _problem(folder, folder / name) is None


def _joined(left_out: Mapping[str, str], files: Mapping[str, int]) -> dict[str, str]:
    """Return what is left out, with one entry for a whole folder of which nothing is uploaded."""
    used = {parent for name in files for parent in PurePosixPath(name).parents}
    joined: dict[str, list[str]] = {}
    for name in left_out:
        outer = [parent for parent in reversed(PurePosixPath(name).parents) if parent.name and parent not in used]
        joined.setdefault(f"{outer[0]}/" if outer else name, []).append(name)
    return {
        place if len(names) > 1 else names[0]: ", ".join(dict.fromkeys(left_out[name] for name in names))
        + (f" ({len(names):,} files)" if len(names) > 1 else "")
        for place, names in joined.items()
    }


def _pictures(folder: Path) -> set[str]:
    """Return the files of a folder that its card shows as pictures."""
    text = read_small(folder / CARD).decode("utf-8", errors="replace") if _is_own(folder, CARD) else ""
    addresses = [unquote(match[1] or match[2]) for match in _PICTURE.finditer(text)]
    return {posixpath.normpath(address) for address in addresses if address.lower().endswith(_PICTURE_SUFFIXES)}


def code_files(folder: Path) -> set[str]:
    """Return the modules of a folder that an `auto_map` in its JSON files names, and those that they import."""
    maps = [read_json(folder / name).get("auto_map") for name in _NAME_CODE if _is_own(folder, name)]
    values = [value for one in maps if isinstance(one, Mapping) for value in one.values()]
    named = [item for value in values for item in (value if isinstance(value, list) else [value])]
    # "owner/name--module.Class" is in another repository, and its module no name in Python.
    pending = [item.partition(".")[0] for item in named if isinstance(item, str)]
    found: set[str] = set()
    while pending:
        module = pending.pop()
        name = f"{module}.py"
        if module.isidentifier() and name not in found and _is_own(folder, name):
            found.add(name)
            pending += _RELATIVE_IMPORT.findall(read_small(folder / name).decode("utf-8", errors="replace"))
    return found
