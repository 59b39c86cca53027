"""SigLIP's vocabularies as `tokenizers` pipelines: SentencePiece files and the `tokenizer.json` of any age."""

import base64
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.normalizers import Normalizer

from ..messages import quoted
from .charsmap import BARRIER, charsmap_keys, longest_match_normalizers
from .sentencepiece_model import PieceType, SentencePieceModel, read_sentencepiece
from .tokenizer_json import LOWER, WITHOUT_PUNCTUATION, read_tokenizer_json
from .vocabulary_file import readable_vocabulary
from .words import SPACE, WordRule

# The ways to clean a text before it is cut into pieces. "lower" is that of the training of SigLIP and SigLIP 2
# (big_vision, `pp/ops_text.py`: TensorFlow's lower-casing, which leaves all but ASCII alone); "canonicalize" is that of
# big_vision's zero-shot evaluator (`evaluators/proj/image_text/prompt_engineering.py`). White space is Python's.
_WHITE_SPACE = r"[\t-\r\x1C-\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
_STRIP = normalizers.Replace(Regex(r"\A +| +\z"), "")
_SINGLE_SPACES: list[Normalizer] = [normalizers.Replace(Regex(rf"{_WHITE_SPACE}+"), " "), _STRIP]
TEXT_CLEANUPS: dict[str, list[Normalizer]] = {
    "none": [],
    "lower": [normalizers.Replace(letter, letter.lower()) for letter in string.ascii_uppercase],
    "canonicalize": [*WITHOUT_PUNCTUATION, *LOWER, *_SINGLE_SPACES],
    # Those of open_clip, after `text_cleanup.OPEN_CLIP_CLEANUPS` in Python; the parts that a `tokenizer.json` can hold.
    "open_clip_canonicalize": [*WITHOUT_PUNCTUATION, *LOWER, *_SINGLE_SPACES],
    "open_clip_lower": [*LOWER, *_SINGLE_SPACES],
    "open_clip_whitespace": _SINGLE_SPACES,
}


_PROBES = ("a", "A", "a.", "a a", "a  a")  # the texts that show what the pipeline of a file does
_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_SENTINEL = re.compile(r"▁?<extra_id_\d+>$")
_CONTROLS = ("<pad>", "<s>", "</s>", "<bos>", "<eos>", "<unk>")  # SentencePiece's control pieces, and the unknown one


