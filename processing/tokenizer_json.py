"""The file of the `tokenizers` library."""

from pathlib import Path

from tokenizers import Tokenizer


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`; ValueError if it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
