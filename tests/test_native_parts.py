"""Processors take arguments and parts of transformers' processors; tokenizers obey what is said of truncation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.photographs import cat

import twinlens

LONG = "star " * 40
NAMES = {"clip-shapes": "CLIP", "siglip-shapes": "Siglip"}


def own(name: str) -> twinlens.DualEncoderProcessor:
    return twinlens.DualEncoderProcessor.from_pretrained(name)


def native_parts(name: str, folder: Path) -> tuple[Any, Any]:
    """The image processor and the tokenizer that transformers' processor of the same folder has."""
    own(name).save_pretrained(folder)
    native = transformers.AutoProcessor.from_pretrained(folder)
    assert type(native).__module__.startswith("transformers")
    return native.image_processor, native.tokenizer


@pytest.mark.parametrize("name", ["clip-shapes", pytest.param("siglip-shapes", marks=pytest.mark.thorough)])
class TestParts:
    def test_those_of_transformers_are_converted(self, name: str, tmp_path: Path) -> None:
        images, tokenizer = native_parts(name, tmp_path)
        processor_class = getattr(twinlens, f"{NAMES[name]}Processor")
        with pytest.raises(TypeError, match="unexpected keyword"):
            processor_class(images, tokenizer, chat_templates="{{ messages }}")
        converted = processor_class(images, tokenizer, chat_template="{{ messages[0].content }}")
        assert {type(converted.image_processor), type(converted.tokenizer)} == {
            processor_class.image_processor_type,
            processor_class.tokenizer_type,
        }
        assert converted.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"
        expected, found = (made(images=cat(), text=["a red star", LONG]) for made in (own(name), converted))
        assert torch.equal(found["input_ids"], expected["input_ids"])
        # transformers reads a folder's settings of pixels, but not `resize_engine="official"`
        pixels = converted.image_processor.to_dict() | {"resize_engine": "pillow"}
        settings = {"resize_engine": "pillow"}
        assert pixels.items() >= (own(name).image_processor.to_dict() | settings).items()
        assert processor_class(own(name).image_processor, tokenizer).image_processor.resize_engine is not None

    def test_those_of_another_kind_are_refused(self, name: str, tmp_path: Path) -> None:
        processor, family = own(name), NAMES[name]
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
        bert = transformers.BertTokenizer.from_pretrained(tmp_path)
        for part in (transformers.ViTImageProcessorPil(), twinlens.Siglip2ImageProcessor(), "a folder", None):
            with pytest.raises(TypeError, match=f"takes a twinlens {family}ImageProcessor as image_processor, got"):
                type(processor)(part, processor.tokenizer)
        with pytest.raises(TypeError, match=f"vocabulary of this BertTokenizer is not one of {family}Tokenizer"):
            type(processor)(processor.image_processor, bert)
        with pytest.raises(TypeError, match=f"takes a twinlens {family}Tokenizer as tokenizer, got"):
            type(processor)(processor.image_processor, processor.image_processor)

    def test_settings_for_other_inputs_have_no_effect(self, name: str) -> None:
        """Every processor of transformers takes them; a misspelt one is refused."""
        processor = own(name)
        expected = processor(images=cat(), text="a")
        found = processor(
            images=cat(), text="a", fps=1, sampling_rate=8, return_metadata=True, videos_kwargs={"fps": 1}
        )
        for key, values in expected.items():
            assert torch.equal(found[key], values)
        with pytest.raises(TypeError, match="has a setting named paddding"):
            processor(text="a", paddding=True)


@pytest.mark.parametrize("name", NAMES)
class TestTruncation:
    def test_a_refused_one_is_obeyed(self, name: str, tmp_path: Path) -> None:
        ours, theirs = own(name).tokenizer, native_parts(name, tmp_path)[1]
        refused: list[dict[str, Any]] = [
            {"truncation": False},
            {"truncation": "do_not_truncate", "padding": "do_not_pad"},
            {"truncation": False, "padding": True, "return_tensors": "np"},
            {"truncation": False, "padding": "max_length", "max_length": 12},
            {"truncation": False, "add_special_tokens": False},
        ]
        for settings in refused:
            found, expected = (np.array(made(LONG, **settings)["input_ids"]) for made in (ours, theirs))
            assert found.shape[-1] >= 40
            assert np.array_equal(found, expected)
        assert ours.encode(LONG, truncation=False) == theirs.encode(LONG, truncation=False)

    def test_without_a_word_about_it_texts_are_cut(self, name: str) -> None:
        processor = own(name)
        length = processor.tokenizer.model_max_length
        for settings in ({}, {"padding": True}, {"padding": "max_length"}, {"truncation": None}):
            assert len(processor.tokenizer(LONG, **settings)["input_ids"]) == length
        for settings in ({}, {"padding": "longest"}, {"padding": True}):
            assert processor(text=LONG, **settings)["input_ids"].shape == (1, length)


def test_diffusers_sees_the_whole_prompt(tmp_path: Path) -> None:
    """It compares what the model reads with `tokenizer(prompt, padding="longest")`, to say what was cut."""
    ours, theirs = own("clip-shapes").tokenizer, native_parts("clip-shapes", tmp_path)[1]
    for texts in (LONG, [LONG, "a"]):
        found, expected = (made(texts, padding="longest", return_tensors="pt")["input_ids"] for made in (ours, theirs))
        assert torch.equal(found, expected)
        assert found.shape[1] == 42
