"""NaN and infinity, ids that no vocabulary has, and tensors that no layer computes with: an error that says where."""

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import families
from helpers.photographs import cat
from PIL import Image
from torch import Tensor

import twinlens
from twinlens.inference import ZeroShotClassifier

NAN, INFINITY = math.nan, math.inf
Run = Callable[..., tuple[int, str, str]]
all_families = pytest.mark.parametrize("family", families.FAMILIES)


@pytest.fixture(scope="module")
def shapes() -> tuple[twinlens.DualEncoderModel, twinlens.DualEncoderProcessor]:
    """A bundled model, not to be changed, with its processor."""
    model = twinlens.DualEncoderModel.from_pretrained("clip-shapes")
    return model, twinlens.DualEncoderProcessor.from_pretrained("clip-shapes")


def without_a_word(word: str) -> tuple[twinlens.DualEncoderModel, twinlens.DualEncoderProcessor]:
    """A model whose embedding of one token is NaN: texts with it are, and no others."""
    model = twinlens.DualEncoderModel.from_pretrained("clip-shapes")
    processor = twinlens.DualEncoderProcessor.from_pretrained("clip-shapes")
    token = processor.tokenizer(word)["input_ids"][1]
    model.text_model.embeddings.token_embedding.weight.data[token] = NAN
    return model, processor


class TestEncoders:
    @all_families
    @pytest.mark.parametrize("value", [NAN, INFINITY])
    @pytest.mark.parametrize("is_optimized", [False, True], ids=["plain", "optimised"])
    def test_bad_pixels(self, family: str, value: float, is_optimized: bool) -> None:
        model, inputs = families.model(family), families.images(family, 3)
        if is_optimized:
            model.optimize_for_inference()
        inputs["pixel_values"][1, 0, 0] = value
        for options in ({}, {"check_finite": True}):
            with (
                torch.inference_mode(is_optimized),
                pytest.raises(ValueError, match=r"^1 of 3 embeddings of images hold NaN or infinity, at 1\."),
            ):
                model.encode_image(**inputs, **options)
        found = model.encode_image(**inputs, check_finite=False)
        assert found.isfinite().all(dim=1).tolist() == [True, False, True]

    @all_families
    def test_float16_overflows(self, family: str) -> None:
        model, inputs = families.model(family), families.images(family)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.endswith("fc2.weight"):
                    value.mul_(1e5)
        assert model.bfloat16().encode_image(**inputs).isfinite().all()
        with pytest.raises(ValueError, match=r"^2 of 2 .*, at 0, 1\. .* float16 overflows where bfloat16 and float32"):
            model.half().encode_image(**inputs)

    @all_families
    def test_bad_weights(self, family: str) -> None:
        model, ids = families.model(family), families.token_ids(family)
        model.text_model.embeddings.token_embedding.weight.data[int(ids[2, 0])] = INFINITY
        ids[:2] = ids[:2].where(ids[:2] != ids[2, 0], 3 if ids[2, 0] != 3 else 4)
        with pytest.raises(ValueError, match=r"^1 of 3 embeddings of texts hold NaN or infinity, at 2\."):
            model.encode_text(ids)
        with pytest.raises(ValueError, match=r"^1 of 3 embeddings of texts"):
            model.encode_text(input_ids=ids)
        assert model.encode_text(ids, check_finite=False).isnan().any(dim=1).tolist() == [False, False, True]

    def test_many_rows(self) -> None:
        model = families.model("CLIP")
        pixels = families.pixels(40)
        pixels[5:30] = NAN
        with pytest.raises(ValueError, match=r"^25 of 40 .*, at 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 15 more\."):
            model.encode_image(pixels)

    @all_families
    def test_what_is_traced_has_no_values(self, family: str) -> None:
        model, inputs = families.model(family, attention="eager"), families.images(family)
        expected = model.encode_image(**inputs)
        exported = torch.export.export(_Images(model), (), inputs, strict=False)
        torch.testing.assert_close(exported.module()(**inputs), expected, rtol=0, atol=1e-5)
        ids = families.token_ids(family)
        each = torch.func.vmap(lambda text: model.encode_text(text[None])[0])(ids)
        torch.testing.assert_close(each, model.encode_text(ids), rtol=0, atol=1e-5)

    def test_gradients_pass(self) -> None:
        model = families.model("Siglip")
        pixels = families.pixels().requires_grad_()
        model.encode_image(pixels).sum().backward()
        assert pixels.grad is not None
        assert pixels.grad.abs().max() > 0


