"""Tokens and keys that have got into a text file."""

import mmap
import re
from collections.abc import Iterable
from pathlib import Path

from ..formats.small_files import MAX_VOCABULARY, check_size

# For each kind, texts one of which every one of them contains, and its form.
_KINDS: dict[str, tuple[tuple[bytes, ...], re.Pattern[bytes]]] = {
    "a token of Hugging Face": ((b"hf_",), re.compile(rb"(?<!\w)hf_[A-Za-z0-9]{30,}(?!\w)")),
    "an access key of AWS": ((b"AKIA", b"ASIA"), re.compile(rb"(?<!\w)(AKIA|ASIA)[A-Z0-9]{16}(?!\w)")),
    "a token of GitHub": (
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        re.compile(rb"(?<!\w)(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{30,})(?!\w)"),
    ),
    "a private key": ((b"PRIVATE KEY",), re.compile(rb"-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY")),
}
_BINARY = {".safetensors", ".onnx", ".onnx_data", ".bin", ".model", ".png", ".jpg", ".jpeg", ".gif", ".webp"}


def find_credentials(folder: Path, names: Iterable[str]) -> list[str]:
    """Return in words where text files of a folder hold tokens or private keys, without these themselves.

    Raises FormatError for one that is larger than any vocabulary.
    """
    return [found for name in names if Path(name).suffix not in _BINARY for found in _find(folder / name, name)]


def _find(file: Path, name: str) -> list[str]:
    check_size(file, MAX_VOCABULARY)
    if not file.stat().st_size:
        return []  # which cannot be mapped
    faults = []
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for kind, (parts, form) in _KINDS.items():
            if any(text.find(part) >= 0 for part in parts) and (match := form.search(text)):
                line = text[: match.start()].count(b"\n") + 1
                faults.append(f"{name} holds {kind} in line {line}")
    return faults
