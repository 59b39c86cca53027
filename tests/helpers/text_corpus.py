"""Texts for tokenizers, and the ids that SentencePiece's own package gives them."""

import html.entities
import random
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
WORDS = (
    "a photo of the cat Dog, sitting on a Red mat in New York; it's 3.5 km & 12% naïve ÉCOLE Привет 猫 <b>end</b> :-)"
)
SENTENCES = [" ".join(random.Random(seed).choices(WORDS.split(), k=seed % 25 + 1)) for seed in range(200)]
AWKWARD = [
    *("", "   ", "  two  spaces  ", "tab\tand\nnewline", "x" * 300, "word " * 200, "ﬁ ligature Ａ１ ½ Ⅳ", "é e\u0301"),
    *(
        "</s>",
        "a</s>b",
        "<pad>",
        "<unk> and <s>",
        "<eos>",
        "<bos>cat<eos>",
        "猫が座る",
        "emoji 😀👍🏽",
        "don't I'LL we'Re",
    ),
    *("“quotes” … —", "under_score @#$%^&*()", "a\u00a0b\u3000c", "zero\u200bwidth", "line\r\nend", "!!", "!", "a ! b"),
]

_SCRAPS = [
    *(
        "<|startoftext|>",
        "<|endoftext|>",
        "<|EndOfText|>",
        "<|ſtartoftext|>",
        "<eos>",
        "<bos>",
        "<pad>",
        "</s>",
        "<unk>",
    ),
    *("<0x41>", "<0xE7>", "<td>", "</h1>", "<start_of_turn>", "<2mass>", "[@BOS@]", "<extra_id_0>", "▁", "▁▁", "##"),
    *("don't", "I'LL", "we'Re", "it'ſ", "'S", "’s", "rock'n'roll", "ǅ", "ß", "ẞ", "İI", "ΑΣ", "ﬀ", "ﬁ", "Ⅷ", "½", "℡"),
    *("\r\n", "\n\n", "\t", "  ", "\x00", "\x1b[31m", "\x7f", "\x85", "\x9d", "\u00ad", "\u200b", "\u200d", "\u2028"),
    *("\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u0378", "\u202e", "\u2066", "\u3000", "\u00a0", "\u1680"),
    *(
        "&",
        "&;",
        "&amp",
        "&#",
        "&#x",
        "&#0;",
        "&#128;",
        "&#xD800;",
        "&#x110000;",
        "&#99999999999;",
        "&nosuch;",
        "&notit;",
    ),
    *(
        "ｶﾞ",
        "ﾊﾟ",
        "か\u3099",
        "각",
        "\u1100\u1161\u11a8",
        "क\u093c",
        "e\u0301",
        "e\u0327\u0301",
        "e\u0301\u0327",
        "Ａ\u0301",
    ),
    *("1️⃣", "👍🏽", "👩‍👩‍👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇳🇿", "❤️", "☃︎", "🫠", "(╯°□°)╯", "¯\\_(ツ)_/¯", "—", "…", "“", "”", "..."),
    *("C++", "3.14", "1,000", "50%", "#tag", "@user", "a_b", "x²", "https://example.org/?q=1&amp;r=%20", "```", "\\n"),
]
_NO_LETTERS = ("Cn", "Cs", "Co")  # unassigned, surrogates, private use
_CAPTION_NOUNS = "cat dog man woman train pizza Kitchen surfboard giraffe NEW-YORK bicycles T-shirt snowboarders café"
_CAPTION_LINKS = "a the two with on of beside, riding and near: under his; very red blurry. old in 3 40mm is's"