class _Images(torch.nn.Module):
    """`encode_image` as the forward of a module, for exporters."""

    def __init__(self, model: twinlens.DualEncoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model.encode_image(**inputs)


class TestAnyNumber:
    TEXTS = ("a red star", "a green circle", "a blue star", "a red star")

    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_texts_are_named_by_their_places(self, batch_size: int) -> None:
        model, processor = without_a_word("star")
        for items in ([*self.TEXTS], iter(self.TEXTS)):
            with pytest.raises(ValueError, match=r"^3 of 4 embeddings of texts hold NaN or infinity, at 0, 2, 3\."):
                model.encode(items, processor, batch_size=batch_size)
        found = model.encode([*self.TEXTS], processor, check_finite=False)
        assert found.isfinite().all(dim=1).tolist() == [False, True, False, False]

    def test_images_of_a_later_batch(self, shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = shapes
        calls: list[int] = []

        def encode(pixel_values: Tensor, **options: Any) -> Tensor:
            assert options == {"check_finite": False}  # looked at once, on the CPU
            calls.append(len(pixel_values))
            embeds = torch.ones(len(pixel_values), 4)
            embeds[0, 3] = NAN if len(calls) == 3 else 1
            return embeds

        monkeypatch.setattr(model, "encode_image", encode)
        with pytest.raises(ValueError, match=r"^1 of 2 embeddings of images hold NaN or infinity, at 4\."):
            model.encode([cat()] * 9, processor, batch_size=2)
        assert len(calls) == 4  # the next batch was begun, and no other

    def test_labels_and_scores_of_a_classifier(self) -> None:
        model, processor = without_a_word("star")
        with pytest.raises(ValueError, match=r"^1 of 2 embeddings of texts hold NaN or infinity, at 0\."):
            ZeroShotClassifier(model, processor, ["star", "circle"])
        classifier = ZeroShotClassifier(model, processor, ["square", "circle"])
        assert classifier.score([cat()]).isfinite().all()
        model.logit_scale.data.fill_(NAN)
        with pytest.raises(ValueError, match=r"^2 of 2 scores of images hold NaN or infinity, at 0, 1\."):
            classifier([cat(), cat()])
        assert classifier.score([cat()], check_finite=False).isnan().all()
        assert len(classifier(cat(), check_finite=False)) == 2

    def test_an_embedding_job_names_the_file(self, tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        model = twinlens.DualEncoderModel.from_pretrained("clip-shapes")
        processor = twinlens.DualEncoderProcessor.from_pretrained("clip-shapes")
        model.visual_projection.weight.data[3] = NAN
        for part in (model, processor):
            part.save_pretrained(tmp_path / "model")
        (tmp_path / "images").mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / "red.png")
        code, _, errors = run("embed", tmp_path / "model", tmp_path / "images", "--out", tmp_path / "index")
        assert code == 1
        assert "visual_projection.weight hold NaN or infinity" in caplog.text
        assert re.search(r"1 of 1 embeddings of images hold NaN or infinity, at \S+/images/red\.png\.", errors)


class TestLoading:
    @pytest.fixture
    def spoilt(self, tmp_path: Path) -> Path:
        model = families.model("Siglip")
        model.vision_model.encoder.layers[1].mlp.fc1.bias.data[5] = NAN
        model.text_model.head.weight.data[0, 0] = -INFINITY
        model.save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_bad_weights_are_named(self, spoilt: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            twinlens.DualEncoderModel.from_pretrained(spoilt, dtype=dtype)
        (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("twinlens")]
        names = ["vision_model.encoder.layers.1.mlp.fc1.bias", "text_model.head.weight"]
        assert message.startswith(f"{spoilt}: ")
        assert {*message.removeprefix(f"{spoilt}: ").partition(" hold")[0].split("; ")} == {*names}

    def test_overflow_in_the_dtype_of_the_model(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The file is sound."""
        model = families.model("Siglip")
        model.vision_model.encoder.layers[1].mlp.fc1.bias.data[5] = 1e5
        model.save_pretrained(tmp_path)
        for dtype, count in ((torch.float32, 0), (torch.float16, 1)):
            twinlens.DualEncoderModel.from_pretrained(tmp_path, dtype=dtype)
            assert caplog.text.count("vision_model.encoder.layers.1.mlp.fc1.bias hold NaN") == count

    def test_of_one_tower_and_below_a_prefix(self, spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
        twinlens.SiglipVisionModel.from_pretrained(spoilt)
        assert "encoder.layers.1.mlp.fc1.bias hold NaN" in caplog.text
        assert "text_model" not in caplog.text
        weights = twinlens.SiglipModel.from_pretrained(spoilt).state_dict()
        (spoilt / "model.safetensors").unlink()
        torch.save({f"module.{name}": value for name, value in weights.items()}, spoilt / "pytorch_model.bin")
        caplog.clear()
        twinlens.DualEncoderModel.from_pretrained(spoilt)
        assert caplog.text.count("hold NaN or infinity") == 1

    def test_sound_weights_are_not(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        families.model("CLIP").save_pretrained(tmp_path)
        twinlens.DualEncoderModel.from_pretrained(tmp_path)
        assert "NaN" not in caplog.text


class TestTensors:
    @all_families
    @pytest.mark.parametrize("id", [-1, -100, 99, 2**40])
    def test_ids_outside_of_the_vocabulary(self, family: str, id: int) -> None:
        ids = families.token_ids(family)
        ids[1, 2] = id
        with pytest.raises(
            ValueError, match=rf"from 0 to 98, for the model's vocabulary of 99, got {id}: take the pro"
        ):
            families.model(family).encode_text(ids)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
    def test_ids_that_are_no_whole_numbers(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=rf"must be whole numbers \(torch\.int64\), got {dtype}"):
            families.model("CLIP").encode_text(families.token_ids("CLIP").to(dtype))

    @pytest.mark.parametrize("arguments", [(), (None,)])
    def test_nothing(self, arguments: tuple[None, ...]) -> None:
        model: Any = families.model("Siglip")
        for encode, name in ((model.encode_image, "pixel_values"), (model.encode_text, "input_ids")):
            with pytest.raises(TypeError, match=rf"takes {name}, a tensor that the processor makes, got NoneType"):
                encode(*arguments)

    def test_the_processor_of_another_model(self, shapes: Any) -> None:
        model, _ = shapes
        other = twinlens.CLIPProcessor(twinlens.CLIPImageProcessor(), twinlens.CLIPTokenizer.from_official())
        with pytest.raises(ValueError, match=r"the model's vocabulary of 672, got 49407: take the processor of this"):
            model.encode(["a red star"], other)

    @all_families
    @pytest.mark.parametrize("is_optimized", [False, True], ids=["plain", "optimised"])
    def test_empty_batches(self, family: str, is_optimized: bool) -> None:
        model = families.model(family)
        if is_optimized:
            model.optimize_for_inference()
        with torch.inference_mode(is_optimized):
            dim = model.encode_image(**families.images(family)).shape[1]
            assert model.encode_image(**families.images(family, 0)).shape == (0, dim)
            assert model.encode_text(families.token_ids(family)[:0]).shape == (0, dim)

    @all_families
    def test_sparse_tensors(self, family: str) -> None:
        model, inputs = families.model(family), families.images(family)
        inputs["pixel_values"] = inputs["pixel_values"].to_sparse()
        with pytest.raises(TypeError, match=r"encode_image takes dense tensors, got a sparse one: pass pixel_values\."):
            model.encode_image(**inputs)
        with pytest.raises(TypeError, match=r"encode_text takes dense tensors, got a sparse one: pass input_ids\."):
            model.encode_text(families.token_ids(family).to_sparse())

    @all_families
    def test_tensors_without_values(self, family: str) -> None:
        model = families.model(family)
        inputs = {name: value.to("meta") for name, value in families.images(family).items()}
        with pytest.raises(ValueError, match=r"encode_image got pixel_values on the device meta, which have no values"):
            model.encode_image(**inputs)
        with pytest.raises(ValueError, match=r"encode_text got input_ids on the device meta, which have no values"):
            model.encode_text(families.token_ids(family).to("meta"))

    @pytest.mark.parametrize("family", families.SQUARE)
    def test_shapes_without_values(self, family: str) -> None:
        """Where the model has none either."""
        model = families.model(family).to("meta")
        dim = model.config.projection_dim if family == "CLIP" else 32
        assert model.encode_image(families.pixels().to("meta")).shape == (2, dim)
        assert model.encode_text(families.token_ids(family).to("meta")).shape == (3, dim)

    @all_families
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_float8(self, family: str, dtype: torch.dtype) -> None:
        model, inputs = families.model(family), families.images(family)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with pytest.raises(TypeError, match=r"of at least 16 bits, got torch\.float8_e\w+: pass pixel_values\.float"):
            model.encode_image(**inputs)
        with pytest.raises(
            TypeError, match=r"computes nothing with weights in torch\.float8_e\w+: load the model with"
        ):
            model.to(dtype).encode_text(families.token_ids(family))
