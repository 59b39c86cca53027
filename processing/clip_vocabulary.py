"""CLIP's byte-level BPE as a `tokenizers` pipeline."""

import gzip
import re
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .tokenizer_json import LOWER, WITHOUT_PUNCTUATION
from .vocabulary_file import LONGEST_PIECE, readable_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"
_MAX_TEXT = 16 << 20  # bytes of OpenAI's file when it is unpacked; it has 3 million
_OFFICIAL_MERGES = 49152 - 256 - 2  # the first of the 262144 lines in OpenAI's file that `simple_tokenizer.py` uses
# OpenAI's pattern, by which a text falls into words; it ignores case, after the text was lower-cased. What is left of
# that: "ſ" counts as an "s", and U+0345, a mark whose capital is a letter, as neither punctuation nor anything else.
_PUNCTUATION = r"[^\s\p{L}\p{N}\x{345}]"
_WORDS = rf"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|{_PUNCTUATION}+"
# The same for open_clip's cleaning "whitespace", which leaves capitals.
_CASED_WORDS = _WORDS.replace("[sſ]|'t|'re|'ve|'m|'ll|'d", "[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]")
# By that pattern a special token in a text is special only where a word begins. Punctuation before it takes its "<|"
# away, and its "|>" takes away the "<|" of another one that follows at once. The pieces and ids of three texts:
#     "cat<|endoftext|>"              cat</w> <|endoftext|>
#                                     2368    49407
#     "!<|endoftext|>"                ! <  |</w> endof text</w> |  ></w>
#                                     0 27 347   40786 4160     91 285
#     "!<|endoftext|><|endoftext|>"   ! <  |</w> endof text</w> |  >  <  |</w> endof text</w> |  ></w>
#                                     0 27 347   40786 4160     91 29 27 347   40786 4160     91 285
# `tokenizers` would find all of these before it looks for words. A space behind the "<|" hides those that are not
# special, and changes nothing else, since a word ends there anyway.
_SPECIAL_WITHOUT_START = r"(?:[sſ]tart|end)oftext\|>"
_SPECIAL = rf"<\|{_SPECIAL_WITHOUT_START}"
_MAX_SPECIALS_IN_A_ROW = 4  # that are found after punctuation, since a look-behind must have a fixed number of parts


def _behind_punctuation(count: int) -> str:
    """Return a look-behind for punctuation that is followed by exactly so many special tokens and a "<|"."""
    return rf"(?<={_PUNCTUATION}{_SPECIAL * count}<\|)(?<!{_SPECIAL * (count + 1)}<\|)"


_NOT_AT_START = "|".join(map(_behind_punctuation, range(_MAX_SPECIALS_IN_A_ROW)))
_NOT_SPECIAL = rf"<\|(?={_SPECIAL_WITHOUT_START})(?:{_NOT_AT_START})"  # the rare "<|" first, which is fast to find


def read_official(path: str | Path | None = None) -> models.BPE:
    """Read OpenAI's `bpe_simple_vocab_16e6.txt.gz`; without a path the copy that is part of this package.

    A file in its format may have fewer merges if its first line ends with their number, as in "#merges: 160". Raises
    ValueError for other files.
    """
    source = files(__package__) / "assets" / "bpe_simple_vocab_16e6.txt.gz" if path is None else Path(path)
    with readable_vocabulary(source, "OpenAI's bpe_simple_vocab_16e6.txt.gz"):
        with source.open("rb") as compressed, gzip.GzipFile(fileobj=compressed) as file:
            content = file.read(_MAX_TEXT + 1)
        if len(content) > _MAX_TEXT:
            raise ValueError(f"it unpacks to more than {_MAX_TEXT:,} bytes")
        lines = content.decode("utf-8").split("\n")
        if (longest := max(map(len, lines))) > 2 * LONGEST_PIECE:
            raise ValueError(f"a line has {longest:,} characters")
    stated = re.search(r"#merges: (\d+)$", lines[0])
    count = int(stated[1]) if stated else _OFFICIAL_MERGES
    merges = [(left, right) for left, space, right in (line.partition(" ") for line in lines[1 : count + 1]) if space]
    if len(merges) != count:
        raise ValueError(f"{source} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {len(merges)} merges, not {count}.")
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
    """Return the letters that stand for the 256 bytes, in the order of their ids: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def pipeline(model: models.BPE, text_cleanup: str | None = None) -> Tokenizer:
    """Build the steps from a text, cleaned by `CLIPTokenizer.clean`, to the ids of start, pieces, end."""
    tokenizer = Tokenizer(model)
    keeps_case = text_cleanup == "open_clip_whitespace"
    drops_punctuation = text_cleanup == "open_clip_canonicalize"  # that of special tokens too, which so stay text
    # The part of the cleaning that a `tokenizer.json` can express, for plain transformers; it leaves clean text alone.
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(WITHOUT_PUNCTUATION if drops_punctuation else []),
            normalizers.Replace(Regex(r"\s{2,}|[^\S ]"), " "),
            *([] if keeps_case else LOWER),
            normalizers.Replace(Regex(_NOT_SPECIAL), "<| "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CASED_WORDS if keeps_case else _WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    specials = [AddedToken(token, normalized=not drops_punctuation, special=True) for token in (START, END)]
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[START, "$A", END], special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    tokenizer.decoder = decoders.Sequence(
        # `Strip` would panic where nothing is left to decode.
        [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Replace(Regex(r" \z"), "")]
    )
    return tokenizer
