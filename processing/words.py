"""The ids of words, each found once.

SentencePiece's pieces begin at spaces and never go on behind one. So the ids of a text are those of its words in a row,
and a look-up takes a fraction of the time that cutting the words into pieces does.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from tokenizers import Tokenizer

SPACE = "▁"  # what SentencePiece writes for a space

_WITH_SPACES_BEFORE = re.compile(" *[^ ]+| +")
_MOST_WORDS = 2**16  # that are remembered, in some 15 MB
_LONGEST_WORD = 32  # longer ones do not come back


@dataclass(frozen=True)
class WordRule:
    """How a pipeline reads words: what it writes before each, and in which words it does no more than that."""

    prefix: str  # SPACE where the pipeline drops the spaces of a text and puts one before each word, else nothing
    lowers: bool  # whether A-Z are lower-cased
    changed: frozenset[str] | None  # of these letters a word with more steps has at least one; None if all words have

    def split(self, text: str) -> list[str]:
        """Return the words of a text, with the spaces before them where these count."""
        if self.lowers:
            text = text.encode().lower().decode()  # in bytes only A-Z are letters
        if SPACE in text:  # it may join what stands on both sides
            return [text]
        return text.split(" ") if self.prefix else _WITH_SPACES_BEFORE.findall(text)

    def spell(self, word: str) -> str | None:
        """Return the word as the pipeline's vocabulary sees it, or None where only the pipeline knows."""
        if self.changed is None or SPACE in word or not self.changed.isdisjoint(word):
            return None
        return self.prefix + word.replace(" ", SPACE) if word else word


class WordIds:
    """The ids of the words that came before, for any number of threads."""

    def __init__(self, rule: WordRule, pipeline: Tokenizer, after_spelling: Tokenizer) -> None:
        """Encode by `pipeline`, or where the rule tells the spelling by `after_spelling`, its vocabulary alone."""
        self._rule, self._pipeline, self._after_spelling = rule, pipeline, after_spelling
        self._known: dict[str, tuple[int, ...]] = {}
        self._end = pipeline.encode("").ids

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text with end-of-text as the last."""
        words = list(map(self._rule.split, texts))
        ids = self._look_up(set(chain.from_iterable(words)))
        return [[*chain.from_iterable(map(ids.__getitem__, row)), *self._end] for row in words]

    def _look_up(self, words: Iterable[str]) -> dict[str, tuple[int, ...]]:
        known = self._known
        found = {word: ids for word in words if (ids := known.get(word)) is not None}
        new = [word for word in words if word not in found]
        spellings = {word: self._rule.spell(word) for word in new}
        plain = [word for word in new if spellings[word] is not None]
        others = [word for word in new if spellings[word] is None]
        for pipeline, keys, forms in (
            (self._after_spelling, plain, [spellings[word] for word in plain]),
            (self._pipeline, others, others),
        ):
            encodings = pipeline.encode_batch_fast(forms, add_special_tokens=False)
            found |= {word: tuple(encoding.ids) for word, encoding in zip(keys, encodings, strict=True)}
        if len(known) > _MOST_WORDS:
            known.clear()
        known.update((word, found[word]) for word in new if len(word) <= _LONGEST_WORD)
        return found
