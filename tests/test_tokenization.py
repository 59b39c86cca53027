"""Text to ids: equal to OpenAI's tokenizer and to SentencePiece, and safe from wrong calls."""

import gzip
import html
import json
import pickle
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import ftfy
import numpy as np
import pandas
import pyarrow
import pytest
import sentencepiece
import torch
from helpers.released_files import released_file, released_module
from helpers.text_corpus import (
    AWKWARD,
    CLEANUPS,
    SENTENCEPIECES,
    SENTENCES,
    corpus,
    official_siglip,
    train_sentencepiece,
    trained_sentencepiece,
)
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from twinlens.processing import CLIPTokenizer, SiglipTokenizer
from twinlens.processing.sentencepiece_model import read_sentencepiece


def official_clip(texts: Sequence[str]) -> list[list[int]]:
    """OpenAI's own tokenizer, with `clip.tokenize(texts, truncate=True)` in lists, for `clip.py` needs torchvision."""
    vocabulary = released_file("openai-clip==1.0.1", "clip/bpe_simple_vocab_16e6.txt.gz")
    module = released_module("openai-clip==1.0.1", "clip/simple_tokenizer.py")
    tokenizer = module.SimpleTokenizer(str(vocabulary))
    rows = [[49406, *tokenizer.encode(text), 49407] for text in texts]
    rows = [row if len(row) <= 77 else [*row[:76], 49407] for row in rows]
    return [row + [0] * (77 - len(row)) for row in rows]


CLIP_AWKWARD = [
    *("&amp;amp; &lt;b&gt; &eacute;", "<b>e&#769;", "ÃƒÂ©tÃ© mojibake", "İstanbul ΣΑΣ ß", "Σ", "ΑΣ'Α ΑΣ'"),
    *("<|endoftext|>", "a <|startoftext|>b<|EndOfText|>", "!<|endoftext|>", "a<|endoftext|><|startoftext|>"),
    *("!<|endoftext|><|startoftext|><|endoftext|>", "1<|startoftext|>!<|startoftext|>", "'s<|endoftext|>"),
]
RELEASED = {
    "T5's 32000": ("diffsynth==1.1.9", "flux/tokenizer_2/spiece.model"),
    "Gemma's 256000": ("maxtext==0.1.0", "assets/tokenizer.gemma"),
}
SLOW_TO_LOAD = ["T5's 32000", pytest.param("Gemma's 256000", marks=pytest.mark.thorough)]