@dataclass(frozen=True)
class SiglipVocabulary:
    """Pieces and what surrounds them: special tokens, and the spelling of text that the pieces were learnt on."""

    model: models.Model
    eos: str
    specials: list[str]
    user_defined: list[str]
    spelling: list[Normalizer]
    changed: frozenset[str] | None  # letters without which `spelling` changes no text, where they are known
    adds_prefix: bool
    squeezes_spaces: bool
    source: Tokenizer | None = None  # the pipeline that a `tokenizer.json` held
    corrections: tuple[str, ...] = ()  # what a `tokenizer.json` has against the rules of SentencePiece, in words

    @classmethod
    def from_sentencepiece(cls, path: str | Path) -> "SiglipVocabulary":
        """Read a SentencePiece `.model`: unigram (SigLIP, multilingual SigLIP) or BPE (SigLIP 2)."""
        source = read_sentencepiece(path)
        if not 0 <= source.eos_id < len(source.pieces):
            raise ValueError(f"{path} has no end-of-text piece, which every SigLIP text ends with.")
        with readable_vocabulary(path, "a SentencePiece model of SigLIP"):
            model = _bpe(source) if source.is_bpe else _unigram(source)
        return cls(
            model=model,
            eos=source.pieces[source.eos_id][0],
            specials=source.named(PieceType.CONTROL, PieceType.UNKNOWN),
            user_defined=source.named(PieceType.USER_DEFINED) if source.is_bpe else [],
            spelling=longest_match_normalizers(source.charsmap) if source.charsmap else [],
            changed=_last_letters(source.charsmap) if source.charsmap else frozenset(),
            adds_prefix=source.add_dummy_prefix,
            squeezes_spaces=source.remove_extra_whitespaces,
        )

    @classmethod
    def from_tokenizer_json(cls, path: str | Path) -> "SiglipVocabulary":
        """Take the pieces out of a `tokenizer.json`; how it spells spaces is found by encoding short texts."""
        source = read_tokenizer_json(path)
        eos = next((token for token in ("<eos>", "</s>") if source.token_to_id(token) is not None), None)
        if not isinstance(source.model, models.Unigram | models.BPE) or eos is None:
            raise ValueError(
                f"{path}: SigLIP's vocabularies are unigram or BPE and have an end-of-text piece <eos> or </s>; "
                f"this one is {type(source.model).__name__} and has {eos or 'neither'}."
            )
        model: models.Unigram | models.BPE = source.model
        _check_normalizer(source.normalizer, path)
        corrections = []
        if not _falls_back_on_bytes(model) and all(source.token_to_id(piece) is not None for piece in _BYTE_PIECES):
            model = _falling_back_on_bytes(path)
            corrections.append("writes unknown characters in bytes")
        added = source.get_added_tokens_decoder().values()
        specials = [token.content for token in added if token.special]
        user_defined = [token.content for token in added if not token.special]
        if isinstance(model, models.BPE):
            # In SentencePiece only control pieces are special; it looks for all other symbols in the text.
            symbols = [token for token in specials if token not in _CONTROLS and model.token_to_id(token) is not None]
            specials = [token for token in specials if token not in symbols]
            user_defined += symbols
            if symbols:
                corrections.append(f"finds {', '.join(symbols)} in text")
        changed: frozenset[str] | None = frozenset()
        tables = [step for step in _steps(source.normalizer) if isinstance(step, normalizers.Precompiled)]
        spells_spaces = source.normalizer is not None and "▁" in source.normalizer.normalize_str("a a")
        if tables:
            charsmap = base64.b64decode(json.loads(tables[0].__getstate__())["precompiled_charsmap"])
            spelling, changed = longest_match_normalizers(charsmap), _last_letters(charsmap)
        elif isinstance(source.model, models.Unigram) and not spells_spaces:
            # Files made for JavaScript leave out SentencePiece's table "nmt_nfkc"; these two steps are what it holds.
            spelling, changed = [normalizers.Nmt(), normalizers.NFKC()], None
        else:
            spelling = []

        def pieces(text: str) -> list[str]:
            return source.encode(text, add_special_tokens=False).tokens

        return cls(
            model=model,
            eos=eos,
            specials=specials,
            user_defined=user_defined,
            spelling=spelling,
            changed=changed,
            adds_prefix=pieces("a")[0].startswith("▁"),
            squeezes_spaces=pieces("a  a") == pieces("a a"),
            source=source,
            corrections=tuple(corrections),
        )

    @property
    def pad(self) -> str:
        """The piece that pads texts, as in big_vision: end-of-text (id 1) for SigLIP, that of id 0 for SigLIP 2."""
        return self.eos if isinstance(self.model, models.Unigram) else str(self.model.id_to_token(0))

    def word_rule(self, text_cleanup: str) -> WordRule | None:
        """Return how words are read, or None where their ids do not make up those of a text."""
        drops_spaces = text_cleanup not in ("none", "lower")
        pieces = [*Tokenizer(self.model).get_vocab(with_added_tokens=False), *self.user_defined]
        if self.adds_prefix and self.squeezes_spaces:
            prefix, inner = SPACE, (piece[1:] for piece in pieces)
        elif not (self.adds_prefix or self.squeezes_spaces or self.spelling) and isinstance(self.model, models.BPE):
            prefix, inner = "", (piece.lstrip(SPACE) for piece in pieces)
        else:
            return None
        if (
            (self.changed is not None and " " in self.changed)  # a spelling of several words
            or self.model.token_to_id(SPACE) is None  # unknown, and joined with what is unknown beside it
            or any(SPACE in part or " " in part for part in inner)
            or (drops_spaces and not prefix)
        ):
            return None
        changed = None if drops_spaces else self.changed
        if changed is not None:
            changed |= {spelling[0] for spelling in self._cut_spellings}
        return WordRule(prefix, text_cleanup == "lower", changed)

    @cached_property
    def _cut_spellings(self) -> list[str]:
        """Text that spells a special token, or a byte, and that `tokenizers` would find among the pieces."""
        spellings = [*self.specials, *_BYTE_PIECES]
        return [text for text in spellings if [piece.value for piece in self.model.tokenize(text)] == [text]]

    def pipeline(self, text_cleanup: str) -> Tokenizer:
        """Build text -> ids with end-of-text as the last, after one of `TEXT_CLEANUPS`."""
        if text_cleanup not in TEXT_CLEANUPS:
            raise ValueError(f"text_cleanup must be one of {', '.join(TEXT_CLEANUPS)}, got {quoted(text_cleanup)}.")
        tokenizer = Tokenizer(self.model)
        tokenizer.normalizer = normalizer = normalizers.Sequence(
            [
                *TEXT_CLEANUPS[text_cleanup],
                *self.spelling,
                *([normalizers.Replace(Regex(" {2,}"), " "), _STRIP] if self.squeezes_spaces else []),
                *([normalizers.Prepend("▁")] if self.adds_prefix else []),
                normalizers.Replace(" ", "▁"),
            ]
        )
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in self.specials])
        # SentencePiece looks for these in the cleaned text. One that the cleaning changes can never be found there.
        reachable = [token for token in self.user_defined if normalizer.normalize_str(token) == token]
        tokenizer.add_tokens([AddedToken(token, normalized=True) for token in reachable])
        splits = []
        if isinstance(self.model, models.Unigram) and self.word_rule(text_cleanup) is not None:
            # Of ways to cut a text that are equally likely the model takes one by the rounding of their sums. Word by
            # word it does not depend on the words before.
            splits.append(pre_tokenizers.Split(SPACE, behavior="merged_with_next"))
        if self._cut_spellings:
            # This stays text: it is cut before its last character, since no ordinary piece spans that place.
            cuts = "|".join(f"(?={re.escape(text[-1])})(?<={re.escape(text[:-1])})" for text in self._cut_spellings)
            splits.append(pre_tokenizers.Split(Regex(cuts), behavior="isolated"))
        if splits:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", self.eos], special_tokens=[(self.eos, tokenizer.token_to_id(self.eos))]
        )
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if self.adds_prefix else []),
            ]
        )
        return tokenizer


