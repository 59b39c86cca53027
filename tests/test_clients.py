"""Converted folders and our objects in libraries that know nothing of them: sentence-transformers and datasets.

sentence-transformers is installed for the thorough tests. The others do what its 6.2.0 does
(`base/modules/transformer.py`: `preprocess`, `_call_multimodal_processor`, `forward`), by transformers' own classes.
"""

import inspect
import json
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from datasets.fingerprint import Hasher
from helpers import families
from helpers.builders import TRUNK_OPTIONS
from helpers.checkpoints import write
from helpers.photographs import PHOTOGRAPHS, cat
from PIL import Image
from torch import Tensor

import twinlens
from twinlens.catalogue import BUNDLED
from twinlens.conversion import convert
from twinlens.toy_world import describe_kind, draw_scene, render

# Of one token, of as many as are read, of more: none may depend on the others in its batch.
TEXTS = ["star", "a red star", "a picture of a green circle and a white arrow", "star " * 40, "", "A Blue, RING!"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled checkpoints, a SigLIP and a CLIP without a tokenizer, and an image tower alone."""
    root = tmp_path_factory.mktemp("converted")
    for name in BUNDLED:
        convert(name, root / name, verify=False)
    for name, case in (("siglip-images", "v1"), ("clip-images", "archive"), ("tower", "timm")):
        write(root / case, case)
        convert(root / case, root / name, verify=False, **(TRUNK_OPTIONS if case == "timm" else {}))
    return {path.name: path for path in root.iterdir() if path.is_dir()}


def restated_encode(folder: Path, modality: str, inputs: list[Any]) -> Tensor:
    """Return what `SentenceTransformer(folder).encode(inputs)` does, for one batch."""
    first, second = json.loads((folder / "modules.json").read_text())
    assert first == {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    assert second == {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    assert settings["module_output_name"] == "sentence_embedding"
    processing = settings.get("processing_kwargs", {})
    model, processor = plain(folder)
    if isinstance(processor, transformers.ProcessorMixin):
        features = processor(
            **{{"image": "images"}.get(modality, modality): inputs},
            text_kwargs={"padding": True, "truncation": "longest_first"} | processing.get("text", {}),
            images_kwargs=processing.get("image", {}),
            common_kwargs={"return_tensors": "pt"},
        )
    else:
        assert modality == "image"
        features = processor(inputs, return_tensors="pt")
    method = getattr(model, settings["modality_config"][modality]["method"])
    parameters = inspect.signature(method).parameters
    with torch.inference_mode():
        outputs = method(**{name: value for name, value in features.items() if name in parameters}, return_dict=True)
    return torch.nn.functional.normalize(outputs[settings["modality_config"][modality]["method_output_name"]], dim=-1)


def own(folder: Path) -> tuple[twinlens.DualEncoderModel, twinlens.DualEncoderProcessor]:
    return twinlens.DualEncoderModel.from_pretrained(folder), twinlens.DualEncoderProcessor.from_pretrained(folder)


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    return transformers.AutoModel.from_pretrained(folder), transformers.AutoProcessor.from_pretrained(folder)


class TestSentenceTransformers:
    @pytest.mark.parametrize("name", BUNDLED)
    def test_texts_of_any_length_and_batch(self, name: str, folders: dict[str, Path]) -> None:
        model, processor = own(folders[name])
        expected = model.encode(TEXTS, processor)
        batches = [TEXTS, TEXTS[:2], *([text] for text in TEXTS)]
        for batch in batches:
            rows = [TEXTS.index(text) for text in batch]
            torch.testing.assert_close(restated_encode(folders[name], "text", batch), expected[rows], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", [*BUNDLED, "siglip-images", "clip-images"])
    def test_images(self, name: str, folders: dict[str, Path]) -> None:
        model, processor = own(folders[name])
        size = model.config.vision_config.image_size
        images = [photograph.resize((size, size)) for photograph in PHOTOGRAPHS.values()]
        expected = model.encode(images, processor)
        torch.testing.assert_close(restated_encode(folders[name], "image", images), expected, rtol=0, atol=1e-6)

    def test_images_that_are_resized(self, folders: dict[str, Path]) -> None:
        """SigLIP's official resize has no antialiasing, which plain transformers cannot leave out."""
        model, processor = own(folders["siglip-shapes"])
        cosine = (restated_encode(folders["siglip-shapes"], "image", [cat()]) * model.encode([cat()], processor)).sum()
        theirs = plain(folders["siglip-shapes"])[1](images=[cat()], return_tensors="pt")["pixel_values"]
        levels = (processor(images=cat())["pixel_values"] - theirs).abs().mean() * 127.5
        page = (Path(__file__).parent.parent / "docs" / "conversion.md").read_text(encoding="utf-8")
        assert f"pixels of SigLIP are {levels:.1f} of 255 levels" in " ".join(page.split())
        assert f"a cosine of {cosine:.3f}." in " ".join(page.split())

    def test_an_image_tower_alone(self, folders: dict[str, Path]) -> None:
        image = cat().resize((48, 48))
        processor = twinlens.DualEncoderProcessor.from_pretrained(folders["tower"])
        outputs = twinlens.SiglipVisionModel.from_pretrained(folders["tower"])(**processor(images=image))
        expected = torch.nn.functional.normalize(outputs.pooler_output, dim=-1)
        torch.testing.assert_close(restated_encode(folders["tower"], "image", [image]), expected, rtol=0, atol=1e-6)

    def test_without_a_tokenizer_texts_are_not_promised(self, folders: dict[str, Path]) -> None:
        for name in ("siglip-images", "clip-images", "tower"):
            settings = json.loads((folders[name] / "sentence_bert_config.json").read_text())
            assert settings["modality_config"].keys() == {"image"}
            assert "ImageProcessor" in type(transformers.AutoProcessor.from_pretrained(folders[name])).__name__

    def test_versions_that_cannot_read_it_say_so(self, folders: dict[str, Path]) -> None:
        """They log that a newer version made the folder; 5.4 is the first that reads `modality_config`."""
        settings = json.loads((folders["siglip-shapes"] / "config_sentence_transformers.json").read_text())
        assert settings == {"__version__": {"sentence_transformers": "5.4.0"}}

    @pytest.mark.thorough
    @pytest.mark.filterwarnings("ignore")
    def test_the_library_itself(self, folders: dict[str, Path], tmp_path: Path) -> None:
        library = pytest.importorskip("sentence_transformers")
        for name in BUNDLED:
            model, processor = own(folders[name])
            encoder = library.SentenceTransformer(str(folders[name]), device="cpu")
            assert encoder.get_embedding_dimension() == 64
            assert encoder.similarity_fn_name == "cosine"
            encoder.save_pretrained(str(tmp_path / name))
            images = [photograph.resize((64, 64)) for photograph in PHOTOGRAPHS.values()]
            for folder in (folders[name], tmp_path / name):  # it writes our files again
                encoder = library.SentenceTransformer(str(folder), device="cpu")
                for size in (1, 2, 32):
                    texts = encoder.encode(TEXTS, batch_size=size, convert_to_tensor=True)
                    torch.testing.assert_close(texts, model.encode(TEXTS, processor), rtol=0, atol=1e-6)
                pixels = encoder.encode(images, convert_to_tensor=True)
                torch.testing.assert_close(pixels, model.encode(images, processor), rtol=0, atol=1e-6)
        for name in ("siglip-images", "clip-images", "tower"):
            encoder = library.SentenceTransformer(str(folders[name]), device="cpu")
            expected = restated_encode(folders[name], "image", [cat()])
            torch.testing.assert_close(encoder.encode([cat()], convert_to_tensor=True), expected, rtol=0, atol=1e-6)
            with pytest.raises(ValueError, match="text"):
                encoder.encode(["a cat"])

    @pytest.mark.thorough
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", BUNDLED)
    def test_our_class_loads_there(self, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
        """It finds the outputs in the annotation of `forward`. Also from a folder without the three files for it."""
        library = pytest.importorskip("sentence_transformers")
        for part in plain(folders[name]):
            part.save_pretrained(tmp_path)
        assert not (tmp_path / "modules.json").exists()
        model, processor = own(folders[name])
        images = [photograph.resize((64, 64)) for photograph in PHOTOGRAPHS.values()]
        for folder in (folders[name], tmp_path):
            with twinlens.register():
                encoder = library.SentenceTransformer(str(folder), device="cpu")
            assert type(encoder[0].model) is type(model)
            assert type(encoder[0].processor) is type(processor)
            for items in (TEXTS, images):
                found = encoder.encode(items, convert_to_tensor=True, normalize_embeddings=True)
                torch.testing.assert_close(found, model.encode(items, processor), rtol=0, atol=1e-6)

    @pytest.mark.thorough
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", BUNDLED)
    def test_training_there(self, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
        """With our class as with transformers': the same losses and weights after three steps."""
        library = pytest.importorskip("sentence_transformers")
        kinds = [("red", "star"), ("purple", "heart"), ("green", "circle"), ("blue", "ring")]
        images = [render(draw_scene(Random(0), [kind], "one")) for kind in kinds]  # type: ignore[list-item]
        pairs = Dataset.from_dict({"image": images, "text": [describe_kind(kind) for kind in kinds]})  # type: ignore[arg-type]
        trained = {}
        for origin in ("transformers", "twinlens"):
            registration = twinlens.register() if origin == "twinlens" else nullcontext()
            with registration:
                encoder = library.SentenceTransformer(str(folders[name]), device="cpu")
            assert type(encoder[0].model).__module__.startswith(origin)
            arguments = library.SentenceTransformerTrainingArguments(
                str(tmp_path / origin), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True
            )
            loss = library.sentence_transformer.losses.MultipleNegativesRankingLoss(encoder)
            trainer = library.SentenceTransformerTrainer(encoder, arguments, pairs, loss=loss)
            start = encoder[0].model.text_model.embeddings.token_embedding.weight.clone()
            trainer.train()
            weights = encoder[0].model.state_dict()
            assert not torch.equal(start, weights["text_model.embeddings.token_embedding.weight"])
            trained[origin] = weights, trainer.state.log_history[-1]["train_loss"]
            encoder.save_pretrained(str(tmp_path / origin / "saved"))
            again = library.SentenceTransformer(str(tmp_path / origin / "saved"), device="cpu")
            assert np.abs(again.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-6
        assert trained["twinlens"][1] == pytest.approx(trained["transformers"][1], abs=1e-5)
        torch.testing.assert_close(trained["twinlens"][0], trained["transformers"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("siglip-shapes", marks=pytest.mark.thorough), "clip-shapes"])
def test_a_folder_that_transformers_has_saved_keeps_its_processor(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers 5 has no `preprocessor_config.json`: the settings of images are in `processor_config.json`."""
    model, processor = plain(folders[name])
    model.save_pretrained(tmp_path / "saved")
    processor.image_processor.do_normalize = False
    processor.save_pretrained(tmp_path / "saved")
    processor.image_processor.do_normalize = True
    convert(tmp_path / "saved", tmp_path / "converted", verify=False)
    again = twinlens.DualEncoderProcessor.from_pretrained(tmp_path / "converted")
    assert again.image_processor.do_normalize is False
    assert again.tokenizer("a red star")["input_ids"] == own(folders[name])[1].tokenizer("a red star")["input_ids"]


@pytest.mark.parametrize("name", BUNDLED)
def test_both_snippets_of_a_card_name_what_is_drawn(name: str, folders: dict[str, Path]) -> None:
    kinds = [("red", "star"), ("purple", "heart"), ("green", "circle")]
    images = [render(draw_scene(Random(0), [kind], "one")) for kind in kinds]  # type: ignore[list-item]
    texts = [describe_kind(kind) for kind in kinds]  # type: ignore[arg-type]
    blocks = re.findall(r"```python\n(.*?)```", (folders[name] / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        namespace: dict[str, Any] = {"images": images, "texts": texts}
        exec(code.replace("FOLDER", str(folders[name])), namespace)
        if "answers" in namespace:
            assert [answers[0]["label"] for answers in namespace["answers"]] == texts
        else:
            assert namespace["logits"].argmax(dim=1).tolist() == [0, 1, 2]


class TestFingerprints:
    """`datasets` finds the results of an earlier `map` by hashing the pickles of all that its function uses."""

    @staticmethod
    def assert_unchanged(thing: object, *uses: Callable[[], object]) -> None:
        before = Hasher.hash(thing)
        for use in uses:
            use()
        assert Hasher.hash(thing) == before
        assert Hasher.hash(pickle.loads(pickle.dumps(thing))) == before

    @pytest.mark.parametrize("name", BUNDLED)
    def test_of_a_tokenizer_and_its_processor(self, name: str, folders: dict[str, Path], tmp_path: Path) -> None:
        processor = own(folders[name])[1]
        tokenizer, long = processor.tokenizer, "star " * 40
        uses = (
            lambda: tokenizer(["a", "b c"]),
            lambda: tokenizer("a b", padding=True, return_tensors="np"),
            lambda: tokenizer([long, "a"]),  # cut, with a warning
            lambda: tokenizer(long, add_special_tokens=False),  # longer than the model reads
            lambda: tokenizer("a b", max_length=3, truncation=True),
            lambda: tokenizer("a", split_special_tokens=False),
            lambda: tokenizer.pad({"input_ids": [[1, 2], [1]]}),
            lambda: tokenizer.batch_decode([[3, 4]]),
            lambda: processor(text=[long], images=cat()),
            lambda: processor.save_pretrained(tmp_path),
        )
        self.assert_unchanged(tokenizer, *uses)
        self.assert_unchanged(processor, *uses)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("image_processor", ["CLIP", "Siglip", "Siglip2"])
    def test_of_an_image_processor(self, image_processor: str) -> None:
        processor = getattr(twinlens, f"{image_processor}ImageProcessor")()
        wide = np.zeros((8, 2000, 3), np.uint8)  # NaFlex warns
        bright = Image.new("I", (20, 20), 60000)  # all warn
        self.assert_unchanged(
            processor,
            lambda: processor([cat()]),
            lambda: processor(wide),
            lambda: processor(bright),
            lambda: processor([cat(), cat()], resize_engine="torch", num_workers=2),
            processor.describe,
            processor.to_dict,
        )

    @pytest.mark.parametrize("family", [pytest.param("CLIP", marks=pytest.mark.thorough), "Siglip"])
    def test_of_a_model(self, family: str) -> None:
        model = families.model(family)
        inputs = {"pixel_values": families.pixels(), "input_ids": families.token_ids(family, 2)}
        self.assert_unchanged(
            model,
            lambda: model(**inputs, return_loss=True).loss,
            lambda: model.encode_text(inputs["input_ids"][:, :9]),
            lambda: model.encode_image(inputs["pixel_values"]),
            lambda: model(**inputs, output_hidden_states=True),  # here transformers installs its hooks
            lambda: model(**inputs, output_attentions=True),
        )
        copied = pickle.loads(pickle.dumps(model))(**inputs, output_hidden_states=True, output_attentions=True)
        expected = model(**inputs, output_hidden_states=True, output_attentions=True)
        for output in ("vision_model_output", "text_model_output"):
            for kind in ("hidden_states", "attentions"):
                torch.testing.assert_close(copied[output][kind], expected[output][kind], rtol=0, atol=0)

    def test_a_second_map_is_read_from_the_cache(self, folders: dict[str, Path], tmp_path: Path) -> None:
        Dataset.from_dict({"text": ["a red star", "star " * 40]}).save_to_disk(str(tmp_path))
        data = Dataset.load_from_disk(str(tmp_path))
        tokenizer = twinlens.DualEncoderProcessor.from_pretrained(folders["siglip-shapes"]).tokenizer
        files = [data.map(lambda row: {"ids": tokenizer(row["text"])["input_ids"]}).cache_files for _ in range(2)]
        assert files[0] == files[1]
