"""SigLIP's vocabularies as `tokenizers` pipelines: SentencePiece files and the `tokenizer.json` of any age."""

import base64
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.normalizers import Normalizer

from .charsmap import longest_match_normalizers
from .sentencepiece_model import PieceType, SentencePieceModel, read_sentencepiece
from .tokenizer_json import LOWER, WITHOUT_PUNCTUATION, read_tokenizer_json

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


@dataclass(frozen=True)
class SiglipVocabulary:
    """Pieces and what surrounds them: special tokens, and the spelling of text that the pieces were learnt on."""

    model: models.Model
    eos: str
    specials: list[str]
    user_defined: list[str]
    spelling: list[Normalizer]
    adds_prefix: bool
    squeezes_spaces: bool
    source: Tokenizer | None = None  # the pipeline that a `tokenizer.json` held

    @classmethod
    def from_sentencepiece(cls, path: str | Path) -> "SiglipVocabulary":
        """Read a SentencePiece `.model`: unigram (SigLIP, multilingual SigLIP) or BPE (SigLIP 2)."""
        source = read_sentencepiece(path)
        if not 0 <= source.eos_id < len(source.pieces):
            raise ValueError(f"{path} has no end-of-text piece, which every SigLIP text ends with.")
        return cls(
            model=_bpe(source) if source.is_bpe else _unigram(source),
            eos=source.pieces[source.eos_id][0],
            specials=source.named(PieceType.CONTROL, PieceType.UNKNOWN),
            user_defined=source.named(PieceType.USER_DEFINED) if source.is_bpe else [],
            spelling=longest_match_normalizers(source.charsmap) if source.charsmap else [],
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
        added = source.get_added_tokens_decoder().values()
        tables = [step for step in _steps(source.normalizer) if isinstance(step, normalizers.Precompiled)]
        spells_spaces = source.normalizer is not None and "▁" in source.normalizer.normalize_str("a a")
        if tables:
            spelling = longest_match_normalizers(
                base64.b64decode(json.loads(tables[0].__getstate__())["precompiled_charsmap"])
            )
        elif isinstance(source.model, models.Unigram) and not spells_spaces:
            # Files made for JavaScript leave out SentencePiece's table "nmt_nfkc"; these two steps are what it holds.
            spelling = [normalizers.Nmt(), normalizers.NFKC()]
        else:
            spelling = []

        def pieces(text: str) -> list[str]:
            return source.encode(text, add_special_tokens=False).tokens

        return cls(
            model=source.model,
            eos=eos,
            specials=[token.content for token in added if token.special],
            user_defined=[token.content for token in added if not token.special],
            spelling=spelling,
            adds_prefix=pieces("a")[0].startswith("▁"),
            squeezes_spaces=pieces("a  a") == pieces("a a"),
            source=source,
        )

    @property
    def pad(self) -> str:
        """The piece that pads texts, as in big_vision: end-of-text (id 1) for SigLIP, that of id 0 for SigLIP 2."""
        return self.eos if isinstance(self.model, models.Unigram) else str(self.model.id_to_token(0))

    def pipeline(self, text_cleanup: str) -> Tokenizer:
        """Build text -> ids with end-of-text as the last, after one of `TEXT_CLEANUPS`."""
        if text_cleanup not in TEXT_CLEANUPS:
            raise ValueError(f"text_cleanup must be one of {', '.join(TEXT_CLEANUPS)}, got {text_cleanup!r}.")
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
        # Text that spells a special token, or a byte, stays text, also where `tokenizers` would find it among the
        # pieces: it is cut before its last character, since no ordinary piece spans that place.
        spellings = [*self.specials, *(f"<0x{byte:02X}>" for byte in range(256))]
        single_pieces = [text for text in spellings if [piece.value for piece in self.model.tokenize(text)] == [text]]
        if single_pieces:
            cuts = "|".join(f"(?={re.escape(text[-1])})(?<={re.escape(text[:-1])})" for text in single_pieces)
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cuts), behavior="isolated")
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


def _steps(normalizer: Normalizer | None) -> Iterator[Normalizer]:
    if isinstance(normalizer, normalizers.Sequence):
        for index in range(len(normalizer)):
            yield from _steps(normalizer[index])
    elif normalizer is not None:
        yield normalizer


def _unigram(source: SentencePieceModel) -> models.Unigram:
    pieces = list(source.pieces)
    # T5's files end with 100 sentinels, for which SigLIP has no embeddings.
    while pieces[-1][2] is PieceType.USER_DEFINED:
        pieces.pop()
    return models.Unigram([(piece, score) for piece, score, _ in pieces], source.unk_id, source.byte_fallback)


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