def different(texts: Sequence[str], ours: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    return [text for text, mine, other in zip(texts, ours, theirs, strict=True) if mine != other]


def is_tied(path: Path, tokenizer: SiglipTokenizer, cleanup: str, text: str) -> bool:
    """Tell whether both ways to cut the text consist of the same pieces, in another order."""
    theirs = sentencepiece.SentencePieceProcessor(str(path)).encode(CLEANUPS[cleanup](text))
    return sorted(tokenizer(text, add_special_tokens=False)["input_ids"]) == sorted(theirs)


@pytest.fixture(scope="module")
def texts(thorough: bool) -> list[str]:
    """Every kind of text that the corpus has."""
    assert len(corpus()) > 100_000
    return corpus() if thorough else corpus()[::46]


@pytest.fixture(scope="module")
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_official()


class TestCLIPText:
    def test_ids_are_openais(self, clip_tokenizer: CLIPTokenizer, texts: list[str]) -> None:
        texts = [*texts, *CLIP_AWKWARD]
        ids = clip_tokenizer(texts, padding="max_length", return_tensors="np")["input_ids"]
        assert different(texts, ids.tolist(), official_clip(texts)) == []

    def test_known_ids(self, clip_tokenizer: CLIPTokenizer) -> None:
        # openai-clip 1.0.1, clip.tokenize(["a photo of a cat!", "Hello"])
        ids = clip_tokenizer(["a photo of a cat!", "Hello"], padding=True)["input_ids"]
        assert ids == [[49406, 320, 1125, 539, 320, 2368, 256, 49407], [49406, 3306, 49407, 0, 0, 0, 0, 0]]

    @pytest.mark.parametrize("settings", [{}, {"padding": True}, {"max_length": 500, "padding": "max_length"}])
    def test_long_text_is_cut_before_its_end_token(
        self, clip_tokenizer: CLIPTokenizer, settings: dict[str, Any]
    ) -> None:
        ids = clip_tokenizer("word " * 200, **settings)["input_ids"]
        assert len(ids) == 77
        assert (ids[0], ids[-1]) == (49406, 49407)

    def test_saved_files_give_plain_transformers_the_same_ids(
        self, clip_tokenizer: CLIPTokenizer, texts: list[str], tmp_path: Path
    ) -> None:
        # A tokenizer.json can hold neither ftfy's repairs, nor entities, nor what is special only between words.
        sample = [
            text
            for text in texts
            if clip_tokenizer.clean(text) == re.sub(r"[^\S\x1c-\x1f]+", " ", text).strip(" ").lower()
            and "oftext|>" not in text.lower()
        ]
        assert len(sample) > len(texts) // 2
        clip_tokenizer.save_pretrained(tmp_path)
        plain, again = AutoTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
        assert plain.is_fast
        ids = clip_tokenizer(sample, padding="max_length")["input_ids"]
        assert again(sample, padding="max_length")["input_ids"] == ids
        assert different(sample, plain(sample, padding="max_length", truncation=True)["input_ids"], ids) == []
        assert plain("cafe\u0301")["input_ids"] == clip_tokenizer("café")["input_ids"]

    def test_cleaning_leaves_no_repair_out(self, clip_tokenizer: CLIPTokenizer, thorough: bool) -> None:
        """ASCII is not shown to ftfy when it has nothing to do there."""
        texts = [first + second for first in map(chr, range(128)) for second in map(chr, range(128))]
        texts += [f"a{text}b" for text in texts]
        texts = texts if thorough else texts[::5]
        for text in texts:
            repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
            assert clip_tokenizer.clean(text) == re.sub(r"\s+", " ", repaired.strip()).strip().lower()

    def test_special_tokens_in_text_are_read_as_openai_reads_them(self, clip_tokenizer: CLIPTokenizer) -> None:
        text = "a <|EndOfText|> b"
        assert clip_tokenizer(text)["input_ids"] == [49406, 320, 49407, 321, 49407]
        as_text = clip_tokenizer(text, split_special_tokens=True)["input_ids"]
        assert 49407 not in as_text[:-1]
        assert clip_tokenizer.decode(as_text, skip_special_tokens=True) == "a <|endoftext|> b"

    @pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json and merges.txt"])
    def test_hub_folders(self, clip_tokenizer: CLIPTokenizer, layout: str, tmp_path: Path) -> None:
        """The files of `openai/clip-vit-base-patch32`: its pipeline, and its padding with end-of-text."""
        model = json.loads(clip_tokenizer.backend_tokenizer.to_str())["model"]
        if layout == "tokenizer.json":
            clip_tokenizer.backend_tokenizer.save(str(tmp_path / layout))
        else:
            (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
            merges = "\n".join(" ".join(merge) for merge in model["merges"])
            (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77}
        token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        config |= {name: {**token, "content": "<|endoftext|>"} for name in ("eos_token", "unk_token")}
        config |= {"bos_token": {**token, "content": "<|startoftext|>"}, "do_lower_case": True, "errors": "replace"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        loaded = CLIPTokenizer.from_pretrained(tmp_path)
        assert loaded.pad_token_id == 49407
        texts = [*SENTENCES, *AWKWARD, *CLIP_AWKWARD]
        assert loaded(texts) == clip_tokenizer(texts)

    def test_decoding_and_pieces(self, clip_tokenizer: CLIPTokenizer) -> None:
        assert clip_tokenizer.tokenize("Photo, é!") == ["photo</w>", ",</w>", "Ã©</w>", "!</w>"]
        ids = clip_tokenizer("A photo, of é 😀!")["input_ids"]
        assert clip_tokenizer.decode(ids, skip_special_tokens=True) == "a photo , of é 😀!"

    def test_file_that_says_how_few_merges_it_has(self, tmp_path: Path) -> None:
        path = tmp_path / "few.gz"
        path.write_bytes(gzip.compress(b"#version: 0.2 #merges: 2\nc a\nca t</w>\nd o\n"))
        tokenizer = CLIPTokenizer.from_file(path)
        assert len(tokenizer) == 256 + 256 + 2 + 2
        assert tokenizer.tokenize("cat do") == ["cat</w>", "d", "o</w>"]
        assert tokenizer("cat")["input_ids"] == [514, 513, 515]

    @pytest.mark.parametrize("first", [b"#version: 0.2", b"#version: 0.2 #merges: 3"])
    def test_shorter_file_is_refused(self, first: bytes, tmp_path: Path) -> None:
        path = tmp_path / "short.gz"
        path.write_bytes(gzip.compress(first + b"\na b\nc d\n"))
        with pytest.raises(ValueError, match=r"2 merges, not (3|48894)"):
            CLIPTokenizer.from_file(path)

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "broken.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
        with pytest.raises(ValueError, match="is not OpenAI's"):
            CLIPTokenizer.from_file(tmp_path / "broken.gz")
        with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
            CLIPTokenizer.from_file(__file__)
        with pytest.raises(ValueError, match="found neither"):
            CLIPTokenizer.from_pretrained(tmp_path)

    def test_single_letters_are_repaired_by_plain_transformers_too(
        self, clip_tokenizer: CLIPTokenizer, tmp_path: Path
    ) -> None:
        """All letters that ftfy changes one by one, quotes, widths, ligatures and controls, also below marks."""
        letters = [chr(code) for code in [*range(1, 0x300), *range(0x2000, 0x2100), *range(0xF900, 0x10000)]]
        repaired = [letter for letter in letters if ftfy.fix_text(f"a{letter}b") not in (f"a{letter}b", "a b", "a\nb")]
        assert len(repaired) > 250
        clip_tokenizer.save_pretrained(tmp_path)
        plain = AutoTokenizer.from_pretrained(tmp_path)
        texts = [f"Ab{letter}c {letter}\u0301" for letter in repaired] + ["“don’t” ﬁne", "ｶﾞｷﾞ Ｆｕｌｌ"]
        expected = [row[: row.index(49407) + 1] for row in official_clip(texts)]
        assert different(texts, plain(texts)["input_ids"], expected) == []

    @pytest.mark.parametrize("settings", [{}, {"padding_side": "left"}, {"add_special_tokens": False}], ids=str)
    @pytest.mark.parametrize("text", ["a red star", "wow ! so !!! !?", "!", "! a !", "", "a <|endoftext|> !?"])
    def test_decoding_drops_the_padding_and_keeps_what_was_said(
        self, clip_tokenizer: CLIPTokenizer, text: str, settings: dict[str, Any]
    ) -> None:
        ids = clip_tokenizer([text], padding="max_length", max_length=20, return_tensors="pt", **settings)["input_ids"]
        said = re.sub(r" ?<\|endoftext\|>", "", text)
        if not text and "add_special_tokens" in settings:
            said = "!" * 20  # which might be a text
        assert clip_tokenizer.batch_decode(ids, skip_special_tokens=True) == [said]
        assert clip_tokenizer.decode(ids[0].numpy(), skip_special_tokens=True) == said
        pieces = clip_tokenizer.convert_ids_to_tokens(ids[0].tolist(), skip_special_tokens=True)
        assert clip_tokenizer.convert_tokens_to_string(pieces) == said


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return partial(trained_sentencepiece, tmp_path_factory.mktemp("sentencepiece"))


class TestSiglipText:
    @pytest.mark.parametrize("kind", SENTENCEPIECES)
    def test_ids_are_sentencepieces(self, train: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
        texts = [*SENTENCES, *AWKWARD, "a<td>b", "<BIG><big>", "para\n\ngraph"]
        tokenizer = SiglipTokenizer.from_sentencepiece(train(kind))
        expected = official_siglip(train(kind), texts, tokenizer.pad_token_id)
        assert tokenizer(texts)["input_ids"] == expected
        tokenizer.save_pretrained(tmp_path)
        assert SiglipTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == expected
        plain = AutoTokenizer.from_pretrained(tmp_path)
        assert plain.is_fast
        encoded = plain(texts, padding="max_length", truncation=True, max_length=64)
        assert encoded["input_ids"] == expected
        assert "attention_mask" not in encoded

    @pytest.mark.parametrize("cleanup", CLEANUPS)
    @pytest.mark.parametrize("released", SLOW_TO_LOAD)
    def test_ids_with_released_vocabularies(
        self, released: str, cleanup: str, texts: list[str], tmp_path: Path
    ) -> None:
        path = released_file(*RELEASED[released])
        if cleanup != "lower":  # the default sees every text, the others a sample
            texts = texts[::8]
        tokenizer = SiglipTokenizer.from_sentencepiece(path, text_cleanup=cleanup)
        ids = tokenizer(texts, return_tensors="np")["input_ids"].tolist()
        expected = official_siglip(path, texts, tokenizer.pad_token_id, cleanup=cleanup)
        wrong = different(texts, ids, expected)
        # Where several ways to cut a text are equally probable, the rounding of their sums decides, and `tokenizers`
        # sums in double precision.
        rounded = [text for text in wrong if released == "T5's 32000" and is_tied(path, tokenizer, cleanup, text)]
        assert wrong == rounded
        assert len(rounded) < 10
        tokenizer.save_pretrained(tmp_path)
        plain = AutoTokenizer.from_pretrained(tmp_path)
        encoded = plain(texts[::8], padding="max_length", truncation=True, max_length=64)["input_ids"]
        assert different(texts[::8], encoded, ids[::8]) == []

    @pytest.mark.parametrize("kind", ["trained", *SLOW_TO_LOAD])
    def test_spelling_is_sentencepieces(self, train: Callable[[str], Path], kind: str, texts: list[str]) -> None:
        """Vocabularies hide most of it, for what they do not know is all the same to them."""
        path = train("unigram with bytes") if kind == "trained" else released_file(*RELEASED[kind])
        tokenizer = SiglipTokenizer.from_sentencepiece(path, text_cleanup="none").backend_tokenizer
        expected = sentencepiece.SentencePieceProcessor(str(path)).normalize(texts)
        spellings = [tokenizer.normalizer.normalize_str(text) for text in texts]
        assert different(texts, spellings, expected) == []

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"padding": True},
            {"padding": False},
            {"padding": "max_length", "max_length": 64, "truncation": True},
            {"padding": "max_length", "max_length": 5},
            {"padding": True, "padding_side": "left", "pad_to_multiple_of": 7},
        ],
        ids=str,
    )
    def test_no_call_can_change_length_or_padding(self, train: Callable[[str], Path], settings: dict[str, Any]) -> None:
        tokenizer = SiglipTokenizer.from_sentencepiece(train("unigram"), model_max_length=16)
        texts = ["a photo", "the cat " * 30]
        expected = official_siglip(train("unigram"), texts, pad=1, length=16)
        encoded = tokenizer(texts, return_tensors="pt", **settings)
        assert encoded.keys() == {"input_ids"}
        assert encoded["input_ids"].tolist() == expected
        assert tokenizer.encode(texts[0]) == expected[0]

    def test_pieces_without_the_end_are_not_padded(self, train: Callable[[str], Path]) -> None:
        tokenizer = SiglipTokenizer.from_sentencepiece(train("unigram"))
        ids = tokenizer("The cat", add_special_tokens=False)["input_ids"]
        assert ids == sentencepiece.SentencePieceProcessor(str(train("unigram"))).encode("the cat")
        assert tokenizer.decode(ids) == "the cat"

    def test_cleaning_is_a_choice(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        text = "It's a Big_cat, ÉCOLE!"
        spellings = {"none": text, "lower": "it's a big_cat, École!", "canonicalize": "its a big cat école"}
        plain = SiglipTokenizer.from_sentencepiece(train("unigram with bytes"), text_cleanup="none")
        for cleanup, spelling in spellings.items():
            expected = plain(spelling)["input_ids"]
            tokenizer = SiglipTokenizer.from_sentencepiece(train("unigram with bytes"), text_cleanup=cleanup)
            assert tokenizer(text)["input_ids"] == expected
            tokenizer.save_pretrained(tmp_path)
            assert SiglipTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == expected
            assert SiglipTokenizer.from_pretrained(tmp_path, text_cleanup="none")(spelling)["input_ids"] == expected
        with pytest.raises(ValueError, match=r"must be one of none, lower, canonicalize, .* got 'clean'"):
            SiglipTokenizer.from_sentencepiece(train("unigram"), text_cleanup="clean")

    def test_hub_folder_of_siglip(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        """`spiece.model`, and a configuration of transformers' sentencepiece-based class."""
        (tmp_path / "spiece.model").write_bytes(train("unigram").read_bytes())
        flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False, "special": True}
        config = {
            "added_tokens_decoder": {"1": {**flags, "content": "</s>"}, "2": {**flags, "content": "<unk>"}},
            "additional_special_tokens": [],
            "do_lower_case": True,
            "eos_token": "</s>",
            "model_max_length": 64,
            "pad_token": "</s>",
            "sp_model_kwargs": {},
            "unk_token": "<unk>",
            "tokenizer_class": "SiglipTokenizer",
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        texts = [*SENTENCES, *AWKWARD]
        ids = SiglipTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
        assert ids == official_siglip(train("unigram"), texts, pad=1)

    def test_hub_folder_of_siglip2(
        self, train: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A plain Gemma `tokenizer.json`: cased, with a begin token, padding on the left, no length."""
        tokenizer = SiglipTokenizer.from_sentencepiece(train("bpe"))
        gemma = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        gemma.normalizer = normalizers.Replace(" ", "▁")
        gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        gemma.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 2)])
        gemma.save(str(tmp_path / "tokenizer.json"))
        config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        config |= {"tokenizer_class": "GemmaTokenizer", "padding_side": "left", "model_max_length": int(1e30)}
        config |= {"add_bos_token": True, "add_eos_token": False}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        texts = [*SENTENCES, *AWKWARD]
        ids = SiglipTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
        assert ids == official_siglip(train("bpe"), texts, pad=0)
        (message,) = [message for message in caplog.messages if "corrected for SigLIP" in message]
        assert message == (
            f"The tokenizer of {tmp_path} was corrected for SigLIP: it now lower-cases ASCII, "
            "ends texts with end-of-text, adds no begin token, pads on the right."
        )

    def test_folders_that_fit_are_loaded_in_silence(
        self, train: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for kind in SENTENCEPIECES:
            tokenizer = SiglipTokenizer.from_sentencepiece(train(kind), text_cleanup="canonicalize")
            tokenizer.save_pretrained(tmp_path)
            SiglipTokenizer.from_pretrained(tmp_path)
            SiglipTokenizer.from_sentencepiece(train(kind)).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
            SiglipTokenizer.from_file(tmp_path / "tokenizer.json")
        assert caplog.messages == []

    def test_a_piece_for_the_last_letter_of_unicode(
        self, train: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Gemma has one; what has none is written in bytes all the same."""
        content = json.loads(SiglipTokenizer.from_sentencepiece(train("bpe")).backend_tokenizer.to_str())
        content["model"]["vocab"]["\U0010ffff"] = len(content["model"]["vocab"])
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        SiglipTokenizer.from_file(tmp_path / "tokenizer.json")
        assert caplog.messages == []

    def test_special_looking_text_stays_text_unless_asked(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        tokenizer = SiglipTokenizer.from_sentencepiece(train("bpe"))
        tokenizer.save_pretrained(tmp_path)
        for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            as_text = each("the</s>cat", add_special_tokens=False)["input_ids"]
            assert each.eos_token_id not in as_text
            asked = each("the</s>cat", add_special_tokens=False, split_special_tokens=False)["input_ids"]
            assert asked.count(each.eos_token_id) == 1
            assert each("the</s>cat", add_special_tokens=False)["input_ids"] == as_text

    def test_saving_changes_no_vocabulary(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        """The `tokenizers` library reads a third of SentencePiece's scores one unit in the last place off."""
        first = SiglipTokenizer.from_sentencepiece(train("unigram"))
        first.save_pretrained(tmp_path / "1")
        SiglipTokenizer.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2")
        written = (tmp_path / "1" / "tokenizer.json").read_bytes()
        assert (tmp_path / "2" / "tokenizer.json").read_bytes() == written
        assert Tokenizer.from_file(str(tmp_path / "1" / "tokenizer.json")).to_str() == first.backend_tokenizer.to_str()

    @pytest.mark.parametrize("kind", ["unigram with bytes", "bpe"])
    def test_a_file_that_contradicts_its_vocabulary_is_corrected(
        self, train: Callable[[str], Path], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As transformers 5.23 saves mT5's vocabulary, whose bytes it forgets, and Gemma's with a special <mask>."""
        official = SiglipTokenizer.from_sentencepiece(train(kind))
        content = json.loads(official.backend_tokenizer.to_str())
        content["model"]["byte_fallback"] = False
        for token in content["added_tokens"]:
            token["special"] |= token["content"] == "<td>"
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        tokenizer = SiglipTokenizer.from_file(tmp_path / "tokenizer.json")
        texts = [*AWKWARD, "a<td>b <td>"]
        assert tokenizer(texts)["input_ids"] == official_siglip(train(kind), texts, pad=tokenizer.pad_token_id)
        (message,) = caplog.messages[:1]
        finds = ", finds <td> in text" if kind == "bpe" else ""
        assert message.endswith(f"was corrected for SigLIP: it now writes unknown characters in bytes{finds}.")
        caplog.clear()
        tokenizer.save_pretrained(tmp_path / "again")
        SiglipTokenizer.from_pretrained(tmp_path / "again")
        assert caplog.messages == []

    @pytest.mark.parametrize("kind", SENTENCEPIECES)
    @pytest.mark.parametrize("cleanup", CLEANUPS)
    def test_words_are_read_as_in_their_text(
        self, train: Callable[[str], Path], kind: str, cleanup: str, texts: list[str]
    ) -> None:
        tokenizer = SiglipTokenizer.from_sentencepiece(train(kind), text_cleanup=cleanup)
        sample = [
            *texts[::40],
            "a▁ b",
            "▁",
            "a \u0308b \u00a8c",
            "\n \n\n",
            "x\u00a0 y",
            " <td>▁▁ <BIG>",
            "a\ufdd0b",
            *AWKWARD,
        ]
        rows = tokenizer(sample, return_tensors="np")["input_ids"].tolist()
        whole = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(sample)]
        whole = [[*row[:63], row[-1]] if len(row) > 64 else row for row in whole]
        padded = [row + [tokenizer.pad_token_id] * (64 - len(row)) for row in whole]
        assert different(sample, rows, padded) == []
        assert tokenizer(sample, return_tensors="np")["input_ids"].tolist() == rows  # from what is remembered

    def test_added_tokens_are_found_in_words(self, train: Callable[[str], Path]) -> None:
        tokenizer = SiglipTokenizer.from_sentencepiece(train("unigram"))
        tokenizer(["the cat"], return_tensors="np")
        tokenizer.add_tokens(["cat sat"])
        assert len(tokenizer) - 1 in tokenizer(["the cat sat"], return_tensors="np")["input_ids"]

    def test_other_files_are_refused(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        whole = train("unigram").read_bytes()
        for name, content in {"cut": whole[:-7], "text": b"no model", "empty": b"", "zeros": bytes(50)}.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}.*(not a SentencePiece model|expected a unigram)"):
                SiglipTokenizer.from_file(tmp_path / name)
        charsmap = read_sentencepiece(train("unigram")).charsmap
        (tmp_path / "table").write_bytes(whole.replace(charsmap, bytes(len(charsmap))))
        with pytest.raises(ValueError, match="table of spellings is damaged"):
            SiglipTokenizer.from_file(tmp_path / "table")
        train_sentencepiece(tmp_path / "words", model_type="word", vocab_size=20)
        with pytest.raises(ValueError, match=r"unigram \(1\) or BPE \(2\) .* of kind 3"):
            SiglipTokenizer.from_file(tmp_path / "words")
        CLIPTokenizer.from_official().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="end-of-text piece"):
            SiglipTokenizer.from_file(tmp_path / "tokenizer.json")
        with pytest.raises(ValueError, match="found neither"):
            SiglipTokenizer.from_pretrained(train("unigram").parent)

    @pytest.mark.parametrize("kind", SENTENCEPIECES)
    def test_model_files_are_read_as_sentencepiece_reads_them(self, train: Callable[[str], Path], kind: str) -> None:
        ours, theirs = read_sentencepiece(train(kind)), sentencepiece.SentencePieceProcessor(str(train(kind)))
        assert [piece[:2] for piece in ours.pieces] == [
            (theirs.id_to_piece(index), theirs.get_score(index)) for index in range(theirs.get_piece_size())
        ]
        assert (ours.unk_id, ours.eos_id, ours.pad_id) == (theirs.unk_id(), theirs.eos_id(), theirs.pad_id())

    def test_sentinels_are_left_out_whatever_they_are_said_to_be(
        self, train: Callable[[str], Path], tmp_path: Path
    ) -> None:
        """The models have no embeddings for T5's, which are at the end of mT5's file."""
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(train("unigram").read_bytes())
        for piece in ("▁<extra_id_1>", "▁<extra_id_0>"):
            model.pieces.add(piece=piece, score=0.0)
        (tmp_path / "mt5.model").write_bytes(model.SerializeToString())
        with_them, without = map(SiglipTokenizer.from_sentencepiece, (tmp_path / "mt5.model", train("unigram")))
        assert len(with_them) == len(without) == len(model.pieces) - 2
        assert with_them("a red star").input_ids == without("a red star").input_ids


@pytest.fixture(scope="module", params=["CLIP", "SigLIP", "SigLIP 2"])
def new_tokenizer(request: pytest.FixtureRequest, train: Callable[[str], Path]) -> Callable[[], Any]:
    if request.param == "CLIP":
        return CLIPTokenizer.from_official
    return lambda: SiglipTokenizer.from_sentencepiece(train("unigram" if request.param == "SigLIP" else "bpe"))


@pytest.fixture(scope="module")
def tokenizer(new_tokenizer: Callable[[], Any]) -> Any:
    return new_tokenizer()


class TestCalls:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (["a", None, "b"], TypeError, r"Expected text, got NoneType at \[1\] of the list: pass str"),
            (["a", "b", 3], TypeError, r"got int at \[2\]"),
            ([["a", "b"], ["c", 4.5]], TypeError, r"got float at \[1\]\[1\]"),
            (b"a cat", TypeError, r"got bytes: decode it first, text\.decode\('utf-8'\)"),
            (["a", b"cat"], TypeError, r"got bytes at \[1\] of the list"),
            (np.array(["a", 2], dtype=object), TypeError, r"got int at \[1\] of the list"),
            ({"a", "b"}, TypeError, "got set: pass str or a list of str"),
            ({"a": "b"}, TypeError, "got dict: pass str or a list of str"),
            ("a \ud83d cat", ValueError, r"half of a surrogate pair, '\\ud83d' \(2\): it was decoded wrongly"),
            (["é", "a\udc80"], ValueError, r"'\\udc80' \(1\) at \[1\] of the list"),
            (None, ValueError, "specify either `text`"),
        ],
    )
    @pytest.mark.parametrize("settings", [{}, {"return_tensors": "pt", "padding": True}], ids=["lists", "tensors"])
    def test_what_is_no_text_is_refused(
        self, tokenizer: Any, given: Any, error: type[Exception], message: str, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(error, match=message):
            tokenizer(given, **settings)

    def test_every_kind_of_column(self, tokenizer: Any) -> None:
        texts = ["a cat", "Two dogs"]
        expected = tokenizer(texts, padding=True)["input_ids"]
        columns = [tuple(texts), np.array(texts), np.array(texts, dtype=object), iter(texts), map(str, texts)]
        columns += [dict.fromkeys(texts).keys(), {1: texts[0], 2: texts[1]}.values(), (text for text in texts)]
        columns += [datasets.Dataset.from_dict({"text": texts})["text"], pandas.Series(texts), pyarrow.array(texts)]
        for column in columns:
            assert tokenizer(column, padding=True)["input_ids"] == expected
        assert tokenizer(np.array("a cat"))["input_ids"] == tokenizer("a cat")["input_ids"]

    def test_no_texts(self, tokenizer: Any) -> None:
        """A column without rows is a batch of none, as openai-clip's and open_clip's `tokenize` return it."""
        columns: list[Any] = [[], (), np.array([], dtype=str), iter([]), pandas.Series([], dtype=str)]
        for column in columns:
            ids = tokenizer(column, padding="max_length", return_tensors="pt")["input_ids"]
            assert (ids.shape, ids.dtype) == ((0, tokenizer.model_max_length), torch.int64)
        assert tokenizer([])["input_ids"] == tokenizer([], return_offsets_mapping=True)["input_ids"] == []
        with pytest.raises(ValueError, match="does not match batch length"):
            tokenizer([], ["a"])

    @pytest.mark.parametrize("kind", [None, "np"])
    def test_pairs(self, tokenizer: Any, kind: str | None) -> None:
        texts, others = ["a cat", "two dogs"], ["on", "a mat"]
        expected = tokenizer(texts, others, padding=True, return_tensors=kind)["input_ids"]
        pairs = tokenizer(list(zip(texts, others, strict=True)), padding=True, return_tensors=kind)["input_ids"]
        assert np.array_equal(pairs, expected)

    def test_threads_do_not_disturb_each_other(self, new_tokenizer: Callable[[], Any]) -> None:
        """Truncation and padding are settings of the one Rust tokenizer in transformers."""
        tokenizer = new_tokenizer()
        before = tokenizer.backend_tokenizer.to_str()
        long = "the cat " * 60
        calls: list[tuple[Any, dict[str, Any]]] = [
            (["a cat", "two dogs on a mat"], {"padding": True, "return_tensors": "np"}),
            (["a cat", long], {"padding": True}),
            (long, {}),
            (long, {"max_length": 8, "padding": "max_length"}),
            (["a cat", long], {"max_length": 5, "return_offsets_mapping": True}),
            ([long], {"max_length": 9, "stride": 2, "return_overflowing_tokens": True, "add_special_tokens": False}),
            ("a cat", {"add_special_tokens": False, "split_special_tokens": False}),
            (["cat"], {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"}),
        ]

        def answer(number: int) -> dict[str, Any]:
            text, settings = calls[number % len(calls)]
            return {name: np.asarray(value, object).tolist() for name, value in tokenizer(text, **settings).items()}

        alone = [answer(number) for number in range(len(calls))]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(answer, range(200)))
        assert [number for number in range(200) if together[number] != alone[number % len(calls)]] == []
        assert tokenizer.backend_tokenizer.to_str() == before

    def test_use_leaves_no_trace_in_pickles(self, new_tokenizer: Callable[[], Any]) -> None:
        tokenizer = new_tokenizer()
        before, fingerprint = pickle.dumps(tokenizer), datasets.fingerprint.Hasher.hash(tokenizer)
        tokenizer(["the cat " * 100, "a"], padding=True, truncation=True, max_length=16, return_tensors="pt")
        tokenizer("the cat " * 100, max_length=16)
        assert pickle.dumps(tokenizer) == before
        assert datasets.fingerprint.Hasher.hash(tokenizer) == fingerprint
        assert pickle.loads(before)(["two cats"], padding=True) == tokenizer(["two cats"], padding=True)

    @pytest.mark.parametrize("length", ["longest", "max_length", "short"])
    def test_arrays_are_the_lists(self, tokenizer: Any, length: str) -> None:
        settings: dict[str, Any] = {"padding": "longest" if length == "longest" else "max_length"}
        if length == "short":
            settings["max_length"] = 9
        texts = [*SENTENCES, *AWKWARD, "</s> <|endoftext|>"]
        lists = tokenizer(texts, **settings)
        for kind, array in (("pt", torch.Tensor), ("np", np.ndarray)):
            arrays = tokenizer(tuple(texts), return_tensors=kind, **settings)
            assert arrays.keys() == lists.keys()
            for name, values in arrays.items():
                assert isinstance(values, array)
                assert values.dtype in (torch.int64, np.int64)
                assert values.tolist() == lists[name]
        # Other wishes are granted too, by a slower way.
        wished = tokenizer(texts, return_tensors="pt", return_attention_mask=True, return_length=True, **settings)
        assert wished["input_ids"].tolist() == lists["input_ids"]
        assert wished["attention_mask"].shape == wished["input_ids"].shape
        left = tokenizer(texts[:2], return_tensors="pt", padding=True, padding_side="left")["input_ids"]
        assert (left[0, 0] == tokenizer.pad_token_id) == (tokenizer.model_input_names != ["input_ids"])

    def test_every_common_call(self, tokenizer: Any) -> None:
        text = "two cats"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.batch_decode(tokenizer([text, text])["input_ids"], skip_special_tokens=True) == [text, text]
        aligned = tokenizer(text, return_offsets_mapping=True)
        assert max(end for _, end in aligned["offset_mapping"]) == len(text)
        assert tokenizer(text).char_to_token(5) is not None
        assert tokenizer(["two", "cats"], is_split_into_words=True).word_ids()[: len(ids)].count(None) <= 1
        pair = tokenizer(["two"], ["cats"], add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(pair[0]).replace(" ", "") == "twocats"
        assert tokenizer(text, return_tensors="pt")["input_ids"].shape == (1, len(tokenizer(text)["input_ids"]))

    @pytest.mark.parametrize("settings", [{}, {"return_tensors": "pt", "padding": True}], ids=["lists", "tensors"])
    def test_a_cut_is_told_once(
        self, new_tokenizer: Callable[[], Any], settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        tokenizer = new_tokenizer()
        limit = tokenizer.model_max_length
        long = "the cat " * 100
        tokenizer(["short", "words"], **settings)
        assert caplog.messages == []
        tokenizer(["short", long], **settings)
        tokenizer([long], **settings)
        pieces = tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(pieces) + tokenizer.num_special_tokens_to_add()
        assert caplog.messages == [
            f"A text has {whole} tokens, and {limit} are read: {whole - limit} too many. "
            "There is one such warning only."
        ]

    @pytest.mark.parametrize("text", ["a", "cat ", "Ã©", "&", "amp;", "a\n", "猫", "e\u0301", "Σ'", "!<|endoftext|>"])
    def test_long_text_takes_no_time(self, tokenizer: Any, text: str, thorough: bool) -> None:
        size = 200_000 if thorough else 50_000
        long = f"&{text * (size // len(text))}"
        start = time.perf_counter()
        tokenizer([long], return_tensors="np", padding=True)
        # Below 1 s for 200,000 characters on one core, where what is quadratic takes many minutes.
        assert time.perf_counter() - start < size / 10_000
