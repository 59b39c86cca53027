"""Images and text: equal to transformers, OpenAI's tokenizer and SentencePiece, and safe from wrong calls."""

import gzip
import json
import random
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import skimage.data
import torch
from PIL import Image
from released_files import released_file, released_module
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from twinlens.configuration import CLIPConfig, SiglipConfig
from twinlens.processing import (
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizer,
    DualEncoderProcessor,
    SiglipImageProcessor,
    SiglipProcessor,
    SiglipTokenizer,
    build_processor,
)
from twinlens.processing.sentencepiece_model import read_sentencepiece

PHOTOGRAPHS = {name: getattr(skimage.data, name) for name in ("astronaut", "chelsea", "coffee", "rocket", "camera")}
IMAGE_PROCESSORS = {
    "CLIP": (CLIPImageProcessor, CLIPImageProcessorPil),
    "SigLIP": (SiglipImageProcessor, SiglipImageProcessorPil),
}
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


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request: pytest.FixtureRequest) -> Image.Image:
    return Image.fromarray(PHOTOGRAPHS[request.param]())


@pytest.fixture(params=IMAGE_PROCESSORS)
def image_processors(request: pytest.FixtureRequest) -> tuple[type, type]:
    return IMAGE_PROCESSORS[request.param]


class TestImages:
    def test_photographs_equal_transformers(self, image_processors: tuple[type, type], photograph: Image.Image) -> None:
        ours, theirs = (processor() for processor in image_processors)
        pixels = ours(photograph)["pixel_values"]
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 3, 224, 224)
        assert torch.equal(pixels, theirs(photograph, return_tensors="pt")["pixel_values"])

    @pytest.mark.parametrize("size", [(224, 224), (225, 224), (37, 1000), (1000, 37), (31, 50), (1, 1), (223, 300)])
    def test_sizes_equal_transformers(self, image_processors: tuple[type, type], size: tuple[int, int]) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = Image.fromarray(skimage.data.chelsea()).resize(size)
        assert torch.equal(ours(image)["pixel_values"], theirs(image, return_tensors="pt")["pixel_values"])

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_resize": False},
            {"do_rescale": False},
            {"do_normalize": False},
            {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 333, "width": 500}},
            {"size": {"height": 40, "width": 56}, "do_center_crop": False},
            {"size": {"shortest_edge": 60}, "do_center_crop": False, "resample": Image.Resampling.BILINEAR},
            {"image_mean": 0.25, "image_std": [0.5, 0.4, 0.3]},
            {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
        ],
        ids=lambda settings: "-".join(settings),
    )
    def test_settings_equal_transformers(self, image_processors: tuple[type, type], settings: dict[str, Any]) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = Image.fromarray(skimage.data.chelsea())
        pixels = ours(image, **settings)["pixel_values"]
        assert torch.equal(pixels, theirs(image, return_tensors="pt", **settings)["pixel_values"])

    @pytest.mark.parametrize(
        "mode",
        ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"],
    )
    def test_every_mode_is_accepted(self, image_processors: tuple[type, type], mode: str) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = Image.fromarray(skimage.data.chelsea())
        for step in {"La": ("LA", "La"), "PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
            image = image.convert(step)
        pixels = ours(image)["pixel_values"]
        # PIL turns La into LA and into nothing else, so that transformers fails on it.
        readable = image.convert("LA") if mode == "La" else image
        assert torch.equal(pixels, theirs(readable, return_tensors="pt")["pixel_values"])

    def test_transparent_parts_become_white(self) -> None:
        clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
        paletted = Image.new("P", (30, 30), 0)
        paletted.info["transparency"] = 0
        for image in (clear, paletted):
            assert torch.equal(SiglipImageProcessor()(image)["pixel_values"], torch.ones(1, 3, 224, 224))

    def test_every_kind_of_input_gives_the_same_pixels(self, tmp_path: Path) -> None:
        levels = skimage.data.chelsea()
        image = Image.fromarray(levels)
        image.save(tmp_path / "cat.png")
        fractions = levels / np.float32(255)
        inputs: dict[str, Any] = {
            "height, width, channels": levels,
            "channels, height, width": levels.transpose(2, 0, 1),
            "tensor": torch.from_numpy(levels).permute(2, 0, 1),
            "wider integers": levels.astype(np.int64),
            "float levels": levels.astype(np.float32),
            "float64 fractions": fractions.astype(np.float64),
            "fractions in a tensor": torch.from_numpy(fractions),
            "path": tmp_path / "cat.png",
            "path as text": str(tmp_path / "cat.png"),
            "nested lists": [[image]],
            "batch of arrays": levels[None],
        }
        for processor in (CLIPImageProcessor(), SiglipImageProcessor()):
            expected = processor(image)["pixel_values"]
            for name, given in inputs.items():
                assert torch.equal(processor(given)["pixel_values"], expected), name
            mixed = processor(list(inputs.values()))["pixel_values"]
            assert torch.equal(mixed, expected.expand(len(inputs), -1, -1, -1))

    def test_fractions_are_never_rescaled_twice(self) -> None:
        fractions = skimage.data.chelsea() / 255
        processor = SiglipImageProcessor()
        once = processor(fractions, do_rescale=False)["pixel_values"]
        assert torch.equal(processor(fractions, do_rescale=True)["pixel_values"], once)

    def test_grey_arrays(self) -> None:
        grey = skimage.data.camera()
        expected = SiglipImageProcessor()(Image.fromarray(grey))["pixel_values"]
        for given in (grey, grey[..., None], grey[None], torch.from_numpy(grey)):
            assert torch.equal(SiglipImageProcessor()(given)["pixel_values"], expected)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (None, TypeError, "expected PIL images.* got NoneType"),
            ([], ValueError, "at least one image, got none"),
            (np.zeros((5, 6, 7), np.uint8), ValueError, r"1, 3 or 4 channels .* got \(5, 6, 7\)"),
            (np.zeros(5, np.uint8), ValueError, r"got \(5,\)"),
            (np.zeros((0, 6, 3), np.uint8), ValueError, "at least one pixel"),
            (np.zeros((3, 6, 3), np.uint8), ValueError, r"\(3, 6, 3\): pass input_data_format"),
            (np.full((6, 6, 3), -1.0), ValueError, "got values of -1.0..-1.0"),
            (np.full((6, 6, 3), 256), ValueError, "got values of 256..256"),
            (np.full((6, 6, 3), np.nan), ValueError, "got values of nan..nan"),
        ],
        ids=["none", "empty", "channels", "one axis", "no pixel", "ambiguous", "negative", "too bright", "nan"],
    )
    def test_what_is_no_image_is_refused(self, given: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            SiglipImageProcessor()(given)

    def test_settings_that_cannot_work_are_refused(self) -> None:
        images = [np.zeros((8, 9, 3), np.uint8), np.zeros((7, 9, 3), np.uint8)]
        with pytest.raises(ValueError, match=r"one shape, got .* \(3, 7, 9\), \(3, 8, 9\)"):
            SiglipImageProcessor(do_resize=False)(images)
        assert len(SiglipImageProcessor(do_resize=False)(images, return_tensors=None)["pixel_values"]) == 2
        with pytest.raises(ValueError, match=r"'height' and 'width', or 'shortest_edge', got \{'longest_edge': 9\}"):
            SiglipImageProcessor(size={"longest_edge": 9})(images)
        with pytest.raises(ValueError, match="image_mean must hold one value for each of the 3 channels, got 2"):
            SiglipImageProcessor(image_mean=[0.5, 0.5])(images)

    def test_json_is_transformers_own_both_ways(self, image_processors: tuple[type, type], tmp_path: Path) -> None:
        ours, theirs = image_processors
        image = Image.fromarray(skimage.data.coffee())
        settings = {"size": {"height": 50, "width": 60}, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
        ours(**settings).save_pretrained(tmp_path / "ours")
        theirs(**settings).save_pretrained(tmp_path / "theirs")
        files = [json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("ours", "theirs")]
        assert files[0] == files[1]
        there, back = theirs.from_pretrained(tmp_path / "ours"), ours.from_pretrained(tmp_path / "theirs")
        assert torch.equal(back(image)["pixel_values"], there(image, return_tensors="pt")["pixel_values"])


def official_clip(texts: Sequence[str]) -> list[list[int]]:
    """OpenAI's own tokenizer, with `clip.tokenize(texts, truncate=True)` in lists, for `clip.py` needs torchvision."""
    vocabulary = released_file("openai-clip==1.0.1", "clip/bpe_simple_vocab_16e6.txt.gz")
    module = released_module("openai-clip==1.0.1", "clip/simple_tokenizer.py")
    tokenizer = module.SimpleTokenizer(str(vocabulary))
    rows = [[49406, *tokenizer.encode(text), 49407] for text in texts]
    rows = [row if len(row) <= 77 else [*row[:76], 49407] for row in rows]
    return [row + [0] * (77 - len(row)) for row in rows]


CLIP_AWKWARD = [
    *(
        "&amp;amp; &lt;b&gt; &eacute;",
        "ÃƒÂ©tÃ© mojibake",
        "<|endoftext|>",
        "a <|startoftext|>b<|EndOfText|>",
        "İstanbul ΣΑΣ ß",
    ),
]


@pytest.fixture(scope="module")
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_official()


class TestCLIPText:
    def test_ids_are_openais(self, clip_tokenizer: CLIPTokenizer) -> None:
        texts = [*SENTENCES, *AWKWARD, *CLIP_AWKWARD]
        ids = clip_tokenizer(texts, padding="max_length")["input_ids"]
        different = [
            text for text, ours, theirs in zip(texts, ids, official_clip(texts), strict=True) if ours != theirs
        ]
        assert different == []

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
        self, clip_tokenizer: CLIPTokenizer, tmp_path: Path
    ) -> None:
        texts = [*SENTENCES, *AWKWARD]
        clip_tokenizer.save_pretrained(tmp_path)
        plain, again = AutoTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
        expected = clip_tokenizer(texts, padding="max_length")
        assert again(texts, padding="max_length") == expected
        assert plain.is_fast
        # Only ftfy's repairs cannot be said in a tokenizer.json.
        kept = [
            index for index, text in enumerate(texts) if clip_tokenizer.clean(text) == " ".join(text.lower().split())
        ]
        ids = plain(texts, padding="max_length", truncation=True)["input_ids"]
        assert len(kept) > 200
        assert [ids[index] for index in kept] == [expected["input_ids"][index] for index in kept]

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

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "short.gz").write_bytes(gzip.compress(b"#version\na b\nc d\n"))
        with pytest.raises(ValueError, match="2 merges, not 48894"):
            CLIPTokenizer.from_file(tmp_path / "short.gz")
        (tmp_path / "broken.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
        with pytest.raises(ValueError, match="is not OpenAI's"):
            CLIPTokenizer.from_file(tmp_path / "broken.gz")
        with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
            CLIPTokenizer.from_file(__file__)
        with pytest.raises(ValueError, match="found neither"):
            CLIPTokenizer.from_pretrained(tmp_path)


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


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("sentencepiece")

    def trained(kind: str) -> Path:
        path = folder / f"{kind}.model"
        if not path.is_file():
            train_sentencepiece(path, **SENTENCEPIECES[kind])
        return path

    return trained


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


def official_siglip(path: Path, texts: Sequence[str], pad: int, length: int = 64) -> list[list[int]]:
    """SentencePiece's own ids as big_vision makes rows of them: ASCII lower-casing, the end sticky, padding."""
    processor = sentencepiece.SentencePieceProcessor(str(path))
    rows = [[*processor.encode(text.translate(ASCII_LOWER))[: length - 1], processor.eos_id()] for text in texts]
    return [row + [pad] * (length - len(row)) for row in rows]


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

    @pytest.mark.parametrize(
        ("requirement", "name", "pad"),
        [
            ("diffsynth==1.1.9", "flux/tokenizer_2/spiece.model", 1),
            ("maxtext==0.1.0", "assets/tokenizer.gemma", 0),
        ],
        ids=["T5's 32000", "Gemma's 256000"],
    )
    def test_ids_with_released_vocabularies(self, requirement: str, name: str, pad: int) -> None:
        path = released_file(requirement, name)
        texts = [*SENTENCES, *AWKWARD]
        tokenizer = SiglipTokenizer.from_sentencepiece(path)
        assert tokenizer(texts)["input_ids"] == official_siglip(path, texts, pad)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"padding": True},
            {"padding": False, "truncation": False},
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
        with pytest.raises(ValueError, match="must be one of none, lower, canonicalize, got 'clean'"):
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

    def test_hub_folder_of_siglip2(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        """A plain Gemma `tokenizer.json`: cased, with a begin token, padding on the left, no length."""
        tokenizer = SiglipTokenizer.from_sentencepiece(train("bpe"))
        gemma = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        gemma.normalizer = normalizers.Replace(" ", "▁")
        gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        gemma.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 2)])
        gemma.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        config |= {"tokenizer_class": "GemmaTokenizer", "padding_side": "left", "model_max_length": int(1e30)}
        config |= {"add_bos_token": True, "add_eos_token": False}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        texts = [*SENTENCES, *AWKWARD]
        ids = SiglipTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
        assert ids == official_siglip(train("bpe"), texts, pad=0)

    def test_other_files_are_refused(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        whole = train("unigram").read_bytes()
        for name, content in {"cut": whole[:-7], "text": b"no model", "empty": b"", "zeros": bytes(50)}.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}.*(not a SentencePiece model|expected a unigram)"):
                SiglipTokenizer.from_file(tmp_path / name)
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


