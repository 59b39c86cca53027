"""The files of a model folder from which a model and its processor are loaded."""

from pathlib import Path
from typing import Any

from ..catalogue.download import file_sha256
from .reader import weight_files

CARD = "README.md"
PROOF = "parity.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # names several files
# Of configurations, processors, and the tokenizers of all families.
_SETTINGS = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


def stored_weights(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights of a folder, which need not be there, and of their index.

    Raises FormatError for an index that does not name files of the folder.
    """
    if (folder / WEIGHTS).is_file() or not (folder / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    return [WEIGHTS_INDEX, *(part.name for part in weight_files(folder, (WEIGHTS_INDEX,)))]


def loaded_files(folder: Path) -> list[str]:
    """Return the names of those files in a folder that decide what its model and its processor compute."""
    return [name for name in (*stored_weights(folder), *_SETTINGS) if (folder / name).is_file()]


def describe_file(file: Path) -> dict[str, Any]:
    """Return, ready for JSON, the name of a file with its size and its hash."""
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