def _check_normalizer(normalizer: Normalizer | None, path: str | Path) -> None:
    """Raise ValueError for steps that make much of little, before the pipeline of a file encodes texts with them."""
    for text in _PROBES:
        for step in _steps(normalizer):
            text = step.normalize_str(text)
            if len(text) > 100:
                raise ValueError(f"{path}: its normalizer makes more than 100 characters of two letters.")


def _steps(normalizer: Normalizer | None) -> Iterator[Normalizer]:
    if isinstance(normalizer, normalizers.Sequence):
        for index in range(len(normalizer)):
            yield from _steps(normalizer[index])
    elif normalizer is not None:
        yield normalizer


def _last_letters(charsmap: bytes) -> frozenset[str]:
    """Return the letters with which the spellings end that a table replaces, or the space where one spans words."""
    return frozenset({BARRIER, *(" " if " " in key else key[-1] for key in charsmap_keys(charsmap))})


def _falls_back_on_bytes(model: models.Model) -> bool:
    unknown = next(chr(code) for code in range(0x10FFFF, 0, -1) if model.token_to_id(chr(code)) is None)
    try:
        pieces = model.tokenize(unknown)
    except Exception:  # tokenizers raises nothing more precise, here where nothing stands for what is unknown
        return False
    return [piece.value for piece in pieces[:1]] == [f"<0x{unknown.encode()[0]:02X}>"]


def _falling_back_on_bytes(path: str | Path) -> models.Unigram | models.BPE:
    """Read the vocabulary of a `tokenizer.json` whose byte pieces stand for what has no piece of its own."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    content["model"]["byte_fallback"] = True
    model: models.Unigram | models.BPE = Tokenizer.from_str(json.dumps(content)).model
    return model


def _unigram(source: SentencePieceModel) -> models.Unigram:
    pieces = list(source.pieces)
    # T5's files end with 100 sentinels, for which SigLIP has no embeddings; mT5's have them by name.
    while len(pieces) > source.unk_id + 1:
        piece, _, kind = pieces[-1]
        if kind is not PieceType.USER_DEFINED and not _SENTINEL.match(piece):
            break
        pieces.pop()
    model = models.Unigram([(piece, score) for piece, score, _ in pieces], source.unk_id, source.byte_fallback)
    # `tokenizers` reads a third of the scores one unit in the last place off from its own file, and those as they are.
    return Tokenizer.from_str(Tokenizer(model).to_str()).model


def _bpe(source: SentencePieceModel) -> models.BPE:
    ids = {piece: index for index, (piece, _, _) in enumerate(source.pieces)}
    scores = {piece: score for piece, score, kind in source.pieces if kind is PieceType.NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    unknown = source.pieces[source.unk_id][0]
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=source.byte_fallback)
