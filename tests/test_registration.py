"""Between `register` and `unregister`, transformers' Auto classes and pipelines return the classes of this package."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families
from helpers.photographs import cat
from helpers.versions import GEMMA_3
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # also there without torchvision

import twinlens

AUTO = (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoModelForImageClassification,
    AutoImageProcessor,
    AutoTokenizer,
    AutoProcessor,
)


THOROUGH = pytest.mark.thorough
WRITTEN = [  # by whom; one of them by day
    (family, writer) if (family, writer) == ("Siglip", "transformers") else pytest.param(family, writer, marks=THOROUGH)
    for family in families.FAMILIES
    for writer in ("twinlens", "transformers")
]
CAT, LABELS = cat(), ["a cat", "a red star"]


@cache
def tokenizer(family: str) -> Any:
    return twinlens.DualEncoderProcessor.from_pretrained(
        "clip-shapes" if family == "CLIP" else "siglip-shapes"
    ).tokenizer


def write(folder: Path, family: str, library: Any) -> Path:
    """A model and its processor, saved by twinlens or by transformers."""
    config = families.config(family, library)
    config.text_config.vocab_size = len(tokenizer(family))
    getattr(library, f"{family}Model")(config).save_pretrained(folder)
    sizes: dict[str, dict[str, Any]] = {
        "CLIP": {"size": {"shortest_edge": 32}, "crop_size": 32},
        "Siglip": {"size": {"height": 32, "width": 32}},
        "Siglip2": {},
    }
    images = getattr(twinlens, f"{family}ImageProcessor")(**sizes[family])
    getattr(twinlens, f"{family}Processor")(images, tokenizer(family)).save_pretrained(folder)
    if library is transformers:
        AutoProcessor.from_pretrained(folder).save_pretrained(folder)
        (folder / "preprocessor_config.json").unlink()  # which transformers 5 does not write
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("folders")
    return cache(lambda family, writer: write(root / family / writer, family, import_module(writer)))


@pytest.fixture
def registered() -> Iterator[None]:
    with twinlens.register():
        yield


def loaded(folder: Path, classes: Sequence[Any] = AUTO) -> dict[str, Any]:
    return {auto.__name__: auto.from_pretrained(folder) for auto in classes}


def origins(parts: dict[str, Any]) -> set[str]:
    return {type(part).__module__.partition(".")[0] for part in parts.values()}


@pytest.mark.filterwarnings("ignore:.*image processor.*")
@pytest.mark.parametrize(("family", "writer"), WRITTEN)
class TestEveryWriter:
    def test_auto_classes(self, family: str, writer: str, folders: Callable[[str, str], Path]) -> None:
        folder = folders(family, writer)
        assert origins(loaded(folder)) == {"transformers"}  # importing twinlens changes nothing
        with twinlens.register():
            parts = loaded(folder)
        assert {name: type(part).__name__ for name, part in parts.items()} == {
            "AutoConfig": f"{family}Config",
            "AutoModel": f"{family}Model",
            "AutoModelForZeroShotImageClassification": f"{family}Model",
            "AutoModelForImageClassification": f"{family}ForImageClassification",
            "AutoImageProcessor": f"{family}ImageProcessor",
            "AutoTokenizer": "CLIPTokenizer" if family == "CLIP" else "SiglipTokenizer",
            "AutoProcessor": f"{family}Processor",
        }
        assert origins(parts) == {"twinlens"}
        assert origins(loaded(folder, (AutoConfig, AutoModel, AutoImageProcessor))) == {"transformers"}

    def test_pipelines(self, family: str, writer: str, folders: Callable[[str, str], Path], registered: None) -> None:
        folder = folders(family, writer)
        made = pipeline("zero-shot-image-classification", model=str(folder))
        assert origins({"model": made.model, "tokenizer": made.tokenizer, "images": made.image_processor}) == {
            "twinlens"
        }
        assert made.tokenizer.model_max_length == families.TEXT["max_position_embeddings"]
        features = pipeline("image-feature-extraction", model=str(folder))
        assert origins({"model": features.model, "images": features.image_processor}) == {"twinlens"}

    def test_what_is_asked_for_by_its_own_class_is_of_it(
        self, family: str, writer: str, folders: Callable[[str, str], Path], registered: None
    ) -> None:
        folder = folders(family, writer)
        assert type(getattr(transformers, f"{family}Model").from_pretrained(folder)).__module__.startswith(
            "transformers"
        )
        assert type(getattr(transformers, f"{family}Processor").from_pretrained(folder)) is getattr(
            transformers, f"{family}Processor"
        )


def test_scores_of_the_pipeline_are_the_processors(folders: Callable[[str, str], Path]) -> None:
    """transformers' pipeline pads texts to 64 tokens, for which this model has no positions, and cuts none."""
    folder = folders("Siglip", "transformers")
    with pytest.raises(ValueError, match="must be less than max_position_embeddings"):
        pipeline("zero-shot-image-classification", model=str(folder))(CAT, candidate_labels=LABELS)
    with twinlens.register():
        answers = pipeline("zero-shot-image-classification", model=str(folder))(
            CAT, candidate_labels=LABELS, hypothesis_template="{}"
        )
    model, processor = twinlens.SiglipModel.from_pretrained(folder), twinlens.SiglipProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**processor(images=CAT, text=LABELS)).logits_per_image[0].sigmoid()
    scores = torch.tensor([{answer["label"]: answer["score"] for answer in answers}[label] for label in LABELS])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