@cache
def corpus() -> list[str]:
    """Return some 120,000 distinct texts, always the same ones for one version of Unicode.

    They are captions, every assigned code point alone and inside a word, emoji, stacks of marks, entities, controls,
    text decoded with the wrong encoding, long text, and mixtures of all of these.
    """
    chance = random.Random(0)
    # Letters later than the tables of `tokenizers` (Unicode 14 in 0.23) are letters to one library and not to another.
    own = "".join(letter for letter in map(chr, range(0x110000)) if unicodedata.category(letter) not in _NO_LETTERS)
    assigned = [letter for part, _ in Split(Regex(r"\p{Cn}"), "removed").pre_tokenize_str(own) for letter in part]
    private = [chr(code) for start in (0xE000, 0xF0000, 0x100000) for code in range(start, start + 64)]
    marks = [letter for letter in assigned if unicodedata.category(letter).startswith("M")]
    emoji = [letter for letter in assigned if unicodedata.category(letter) == "So" and letter > "\u2190"]
    texts: list[str] = [*AWKWARD, *SENTENCES, *_SCRAPS]

    letters = [*assigned, *private]
    fours = [letters[at : at + 4] for at in range(0, len(letters), 4)]
    texts += [" ".join(four) for four in fours]
    texts += [" ".join(f"Ab{letter}c" for letter in four) for four in fours]
    # On its own a letter meets the rules for the start and the end of a text.
    texts += [letter for letter in assigned if not unicodedata.name(letter, "").startswith(("CJK", "HANGUL SYL"))]

    nouns, links = _CAPTION_NOUNS.split(), _CAPTION_LINKS.split()

    def caption() -> str:
        words = (chance.choice(links if place % 3 else nouns) for place in range(chance.randint(3, 16)))
        return " ".join(words)

    def family() -> str:
        people = [chance.choice(emoji) + chance.choice(["", "\ufe0f", "🏻", "🏿"]) for _ in range(chance.randint(1, 4))]
        return chance.choice(["", "\u200d"]).join(people)

    def stacked() -> str:
        return chance.choice(assigned) + "".join(chance.choices(marks, k=chance.randint(1, 4)))

    names = list(html.entities.html5)

    def entity() -> str:
        number = chance.choice([chance.randrange(0x180), ord(chance.choice(assigned))])
        plain = chance.choice([f"&{chance.choice(names)}", f"&#{number};", f"&#x{number:X};", f"&#{number} "])
        return plain.replace("&", chance.choice(["&", "&", "&amp;", "&amp;amp;", "&&", "& "]))

    def mojibake() -> str:
        text = chance.choice(["naïve café", "“Ünïcödé” – déjà vu…", "Привет, мир", "日本語", "üöä ß €5", "ñandú 😀"])
        encoding = chance.choice(["latin-1", "cp1252", "cp1251", "mac_roman", "cp437", "iso8859-2", "cp1250"])
        for _ in range(chance.randint(1, 2)):
            text = text.encode("utf-8").decode(encoding, chance.choice(["replace", "ignore"]))
        return text

    def random_letters() -> str:
        return "".join(chance.choices(assigned, k=chance.randint(2, 12)))

    def scrap() -> str:
        return chance.choice(_SCRAPS)

    makers = [caption, family, stacked, entity, mojibake, random_letters, scrap]

    def mixture() -> str:
        parts = [chance.choice(makers)() for _ in range(chance.randint(2, 5))]
        return chance.choice([" ", "", "\n"]).join(parts)

    def long() -> str:
        return chance.choice([" ", "", ", "]).join(mixture() for _ in range(chance.randint(20, 40)))

    counts = {caption: 15000, family: 3000, stacked: 8000, entity: 6000, mojibake: 1500, random_letters: 4000}
    counts |= {mixture: 15000, long: 300}
    for make, count in counts.items():
        texts += [make() for _ in range(count)]
    return list(dict.fromkeys(text for text in texts if not any("\ud800" <= letter <= "\udfff" for letter in text)))


SENTENCEPIECES = {
    "unigram": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 150},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 450},
    "unigram as it is": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "vocab_size": 150,
    },
    "bpe": {
        "model_type": "bpe",
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "user_defined_symbols": ["<td>", "<BIG>", "▁▁", "\n\n"],
        "vocab_size": 450,
    },
    "bpe with a prefix": {"model_type": "bpe", "vocab_size": 150},
}


def trained_sentencepiece(folder: Path, kind: str) -> Path:
    """Train the model of `SENTENCEPIECES` with this name, unless the folder has it."""
    path = folder / f"{kind}.model"
    if not path.is_file():
        train_sentencepiece(path, **SENTENCEPIECES[kind])
    return path


def train_sentencepiece(path: Path, **settings: Any) -> None:
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=model,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            **settings,
        )


def official_siglip(
    path: Path, texts: Sequence[str], pad: int, length: int = 64, cleanup: str = "lower"
) -> list[list[int]]:
    """Return SentencePiece's ids as big_vision pads them: cleaned text, end-of-text kept in cut texts, padding."""
    processor = sentencepiece.SentencePieceProcessor(str(path))
    rows = processor.encode([CLEANUPS[cleanup](text) for text in texts])
    rows = [[*row[: length - 1], processor.eos_id()] for row in rows]
    return [row + [pad] * (length - len(row)) for row in rows]


def _canonical(text: str) -> str:
    """Clean a text as big_vision's `evaluators/proj/image_text/prompt_engineering.py` cleans class names."""
    bare = "".join(letter for letter in text.replace("_", " ") if letter not in string.punctuation)
    return re.sub(r"\s+", " ", bare.lower()).strip()


CLEANUPS: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower": lambda text: text.translate(ASCII_LOWER),
    "canonicalize": _canonical,
}
