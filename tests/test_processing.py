"""Images, equal to transformers' and safe from wrong calls, and processors of images and text."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photographs import cat, cat_levels
from helpers.text_corpus import SENTENCES, official_siglip, trained_sentencepiece
from helpers.versions import IS_OLDEST
from PIL import Image
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # also there without torchvision
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import twinlens.processing
from twinlens.configuration import FAMILIES, CLIPConfig, SiglipConfig
from twinlens.modeling import DualEncoderModel
from twinlens.processing import (
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizer,
    DualEncoderProcessor,
    Siglip2ImageProcessor,
    Siglip2Processor,
    SiglipImageProcessor,
    SiglipProcessor,
    SiglipTokenizer,
    build_processor,
)
from twinlens.processing.processor_loading import class_of
from twinlens.processing.sentencepiece_model import read_sentencepiece


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return partial(trained_sentencepiece, tmp_path_factory.mktemp("sentencepiece"))


def tiny_config(family: type, **text: Any) -> Any:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return family(text_config={**tower, **text}, vision_config={**tower, "image_size": 48, "patch_size": 16})


class TestProcessor:
    def test_clip_folder(self, tmp_path: Path) -> None:
        config = CLIPConfig(vision_config={"image_size": 96})
        processor = build_processor(config, preprocessing="hub")
        config.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        check_folder(tmp_path, processor, CLIPProcessor)
        outputs = processor(images=cat_levels(), text=["a cat", "a dog!"])
        assert outputs["pixel_values"].shape == (1, 3, 96, 96)
        assert outputs["input_ids"].shape == outputs["attention_mask"].shape == (2, 77)
        assert processor(text="a cat", padding=True)["input_ids"].tolist() == [[49406, 320, 2368, 49407]]

    def test_calls_of_other_processors(self) -> None:
        """What `ProcessorMixin.__call__` of transformers takes, with its order of precedence."""
        processor = build_processor(CLIPConfig(vision_config={"image_size": 32}))
        image, expected = cat(), processor(images=cat(), text="a cat")
        taken: list[dict[str, Any]] = [
            {"videos": None, "audio": None},
            {"videos_kwargs": {}, "audio_kwargs": {}, "common_kwargs": {"return_tensors": "pt"}},
            {
                "common_kwargs": {"return_tensors": "np", "padding": True},
                "padding": "max_length",
                "return_tensors": "pt",
            },
            {
                "text_kwargs": {"padding": "max_length", "return_tensors": "pt"},
                "images_kwargs": {"return_tensors": "pt"},
            },
        ]
        for settings in taken:
            outputs = processor(image, "a cat", **settings)
            assert all(torch.equal(outputs[name], expected[name]) for name in expected)
        assert isinstance(processor(text=["a"], common_kwargs={"return_tensors": "np"})["input_ids"], np.ndarray)
        assert processor(None, ["a"], None, None, padding=True)["input_ids"].shape == (1, 3)
        with pytest.raises(ValueError, match="Expected images, text or both, got videos and audio"):
            processor(text="a", videos=[image], audio=[0.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"Passed twice.*: padding"):
            processor(text="a", padding=True, text_kwargs={"padding": False})
        for name in ("text_kwargs", "images_kwargs", "common_kwargs"):
            refused: dict[str, Any] = {name: {"bogus": 1}}
            with pytest.raises(TypeError, match="has a setting named bogus"):
                processor(image, "a", **refused)

    @pytest.mark.parametrize("family", [CLIPProcessor, SiglipProcessor, Siglip2Processor])
    def test_empty_columns(self, family: type[DualEncoderProcessor]) -> None:
        """Batches of none have the shapes of others, for a model gives (0, dim) of them."""
        images = family(family.image_processor_type())
        one, none = images(images=[cat()]), images(images=[])
        assert {name: (0, *values.shape[1:]) for name, values in one.items()} == {
            name: tuple(values.shape) for name, values in none.items()
        }
        assert [values.dtype for values in none.values()] == [values.dtype for values in one.values()]
        assert images(images=[], return_tensors=None)["pixel_values"] == []

    def test_embeddings_of_none(self) -> None:
        config = tiny_config(CLIPConfig)
        model, processor = DualEncoderModel(config), build_processor(config)
        for kind in ("image", "text", None):
            assert model.encode([], processor, kind=kind).shape == (0, config.projection_dim)

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
        processor = build_processor(config, tokenizer=train(kind), preprocessing="hub")
        assert processor.image_processor.resample == resample
        config.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        check_folder(tmp_path, processor, SiglipProcessor)
        outputs = processor(images=[cat_levels()] * 2, text="a cat")
        assert outputs.keys() == {"pixel_values", "input_ids"}
        assert outputs["pixel_values"].shape == (2, 3, 48, 48)
        assert outputs["input_ids"].tolist() == official_siglip(train(kind), ["a cat"], pad, 16)

    def test_naflex_folder(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        """Pixels are the same in plain transformers, which replaces the tokenizer of every `siglip2` by its own."""
        # Its processor also replaces the number of patches by its own, 256, which is the default here as well.
        processor = Siglip2Processor(Siglip2ImageProcessor(), SiglipTokenizer.from_file(train("bpe")))
        (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
        processor.save_pretrained(tmp_path)
        again, plain = DualEncoderProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is Siglip2Processor
        assert IS_OLDEST or type(plain.tokenizer).__name__ == "Siglip2Tokenizer"
        assert again(text=SENTENCES)["input_ids"].tolist() == official_siglip(train("bpe"), SENTENCES, 0, 64)
        image = cat_levels()
        expected = processor(image)
        for other in (again, plain):
            outputs = other(images=Image.fromarray(image), return_tensors="pt")
            assert outputs.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(outputs[name], value), name

    @pytest.mark.parametrize("processor_class", [SiglipProcessor, Siglip2Processor])
    def test_hub_folder_of_siglip2_takes_all_modes(
        self, processor_class: type[DualEncoderProcessor], tmp_path: Path
    ) -> None:
        """Its `"do_convert_rgb": null` states nothing; a call may still leave the step out."""
        images = processor_class.image_processor_type()
        images.save_pretrained(tmp_path)
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"do_convert_rgb": None}))
        loaded = DualEncoderProcessor.from_pretrained(tmp_path).image_processor
        for mode in ("L", "RGBA", "P"):
            picture = cat().resize((64, 48)).convert(mode)
            assert torch.equal(loaded(picture)["pixel_values"], images(picture)["pixel_values"])
        with pytest.raises(ValueError, match="image_mean must hold one value for each of the 1 channels"):
            loaded(cat().convert("L"), do_convert_rgb=False)

    @pytest.mark.parametrize("family", [CLIPConfig, SiglipConfig])
    def test_official_preprocessing_is_the_default_and_is_kept(self, family: type, tmp_path: Path) -> None:
        config = tiny_config(family)
        processor = build_processor(config)
        processor.save_pretrained(tmp_path)
        kept = DualEncoderProcessor.from_pretrained(tmp_path)
        image = cat().convert("P")
        expected = processor(image)["pixel_values"]
        assert torch.equal(kept(image)["pixel_values"], expected)
        by_hand = type(processor.image_processor)(
            resize_engine="official",
            **{name: getattr(processor.image_processor, name) for name in ("size", "crop_size")},
        )
        assert torch.equal(by_hand(image)["pixel_values"], expected)
        for other in (build_processor(config, preprocessing="hub"), AutoImageProcessor.from_pretrained(tmp_path)):
            pixels = other(images=image, return_tensors="pt")["pixel_values"]
            assert pixels.shape == expected.shape
            assert not torch.equal(pixels, expected)
        faster = DualEncoderProcessor.from_pretrained(tmp_path, resize_engine="torch", num_workers=1)
        assert faster.image_processor.resize_engine == "torch"
        with pytest.raises(ValueError, match="preprocessing must be one of official, hub, got 'offical'"):
            build_processor(config, preprocessing="offical")  # type: ignore[arg-type]

    def test_explain(self, train: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
        size = len(read_sentencepiece(train("bpe")).pieces)
        siglip = tiny_config(SiglipConfig, vocab_size=size, pad_token_id=0)
        build_processor(siglip, tokenizer=train("bpe"), text_cleanup="canonicalize").explain()
        assert "rid of punctuation" in (printed := capsys.readouterr().out)
        assert "Padded on the right with 0 to 64 tokens, always; there is no mask" in printed
        build_processor(CLIPConfig()).explain()
        assert "repaired by ftfy, HTML entities undone twice" in (printed := capsys.readouterr().out)
        assert "between start (49406) and end (49407)" in printed
        assert "half to even" in printed

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
        assert processor(cat_levels())["pixel_values"].shape == (1, 3, 50, 50)
        expected = CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size=50)(cat_levels())
        assert np.array_equal(processor(cat_levels())["pixel_values"], np.stack(expected["pixel_values"]))

    def test_official_files(self, train: Callable[[str], Path], tmp_path: Path) -> None:
        source = Path(__file__).parent / "fixtures" / "siglip_v2_scanned" / "checkpoint.npz"
        processor = DualEncoderProcessor.from_pretrained(source)
        assert type(processor) is SiglipProcessor
        assert processor.image_processor.resample == Image.Resampling.BILINEAR
        pixels = processor(cat_levels())["pixel_values"]
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
            processor(images=cat_levels(), do_resise=False)
        with pytest.raises(ValueError, match=r"text_cleanup is for SigLIP.* got 'lower'"):
            build_processor(CLIPConfig(), text_cleanup="lower")
        with pytest.raises(FileNotFoundError, match="nothing is neither a file"):
            build_processor(CLIPConfig(), tokenizer=tmp_path / "nothing")
        with pytest.raises(TypeError, match="SiglipProcessor takes a twinlens SiglipImageProcessor"):
            SiglipProcessor(processor.image_processor, processor.tokenizer)
        with pytest.raises(TypeError, match=r"SiglipTokenizer as tokenizer, got .*CLIPTokenizer"):
            SiglipProcessor(SiglipImageProcessor(), processor.tokenizer)
        (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
        with pytest.raises(ValueError, match=r"a checkpoint of CLIP or .*, got 'ViTImageProcessor'"):
            DualEncoderProcessor.from_pretrained(tmp_path)

    def test_squash_of_open_clip(self, tmp_path: Path) -> None:
        """Its `resize_mode` "squash" in the settings of a CLIP: official pixels, kept in the folder."""
        squash: dict[str, Any] = {"size": {"height": 48, "width": 48}, "do_center_crop": False}
        processor = build_processor(tiny_config(CLIPConfig), **squash)
        processor.save_pretrained(tmp_path)
        image = cat_levels()
        expected = CLIPImageProcessor(resize_engine="official", **squash)(image)["pixel_values"]
        for each in (processor, DualEncoderProcessor.from_pretrained(tmp_path)):
            assert torch.equal(each(image)["pixel_values"], expected)
        assert "Resized to 48x48, whatever the aspect" in processor.describe()

    def test_a_class_of_the_user(self, tmp_path: Path) -> None:
        """It loads what the class loads that it is derived from, and refuses what that class refuses."""

        class OwnProcessor(CLIPProcessor):
            pass

        config = tiny_config(CLIPConfig)
        config.save_pretrained(tmp_path)
        build_processor(config).save_pretrained(tmp_path)
        processor = OwnProcessor.from_pretrained(tmp_path)
        assert type(processor) is OwnProcessor
        expected = CLIPProcessor.from_pretrained(tmp_path)(cat_levels(), "a cat")
        assert all(torch.equal(value, expected[name]) for name, value in processor(cat_levels(), "a cat").items())
        assert type(DualEncoderProcessor.from_pretrained(tmp_path)) is CLIPProcessor
        tiny_config(SiglipConfig).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a SiglipProcessor, not a OwnProcessor"):
            OwnProcessor.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a SiglipProcessor, not a Siglip2Processor"):
            Siglip2Processor.from_pretrained(tmp_path)

    def test_every_family_has_its_processor(self) -> None:
        for family in FAMILIES.values():
            processor_class = getattr(twinlens.processing, family.processor)
            for model_type in family.model_types:
                assert class_of(DualEncoderProcessor, model_type, "a test") is processor_class


def check_folder(folder: Path, processor: DualEncoderProcessor, family: type) -> None:
    """The folder gives the same ids and pixels in both libraries."""
    again, plain = DualEncoderProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(again) is family
    assert type(plain).__name__ == family.__name__
    image, texts = cat(), [text for text in SENTENCES if "<" not in text]
    expected = processor(images=image, text=texts)
    assert again.to_dict() == processor.to_dict()
    for other in (again, plain):
        outputs = other(images=image, text=texts, padding="max_length", truncation=True, return_tensors="pt")
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(outputs[name], value), name