class TestTowersAndOtherModels:
    def test_a_tower_alone(self, tmp_path: Path, registered: None) -> None:
        families.model("CLIP", "TextModel", transformers).save_pretrained(tmp_path)
        twinlens.DualEncoderProcessor.from_pretrained("clip-shapes").tokenizer.save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path)) is twinlens.CLIPTextModel
        assert type(AutoTokenizer.from_pretrained(tmp_path, use_fast=True)) is twinlens.CLIPTokenizer
        assert type(AutoProcessor.from_pretrained(tmp_path)) is twinlens.CLIPTokenizer  # as transformers does

    def test_images_without_texts(self, tmp_path: Path, registered: None) -> None:
        families.model("Siglip", "VisionModel").save_pretrained(tmp_path)
        twinlens.SiglipProcessor(twinlens.SiglipImageProcessor()).save_pretrained(tmp_path)
        assert type(AutoProcessor.from_pretrained(tmp_path)) is twinlens.SiglipImageProcessor
        made = pipeline("image-feature-extraction", model=str(tmp_path))
        assert type(made.model) is twinlens.SiglipVisionModel

    @THOROUGH
    def test_a_resnet_needs_no_trust(self, tmp_path: Path) -> None:
        vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "depths": [1, 1, 1, 1]}
        config = twinlens.CLIPResNetConfig(text_config=families.TEXT, vision_config=vision)
        twinlens.CLIPResNetModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
        with twinlens.register():
            assert type(AutoModel.from_pretrained(tmp_path)) is twinlens.CLIPResNetModel

    def test_configurations_of_transformers(self, registered: None) -> None:
        config = families.config("CLIP", transformers, "Vision")
        assert type(AutoModel.from_config(config)) is twinlens.CLIPVisionModel

    def test_other_models_are_transformers_own(self, tmp_path: Path, registered: None) -> None:
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
        transformers.BertModel(config).save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
        assert type(AutoModel.from_pretrained(tmp_path)) is transformers.BertModel
        assert type(AutoTokenizer.from_pretrained(tmp_path)) is transformers.BertTokenizer
        assert type(AutoProcessor.from_pretrained(tmp_path)) is transformers.BertTokenizer
        with pytest.raises(OSError, match="nowhere"):
            AutoTokenizer.from_pretrained(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["Llava", "LlavaNext", "VipLlava", "PaliGemma", "LlavaOnevision", GEMMA_3])
    def test_configurations_of_vision_language_models(self, name: str, registered: None) -> None:
        """Their towers' configurations have fields that only such models read: strictness is for misspelt ones."""
        native = getattr(transformers, f"{name}Config")
        config = native()
        again = native.from_dict(config.to_dict())
        for vision in (config.vision_config, again.vision_config):
            assert type(vision).__module__.startswith("twinlens")
        foreign = {"vocab_size": 9, "num_image_tokens": 4, "projector_hidden_act": "gelu"}
        stated = {**config.vision_config.to_dict(), **foreign}
        vision = native(vision_config=stated).vision_config
        assert {field: getattr(vision, field) for field in foreign} == foreign
        with pytest.raises(TypeError, match="Did you mean 'hidden_size'"):
            native(vision_config={**stated, "hiden_size": 8})


class TestUndoing:
    def test_twice_and_nested(self) -> None:
        native = type(AutoConfig.for_model("clip"))
        twinlens.unregister()  # nothing to undo
        with twinlens.register():
            with twinlens.register():
                pass
            assert type(AutoConfig.for_model("clip")) is twinlens.CLIPConfig
            twinlens.register()
        assert type(AutoConfig.for_model("clip")) is native
        twinlens.register()
        twinlens.unregister()
        assert type(AutoConfig.for_model("clip")) is native

    def test_an_error_inside_ends_it(self) -> None:
        with pytest.raises(KeyError), twinlens.register():
            raise KeyError
        assert AutoConfig.for_model("clip").__module__.startswith("transformers")

    def test_registrations_of_others_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those from before come back, and those from after are left as they are."""

        class Mine(transformers.CLIPConfig):
            pass

        content = {"siglip": Mine}
        monkeypatch.setattr(transformers.CONFIG_MAPPING, "_extra_content", content)
        with twinlens.register():
            assert type(AutoConfig.for_model("siglip")) is twinlens.SiglipConfig
            content["clip"] = Mine
        assert content == {"siglip": Mine, "clip": Mine}

    def test_who_has_wrapped_an_auto_class_since_calls_transformers(
        self, monkeypatch: pytest.MonkeyPatch, folders: Callable[[str, str], Path]
    ) -> None:
        with twinlens.register():
            ours = AutoTokenizer.from_pretrained
            monkeypatch.setattr(AutoTokenizer, "from_pretrained", staticmethod(lambda source: ours(source)))
        assert type(AutoTokenizer.from_pretrained(folders("CLIP", "twinlens"))).__module__.startswith("transformers")
