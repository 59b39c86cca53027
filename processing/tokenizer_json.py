"""The `tokenizers` library: its file, and Python's string methods as its steps."""

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer, Replace

# `str.lower()`. `Lowercase` takes letters one by one and so misses that a sigma at the end of a word is written ς.
_BARE = r"[\p{Cased}&&\P{Case_Ignorable}]"
_FINAL_SIGMA = (
    rf"Σ(?<={_BARE}\p{{Case_Ignorable}}{{0,9}}Σ)(?!\p{{Case_Ignorable}}*{_BARE})"  # found fast, by its letter
)
LOWER: list[Normalizer] = [Replace(Regex(_FINAL_SIGMA), "ς"), Lowercase()]
# ASCII punctuation; an underscore becomes a space.
WITHOUT_PUNCTUATION: list[Normalizer] = [Replace("_", " "), Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`; ValueError if it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