def tiny_config(family: type, **text: Any) -> Any:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return family(text_config={**tower, **text}, vision_config={**tower, "image_size": 48, "patch_size": 16})


class TestProcessor:
    def test_clip_folder(self, tmp_path: Path) -> None:
        config = CLIPConfig(vision_config={"image_size": 96})
        processor = build_processor(config)
        config.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        check_folder(tmp_path, processor, CLIPProcessor)
        outputs = processor(images=skimage.data.chelsea(), text=["a cat", "a dog!"])
        assert outputs["pixel_values"].shape == (1, 3, 96, 96)
        assert outputs["input_ids"].shape == outputs["attention_mask"].shape == (2, 77)
        assert processor(text="a cat", padding=True)["input_ids"].tolist() == [[49406, 320, 2368, 49407]]

    @pytest.mark.parametrize(
        ("kind", "pad", "resample"),
        [("unigram", 1, Image.Resampling.BICUBIC), ("bpe", 0, Image.Resampling.BILINEAR)],
        ids=["SigLIP", "SigLIP 2"],
    )
    def test_siglip_folder(
        self, train: Callable[[str], Path], kind: str, pad: int, resample: Image.Resampling, tmp_path: Path
    ) -> None:
        size = len(read_sentencepiece(train(kind)).pieces)
        config = tiny_config(SiglipConfig, vocab_size=size, pad_token_id=pad, max_position_embeddings=16)
        processor = build_processor(config, tokenizer=train(kind))
        assert processor.image_processor.resample == resample
        config.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        check_folder(tmp_path, processor, SiglipProcessor)
        outputs = processor(images=[skimage.data.chelsea()] * 2, text="a cat")
        assert outputs.keys() == {"pixel_values", "input_ids"}
        assert outputs["pixel_values"].shape == (2, 3, 48, 48)
        assert outputs["input_ids"].tolist() == official_siglip(train(kind), ["a cat"], pad, 16)

    def test_length_of_a_hub_folder_is_the_models(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "spiece.model").write_bytes(train("unigram").read_bytes())
        tiny_config(SiglipConfig, max_position_embeddings=16).save_pretrained(tmp_path)
        SiglipImageProcessor().save_pretrained(tmp_path)
        processor = DualEncoderProcessor.from_pretrained(tmp_path)
        assert processor(text="a cat", padding="max_length", max_length=64)["input_ids"].shape == (1, 16)

    def test_old_clip_folder(self, tmp_path: Path) -> None:
        """No `processor_config.json`, sizes as numbers, the class under its name of 2021, no `config.json`."""
        settings = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 60, "crop_size": 50, "resample": 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        processor = DualEncoderProcessor.from_pretrained(tmp_path)
        assert type(processor) is CLIPProcessor
        assert processor(skimage.data.chelsea())["pixel_values"].shape == (1, 3, 50, 50)
        expected = CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size=50)(skimage.data.chelsea())
        assert np.array_equal(processor(skimage.data.chelsea())["pixel_values"], np.stack(expected["pixel_values"]))

    def test_official_files(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        source = Path(__file__).parent / "fixtures" / "siglip_v2_scanned" / "checkpoint.npz"
        processor = DualEncoderProcessor.from_pretrained(source)
        assert type(processor) is SiglipProcessor
        assert processor.image_processor.resample == Image.Resampling.BILINEAR
        pixels = processor(skimage.data.chelsea())["pixel_values"]
        assert (
            pixels.shape[1:]
            == np.load(source.with_name("inputs.npz"))["pixel_values_nhwc"].transpose(0, 3, 1, 2).shape[1:]
        )
        with pytest.raises(ValueError, match=r"from_pretrained\(\.\.\., tokenizer=path\)"):
            processor(text="a cat")
        processor.save_pretrained(tmp_path)
        assert DualEncoderProcessor.from_pretrained(tmp_path).tokenizer is None
        with pytest.raises(ValueError, match="SiglipProcessor, not a CLIPProcessor"):
            CLIPProcessor.from_pretrained(source)

    @pytest.mark.parametrize("family", [CLIPConfig, SiglipConfig])
    def test_vocabularies_of_another_size_are_refused(
        self, train: Callable[[str], Path], family: type, tmp_path: Path
    ) -> None:
        config = tiny_config(family, vocab_size=160)
        path = tmp_path if family is CLIPConfig else train("unigram")
        CLIPTokenizer.from_official().save_pretrained(tmp_path)
        size = 49408 if family is CLIPConfig else len(read_sentencepiece(path).pieces)
        with pytest.raises(ValueError, match=f"has {size} pieces and the model has embeddings for 160"):
            build_processor(config, tokenizer=path)
        assert build_processor(config).tokenizer is None

    def test_wrong_settings_are_refused(self, tmp_path: Path) -> None:
        processor = build_processor(CLIPConfig())
        with pytest.raises(ValueError, match="images, text or both, got neither"):
            processor()
        with pytest.raises(TypeError, match="setting named do_resise"):
            processor(images=skimage.data.chelsea(), do_resise=False)
        with pytest.raises(ValueError, match=r"text_cleanup is for SigLIP.* got 'lower'"):
            build_processor(CLIPConfig(), text_cleanup="lower")
        with pytest.raises(FileNotFoundError, match="nothing is neither a file"):
            build_processor(CLIPConfig(), tokenizer=tmp_path / "nothing")
        with pytest.raises(TypeError, match="SiglipProcessor takes a twinlens SiglipImageProcessor"):
            SiglipProcessor(processor.image_processor, processor.tokenizer)
        with pytest.raises(TypeError, match=r"SiglipTokenizer as tokenizer, got .*CLIPTokenizer"):
            SiglipProcessor(SiglipImageProcessor(), processor.tokenizer)
        (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
        with pytest.raises(ValueError, match="CLIP or SigLIP, got 'ViTImageProcessor'"):
            DualEncoderProcessor.from_pretrained(tmp_path)

    def test_importing_needs_no_torchvision_sentencepiece_or_protobuf(self) -> None:
        """Not even where they are installed."""
        unwanted = "{'torchvision', 'sentencepiece', 'google.protobuf'}"
        script = f"import sys, twinlens.processing; print(*{unwanted} & {{*sys.modules}})"
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert answer.stdout == "\n"


def check_folder(folder: Path, processor: DualEncoderProcessor, family: type) -> None:
    """The folder gives the same ids and pixels in both libraries."""
    again, plain = DualEncoderProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(again) is family
    assert type(plain).__name__ == family.__name__
    image, texts = Image.fromarray(skimage.data.coffee()), [text for text in SENTENCES if "<" not in text]
    expected = processor(images=image, text=texts)
    assert again.to_dict() == processor.to_dict()
    for other in (again, plain):
        outputs = other(images=image, text=texts, padding="max_length", truncation=True, return_tensors="pt")
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(outputs[name], value), name
