"""Ids as a source's own code makes them: restated with `regex` and Python's strings, from a vocabulary in JSON.

It shares no code with `processing`, so that a mistake there cannot hide here. Texts are expected in Unicode's NFKC.
"""

import gzip
import html
import json
import math
import string
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import regex

_OPENAI_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_OPEN_CLIP_SPECIALS = ("<start_of_text>", "<end_of_text>")
_CLIP_WORDS = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_OFFICIAL_MERGES = Path(__file__).parents[1] / "processing" / "assets" / "bpe_simple_vocab_16e6.txt.gz"


def _lower_ascii(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def _canonicalize(text: str) -> str:
    without = "".join(letter for letter in text.replace("_", " ") if letter not in string.punctuation)
    return " ".join(without.lower().split())


def _repair(text: str) -> str:
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


CLEANUPS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": _lower_ascii,  # TensorFlow's, in big_vision's training
    "canonicalize": _canonicalize,  # big_vision's evaluator
    "open_clip_canonicalize": lambda text: _canonicalize(_repair(text)),
    "open_clip_lower": lambda text: _repair(text).lower(),  # OpenAI's too
    "open_clip_whitespace": _repair,
}


class Vocabulary(NamedTuple):
    """The pieces of a vocabulary and how they are put together."""

    ids: Mapping[str, int]
    merges: Mapping[tuple[str, str], int]  # pairs of pieces by their rank; empty for SigLIP's
    scores: Mapping[str, float]  # of a unigram vocabulary
    adds_prefix: bool = False
    has_bytes: bool = False
    unknown: int = 0

    @classmethod
    def official_clip(cls) -> "Vocabulary":
        """Return that of OpenAI's `bpe_simple_vocab_16e6.txt.gz`, as `simple_tokenizer.py` reads it."""
        lines = gzip.decompress(_OFFICIAL_MERGES.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
        merges = [(left, right) for left, right in (line.split() for line in lines)]
        letters = list(_byte_letters().values())
        pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), *_OPENAI_SPECIALS]
        return cls({piece: number for number, piece in enumerate(pieces)}, _ranks(merges), {})

    @classmethod
    def from_tokenizer_json(cls, path: Path, *, is_clip: bool) -> "Vocabulary":
        """Read the pieces of a `tokenizer.json`, and not its steps."""
        content = path.read_bytes()
        if not is_clip and (end := content.find(b'"merges"')) > 0:
            # Gemma's 580,000 merges follow from its pieces, which are sorted by their score.
            content = content[:end].rstrip().rstrip(b",") + b"}}"
        file = json.loads(content)
        model = file["model"]
        normalizer = json.dumps(file.get("normalizer"), ensure_ascii=False)
        flags = {
            "adds_prefix": '"Prepend"' in normalizer or '"Metaspace"' in json.dumps(file.get("pre_tokenizer")),
            "has_bytes": bool(model.get("byte_fallback")),
        }
        added = {token["content"]: token["id"] for token in file.get("added_tokens") or ()}
        if isinstance(model["vocab"], list):
            scores = dict(model["vocab"])
            ids = added | {piece: number for number, (piece, _) in enumerate(model["vocab"])}
            return cls(ids, {}, scores, unknown=model.get("unk_id") or 0, **flags)
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]
        ids = added | model["vocab"]
        return cls(ids, _ranks(merges), {}, unknown=ids.get(model.get("unk_token") or "<unk>", 0), **flags)


def _ranks(merges: list[Any]) -> dict[tuple[str, str], int]:
    return {pair: rank for rank, pair in enumerate(merges)}


def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte, in the order of their ids (`bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def clip_ids(text: str, vocabulary: Vocabulary, *, cleanup: str | None, length: int) -> list[int]:
    """Return the ids of a text from start to end, without padding (`simple_tokenizer.py`, `clip.tokenize`)."""
    specials = _OPENAI_SPECIALS if cleanup is None else _OPEN_CLIP_SPECIALS
    numbers = dict(zip(specials, (vocabulary.ids[name] for name in _OPENAI_SPECIALS), strict=True))
    letters = _byte_letters()
    start, end = numbers.values()
    ids = [start]
    words = regex.compile("|".join(map(regex.escape, specials)) + _CLIP_WORDS, regex.IGNORECASE)
    for word in words.findall(CLEANUPS[cleanup or "open_clip_lower"](text)):
        if word in numbers:
            ids.append(numbers[word])
            continue
        pieces = [letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        ids += [vocabulary.ids[piece] for piece in _merge(pieces, vocabulary.merges.get)]
    return [*ids[: length - 1], end]


def siglip_ids(text: str, vocabulary: Vocabulary, *, cleanup: str, length: int, pad: int | None) -> list[int]:
    """Return the ids of a text, its end and the padding to the full length (SentencePiece, `pp/ops_text.py`).

    Without `pad` it is the official one: the end for SigLIP's unigram vocabularies, 0 for Gemma's.
    """
    text = CLEANUPS[cleanup](text)
    if vocabulary.adds_prefix:
        text = " ".join(part for part in text.split(" ") if part)
        text = "▁" + text if text else text
    text = text.replace(" ", "▁")
    if vocabulary.scores:
        pieces = _most_likely(text, vocabulary.scores)
    else:
        # SentencePiece merges the pair whose piece has the highest score, which is the lowest id.
        pieces = _merge(list(text), lambda pair: vocabulary.ids.get("".join(pair)))
    ids: list[int] = []
    unknown = False
    for piece in pieces:
        if known := piece in vocabulary.ids:
            ids.append(vocabulary.ids[piece])
        elif vocabulary.has_bytes:
            ids += [vocabulary.ids[f"<0x{byte:02X}>"] for byte in piece.encode("utf-8")]
        elif not unknown:  # a run of unknown letters is one piece
            ids.append(vocabulary.unknown)
        unknown = not known
    end = next(vocabulary.ids[piece] for piece in ("<eos>", "</s>") if piece in vocabulary.ids)
    ids = [*ids[: length - 1], end]
    if pad is None:
        pad = end if vocabulary.scores else 0
    return ids + [pad] * (length - len(ids))


def _merge(pieces: list[str], rank: Callable[[tuple[str, str]], int | None]) -> list[str]:
    """Join the neighbours of the lowest rank, the leftmost first, until there are none with a rank."""
    while len(pieces) > 1:
        ranks = [math.inf if (value := rank(pair)) is None else value for pair in pairwise(pieces)]
        if (best := min(ranks)) == math.inf:
            break
        place = ranks.index(best)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def _most_likely(text: str, scores: Mapping[str, float]) -> list[str]:
    """Cut a text where the sum of the scores is the highest; a letter that is no piece costs 10 more than the worst."""
    longest, unknown = max(map(len, scores)), min(scores.values()) - 10
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(text) + 1):
        candidates = [
            (best[start][0] + scores[text[start:end]], start)
            for start in range(max(0, end - longest), end)
            if text[start:end] in scores
        ]
        if text[end - 1] not in scores:
            candidates.append((best[end - 1][0] + unknown, end - 1))
        best.append(max(candidates))
    pieces, end = [], len(text)
    while end:
        start = best[end][1]
        pieces.append(text[start:end])
        end = start
    return pieces[::-1]
