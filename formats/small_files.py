"""Small files that anybody may have written: JSON and texts, of bounded size, and no pipes or devices."""

import json
from pathlib import Path
from typing import Any

from .errors import FormatError

MAX_JSON = 16 << 20  # bytes; the largest are those of `LAYOUT_FILE` with arrays in them
_MAX_SETTINGS = 4 << 20  # bytes; Gemma's tokenizer_config.json has 1.2 million
MAX_VOCABULARY = 64 << 20  # bytes; Gemma's tokenizer.json has 34 million
# What transformers reads in a folder beside its weights, and copies several times.
_SETTINGS = (
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
_MOST_BYTES = dict.fromkeys(_SETTINGS, _MAX_SETTINGS) | dict.fromkeys(_VOCABULARIES, MAX_VOCABULARY)


def read_small(path: Path, most: int = MAX_JSON) -> bytes:
    """Return the bytes of a file. Raises FormatError for more than `most` of them, and for a pipe or a device."""
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} is no file.")
    check_size(path, most)
    return path.read_bytes()


def check_size(path: Path, most: int) -> None:
    """Raise FormatError for a file of more than `most` bytes."""
    if (size := path.stat().st_size) > most:
        raise FormatError(f"{path} has {size:,} bytes, expected at most {most:,}.")


def read_json(path: Path, default: Any = None) -> Any:
    """Return the object in a JSON file, `default` where there is no such file."""
    return parse_json(read_small(path), path) if path.is_file() else default


def parse_json(content: bytes | str, path: object) -> dict[str, Any]:
    """Return the object in JSON out of a file. Raises FormatError for anything else."""
    if len(content) > MAX_JSON:
        raise FormatError(f"{path} has {len(content):,} bytes, expected JSON of at most {MAX_JSON:,}.")
    try:
        value = json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, expected an object.")
    return value


def check_settings(source: object, subfolder: str | None = None) -> None:
    """Raise FormatError where a source is a folder with settings or a vocabulary too large for transformers to read."""
    folder = Path(str(source), subfolder or "")
    for name, most in _MOST_BYTES.items():
        if (folder / name).is_file():
            check_size(folder / name, most)
