"""CLIP's byte-level BPE as a `tokenizers` pipeline."""

import gzip
import re
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .tokenizer_json import LOWER

START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 49152 - 256 - 2  # of the 262144 lines in OpenAI's file, `simple_tokenizer.py`
# OpenAI's pattern ignores case, which after lower-casing means: "ſ" counts as "s", and U+0345, a mark whose capital is
# a letter, is in none of the classes.
_WORDS = r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
# Only at the start of a word of that pattern are the special tokens special: not right after punctuation, which
# takes in their first two characters, and then those of the next one if more follow at once. A space between these two
# and the rest changes nothing else.
_NAME = r"(?:[sſ]tart|end)oftext\|>"
_SPECIAL = rf"<\|{_NAME}"
_IN_PUNCTUATION = "|".join(
    rf"(?<=[^\s\p{{L}}\p{{N}}\x{{345}}]{count * _SPECIAL})(?<!{(count + 1) * _SPECIAL})" for count in range(4)
)
_NOT_SPECIAL = rf"(?:{_IN_PUNCTUATION})<\|(?={_NAME})"


def read_official(path: str | Path | None = None) -> models.BPE:
    """Read OpenAI's `bpe_simple_vocab_16e6.txt.gz`; without a path the copy that is part of this package.

    A file in its format may have fewer merges if its first line ends with their number, as in "#merges: 160".
    """
    source = files(__package__) / "assets" / "bpe_simple_vocab_16e6.txt.gz" if path is None else Path(path)
    try:
        lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {error}") from error
    stated = re.search(r"#merges: (\d+)$", lines[0])
    count = int(stated[1]) if stated else _MERGES
    merges = [(left, right) for left, space, right in (line.partition(" ") for line in lines[1 : count + 1]) if space]
    if len(merges) != count:
        raise ValueError(f"{source} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {len(merges)} merges, not {count}")
    alphabet = _byte_alphabet()
    pieces = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *(left + right for left, right in merges),
        START,
        END,
    ]
    ids = {piece: index for index, piece in enumerate(pieces)}
    return models.BPE(ids, merges, end_of_word_suffix="</w>", unk_token=END)


def _byte_alphabet() -> list[str]:
    """Give the letters that stand for the 256 bytes, in the order of their ids: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def pipeline(model: models.BPE) -> Tokenizer:
    """Build text -> start, pieces, end; the text is expected as `CLIPTokenizer.clean` leaves it."""
    tokenizer = Tokenizer(model)
    # What of the cleaning can be said here, for plain transformers; it changes nothing in clean text.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), *LOWER, normalizers.Replace(Regex(_NOT_SPECIAL), "<| ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in (START, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[START, "$A", END], special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
    )
    return tokenizer
