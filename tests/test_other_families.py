"""Dual encoders that only transformers writes: its own classes and processors behind the surface of this package."""

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.other_families import bert, build_image_processor, build_tokenizer, dino, draw_images, write_folder
from safetensors.torch import load_file
from typer.testing import CliRunner

from twinlens import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor, SiglipVisionConfig, SiglipVisionModel
from twinlens.cli import app
from twinlens.configuration import OTHER_FAMILIES
from twinlens.conversion import convert, export
from twinlens.formats import FormatError
from twinlens.inference import classify_images, load_exact_model, probabilities
from twinlens.losses import softmax_loss
from twinlens.parity import verify
from twinlens.toy_world import ShapesDataset
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments, TrainingPlan, add_lora, freeze, train
from twinlens.training.run import WORK_FOLDER

TEXTS = ["a photo of the red star", "blue circle", "a big green square above a small yellow triangle ."]
FAMILIES = list(OTHER_FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        write_folder(name, root / name)
    return root


@pytest.fixture(scope="module")
def folder(folders, family) -> Path:
    return folders / family


@pytest.fixture(scope="module")
def model(folder) -> DualEncoderModel:
    return DualEncoderModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def native(folder) -> Any:
    return transformers.AutoModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder) -> DualEncoderProcessor:
    return DualEncoderProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(processor) -> Any:
    return processor(images=draw_images(3), text=TEXTS)


class TestModel:
    def test_is_the_class_of_transformers(self, model, native, family):
        assert isinstance(model, DualEncoderModel)
        assert isinstance(model, type(native))
        assert type(model).__name__ == type(native).__name__
        assert type(model.config) is type(native.config)
        assert model.state_dict().keys() == native.state_dict().keys()

    def test_outputs_are_those_of_transformers(self, model, native, inputs):
        with torch.no_grad():
            expected = native(**inputs, return_loss=True)
            outputs = model(**inputs, return_loss=True)
            images, texts = model.encode_image(**inputs), model.encode_text(**inputs)
        assert type(outputs) is type(expected)
        torch.testing.assert_close(images, expected.image_embeds, atol=1e-6, rtol=0)
        torch.testing.assert_close(texts, expected.text_embeds, atol=1e-6, rtol=0)
        torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.logits(images, texts), expected.logits_per_image, atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-5, rtol=0)
        for vectors in (images, texts):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))

    @pytest.mark.thorough
    def test_gradients_of_the_loss_are_those_of_transformers(self, model, native, inputs):
        """ALIGN's loss is smoothed, and its scale is a division; the other scales are logarithms."""
        gradients = []
        for one in (model, native):
            loss = one(**inputs, return_loss=True).loss
            trained = {name: value for name, value in one.named_parameters() if "projection" in name or "." not in name}
            gradients.append(dict(zip(trained, torch.autograd.grad(loss, [*trained.values()]), strict=True)))
        assert gradients[0].keys() == gradients[1].keys() >= {"text_projection.weight"}
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)

    @pytest.mark.thorough
    def test_one_of_a_batch_is_encoded_as_alone(self, model, processor, inputs):
        with torch.no_grad():
            texts = torch.cat([model.encode_text(**processor(text=text)) for text in TEXTS])
            images = torch.cat([model.encode_image(pixels[None]) for pixels in inputs["pixel_values"]])
            torch.testing.assert_close(texts, model.encode_text(**inputs), atol=1e-6, rtol=0)
            torch.testing.assert_close(images, model.encode_image(**inputs), atol=1e-6, rtol=0)

    def test_token_types_and_mask_reach_the_text_tower(self, model, inputs):
        with torch.no_grad():
            expected = model.encode_text(**inputs)
            whole = model.encode_text(inputs["input_ids"])
            assert not torch.allclose(whole[1], expected[1], atol=1e-4) or "metaclip" in model.config.model_type
            if "token_type_ids" in inputs:
                other = model.encode_text(**{**inputs, "token_type_ids": 1 - inputs["token_type_ids"]})
                assert not torch.allclose(other, expected, atol=1e-4)

    @pytest.mark.thorough
    def test_hidden_states_are_returned(self, folder, native, inputs):
        wanted = {"output_hidden_states": True, **inputs}
        model = DualEncoderModel.from_pretrained(folder)  # no other test may pickle it: transformers adds hooks
        ours, theirs = model(**wanted), native(**wanted)
        for name in ("text_model_output", "vision_model_output"):
            assert len(ours[name].hidden_states) == len(theirs[name].hidden_states) > 1

    @pytest.mark.thorough
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_results_are_float32_for_any_weights(self, folder, model, inputs, dtype):
        small = DualEncoderModel.from_pretrained(folder, dtype=dtype)
        assert small.dtype == dtype
        with torch.no_grad():
            images, texts = small.encode_image(**inputs), small.encode_text(**inputs)
            logits = small.logits(images, texts)
            expected = model.encode_image(**inputs)
        assert images.dtype == texts.dtype == logits.dtype == torch.float32
        torch.testing.assert_close(images, expected, atol=0.03, rtol=0)  # bfloat16 has 8 bits

    @pytest.mark.thorough
    def test_saved_folder_is_transformers_own(self, model, native, tmp_path):
        model.save_pretrained(tmp_path / "ours")
        native.save_pretrained(tmp_path / "native")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "native" / file).read_bytes()
        assert type(transformers.AutoModel.from_pretrained(tmp_path / "ours")) is type(native)

    @pytest.mark.thorough
    def test_copies(self, model, inputs):
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(copied) is type(model)
            with torch.no_grad():
                assert torch.equal(copied.encode_text(**inputs), model.encode_text(**inputs))

    @pytest.mark.thorough
    def test_a_model_from_a_configuration(self, model, folder):
        config = DualEncoderConfig.from_pretrained(folder)
        assert type(DualEncoderModel(config)) is type(model)
        assert type(DualEncoderModel.from_pretrained(folder, config=config)) is type(model)

    @pytest.mark.thorough
    def test_needs_images_or_texts(self, model):
        with pytest.raises(ValueError, match="needs pixel_values, input_ids or both"):
            model()

    @pytest.mark.thorough
    def test_missing_scalars_get_their_first_values(self, folder, tmp_path, model):
        """transformers leaves the scale of some families as whatever was in memory."""
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: value for name, value in weights.items() if "." in name}
        assert len(kept) == len(weights) - 1
        loaded = DualEncoderModel.from_pretrained(None, config=model.config, state_dict=kept)
        expected = getattr(
            model.config, "temperature_init_value", getattr(model.config, "logit_scale_init_value", None)
        )
        (scalar,) = loaded.parameters(recurse=False)
        assert scalar.item() == pytest.approx(expected)


class TestProcessor:
    def test_values_are_those_of_transformers(self, folder, processor, inputs, family):
        native = transformers.AutoProcessor.from_pretrained(folder)
        padding = {} if family == "align" else {"padding": True}
        expected = native(images=draw_images(3), text=TEXTS, return_tensors="pt", **padding)
        assert inputs.keys() == expected.keys()
        for name, value in inputs.items():
            assert torch.equal(value, expected[name]), name

    @pytest.mark.thorough
    def test_any_kind_of_image_and_text(self, processor, inputs, tmp_path):
        image = draw_images(1)[0]
        image.save(tmp_path / "a.png")
        grey = image.convert("L")
        for form in (str(tmp_path / "a.png"), tmp_path / "a.png", torch.tensor(list(image.tobytes())).view(20, 30, 3)):
            form = form.to(torch.uint8).numpy() if isinstance(form, torch.Tensor) else form
            assert torch.equal(processor(images=form)["pixel_values"], inputs["pixel_values"][:1])
        assert processor(images=[grey, image.convert("RGBA")])["pixel_values"].shape == inputs["pixel_values"][:2].shape
        assert torch.equal(processor(text=(text for text in TEXTS))["input_ids"], inputs["input_ids"])
        assert processor(text=[])["input_ids"].shape[0] == processor(images=[])["pixel_values"].shape[0] == 0
        with pytest.raises(TypeError, match=r"Expected text, got int at \[1\] of the list"):
            processor(text=["a", 3])
        with pytest.raises(TypeError, match="has a setting named colour"):
            processor(text="a", colour=1)
        with pytest.raises(FileNotFoundError, match=r"Image 1 of 2: .*nowhere\.png"):
            processor(images=[image, "nowhere.png"])

    @pytest.mark.thorough
    def test_long_texts_are_cut_to_what_the_model_takes(self, processor, model, family):
        long = processor(text=" ".join(["red"] * 200))
        length = {"align": 64, "altclip": 22}.get(family, 24)
        assert long["input_ids"].shape == (1, length)
        assert model.encode_text(**long).isfinite().all()

    @pytest.mark.thorough
    def test_saved_processor(self, processor, folder, inputs, tmp_path):
        processor.save_pretrained(tmp_path)
        native = transformers.AutoProcessor.from_pretrained(
            tmp_path, config=transformers.AutoConfig.from_pretrained(folder)
        )
        shutil.copy(folder / "config.json", tmp_path)
        again = DualEncoderProcessor.from_pretrained(tmp_path)
        assert torch.equal(again(text=TEXTS)["input_ids"], inputs["input_ids"])
        assert torch.equal(again(images=draw_images(3))["pixel_values"], inputs["pixel_values"])
        assert type(native.image_processor) is type(processor.image_processor.native)  # type: ignore[attr-defined]
        assert type(pickle.loads(pickle.dumps(processor))) is type(processor)
        assert type(processor.tokenizer).__name__ in processor.describe()

    @pytest.mark.thorough
    def test_without_a_vocabulary_it_takes_images_only(self, folder, tmp_path, processor):
        """transformers makes a tokenizer of special tokens alone."""
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        for file in tmp_path.glob("tokenizer*"):
            file.unlink()
        images_only = DualEncoderProcessor.from_pretrained(tmp_path)
        assert images_only.tokenizer is None
        assert "pixel_values" in images_only(images=draw_images(1))
        with pytest.raises(ValueError, match="pass one, from_pretrained"):
            images_only(text="a red star")
        brought = DualEncoderProcessor.from_pretrained(tmp_path, tokenizer=folder)
        assert torch.equal(brought(text=TEXTS)["input_ids"], processor(text=TEXTS)["input_ids"])


class TestUse:
    @pytest.mark.thorough
    def test_zero_shot(self, folder, model, processor, tmp_path):
        image = draw_images(1)[0]
        image.save(tmp_path / "a.png")
        (answer,) = classify_images(folder, [tmp_path / "a.png"], TEXTS, templates="{}")
        scores = {entry["label"]: entry["score"] for entry in answer}
        inputs = transformers.AutoProcessor.from_pretrained(folder)(
            images=image, text=TEXTS, return_tensors="pt", padding="max_length", max_length=20, truncation=True
        )
        expected = transformers.AutoModel.from_pretrained(folder)(**inputs).logits_per_image.softmax(dim=-1)
        assert scores == pytest.approx(dict(zip(TEXTS, expected[0].tolist(), strict=True)), abs=1e-5)

    @pytest.mark.thorough
    def test_lora(self, folder, inputs, tmp_path):
        adapted = add_lora(DualEncoderModel.from_pretrained(folder), 2)
        names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert names
        assert all("lora" in name for name in names)
        assert any("text_model" in name for name in names)
        adapted(**inputs, return_loss=True).loss.backward()
        merged = adapted.merge_and_unload()
        assert merged.state_dict().keys() == DualEncoderModel.from_pretrained(folder).state_dict().keys()

    @pytest.mark.thorough
    def test_gradient_cache_gives_the_gradients_of_the_batch(self, folder, inputs, tmp_path, monkeypatch):
        gradients = []
        for size in (None, 2):
            model = DualEncoderModel.from_pretrained(folder)
            monkeypatch.setattr(model, "train", lambda mode=True: None)  # without dropout and statistics of slices
            arguments = ContrastiveTrainingArguments(output_dir=str(tmp_path), gradient_cache_size=size, use_cpu=True)
            trainer = ContrastiveTrainer(model=model, args=arguments)
            trainer.current_gradient_accumulation_steps = 1  # as at the beginning of `train`
            loss = trainer.training_step(model, dict(inputs))
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"": loss})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)

    @pytest.mark.thorough
    def test_command_line(self, folder, tmp_path):
        draw_images(1)[0].save(tmp_path / "a.png")
        result = CliRunner().invoke(
            app, ["classify", str(folder), str(tmp_path / "a.png"), "--labels", "star,circle", "--json"]
        )
        assert result.exit_code == 0, result.output
        scores = json.loads(result.stdout)[0]["scores"]
        assert scores.keys() == {"star", "circle"}
        assert sum(scores.values()) == pytest.approx(1)

    @pytest.mark.thorough
    def test_has_no_maps(self, folder, tmp_path):
        draw_images(1)[0].save(tmp_path / "a.png")
        arguments = [str(folder), str(tmp_path / "a.png"), "--text", "star", "--out", str(tmp_path / "map.png")]
        result = CliRunner().invoke(app, ["explain", *arguments])
        assert result.exit_code == 1
        assert "Maps need image towers of this package" in result.output

    def test_needs_no_conversion(self, folder, tmp_path):
        for refuse in (
            lambda: convert(folder, tmp_path / "out"),
            lambda: verify(folder, folder),
            lambda: export(folder, tmp_path / "out.pt", format="openai"),
        ):
            with pytest.raises(FormatError, match=r"needs no conversion: DualEncoderModel\.from_pretrained loads it"):
                refuse()
        assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", ["clipseg", "blip", "xclip", "owlvit", "groupvit", "flava", "bert"])
def test_other_models_stay_refused(tmp_path, model_type):
    assert model_type in transformers.CONFIG_MAPPING
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for loads in (DualEncoderModel, DualEncoderProcessor, DualEncoderConfig):
        with pytest.raises(ValueError, match=rf"[Ee]xpected .*got '{model_type}'"):
            loads.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, Path]:
    """Folders of an image tower and of a text tower, with an image processor and a tokenizer."""
    root = tmp_path_factory.mktemp("towers")
    dino().save_pretrained(root / "dino")
    build_image_processor("vision-text-dual-encoder", 16).save_pretrained(root / "dino")
    bert().save_pretrained(root / "bert")
    build_tokenizer("bert").save_pretrained(root / "bert")
    return {"vision": root / "dino", "text": root / "bert"}


def own_tower() -> SiglipVisionModel:
    config = SiglipVisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    return SiglipVisionModel(config)


class TestFromTowers:
    @pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
    def test_keeps_the_towers_and_starts_as_the_papers_say(self, towers, loss):
        model = DualEncoderModel.from_towers(**towers, projection_dim=6, loss=loss)
        for tower, name in ((dino(), "vision_model"), (bert(), "text_model")):
            own = getattr(model, name).state_dict()
            assert all(torch.equal(own[key], value) for key, value in tower.state_dict().items())
        inputs = DualEncoderProcessor.from_parts(**towers)(images=draw_images(3), text=TEXTS)
        images, texts = model.encode_image(**inputs), model.encode_text(**inputs)
        assert images.shape == texts.shape == (3, 6)
        scale, bias = (10, -10) if loss == "sigmoid" else (1 / 0.07, 0)
        torch.testing.assert_close(model.logits(images, texts), scale * images @ texts.t() + bias)
        assert not model.training
        expected = {
            "sigmoid": torch.nn.functional.logsigmoid((2 * torch.eye(3) - 1) * model.logits(images, texts)).sum() / -3,
            "softmax": softmax_loss(images, texts, model.logit_scale),
        }[loss]
        torch.testing.assert_close(model(**inputs, return_loss=True).loss, expected)
        assert torch.equal(
            probabilities(model, torch.zeros(1, 4)), torch.full((1, 4), 0.5 if loss == "sigmoid" else 0.25)
        )

    @pytest.mark.thorough
    @pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
    def test_saved_folder(self, towers, loss, tmp_path):
        model = DualEncoderModel.from_towers(**towers, projection_dim=6, loss=loss)
        if loss == "sigmoid":
            with torch.no_grad():
                model.logit_bias.fill_(-7)
        processor = DualEncoderProcessor.from_parts(**towers)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        again = load_exact_model(tmp_path)
        inputs = DualEncoderProcessor.from_pretrained(tmp_path)(images=draw_images(3), text=TEXTS)
        assert torch.equal(inputs["input_ids"], processor(text=TEXTS)["input_ids"])
        with torch.no_grad():
            ours = model(**inputs).logits_per_image
            torch.testing.assert_close(again(**inputs).logits_per_image, ours, rtol=0, atol=1e-5)
            native = transformers.AutoModel.from_pretrained(tmp_path)
            theirs = native(**inputs).logits_per_image
        assert type(native) is transformers.VisionTextDualEncoderModel
        torch.testing.assert_close(theirs + (-7 if loss == "sigmoid" else 0), ours, atol=1e-5, rtol=0)
        read = transformers.AutoProcessor.from_pretrained(tmp_path)
        assert type(read) is transformers.VisionTextDualEncoderProcessor

    @pytest.mark.thorough
    def test_a_folder_without_the_bias_starts_with_it(self, towers, tmp_path):
        config = DualEncoderModel.from_towers(**towers).config
        transformers.VisionTextDualEncoderModel(config).save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(values | {"loss": "sigmoid"}))
        model = DualEncoderModel.from_pretrained(tmp_path)
        assert model.logit_bias.item() == -10
        (tmp_path / "config.json").write_text(json.dumps(values | {"loss": "square"}))
        with pytest.raises(ValueError, match="'softmax' or 'sigmoid' as the loss"):
            DualEncoderModel.from_pretrained(tmp_path)

    @pytest.mark.thorough
    def test_models_and_dual_encoders_as_towers(self, folders, towers):
        text = bert().to(torch.bfloat16).train()
        chinese = transformers.AutoModel.from_pretrained(folders / "chinese_clip")
        model = DualEncoderModel.from_towers(folders / "chinese_clip", text)
        assert model.text_model is text
        assert model.dtype == torch.float32
        assert type(model.vision_model) is transformers.ChineseCLIPVisionModel
        own = model.vision_model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in chinese.vision_model.state_dict().items())

    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("vision", "text", "message"),
        [
            (bert, bert, r"vision tower for pixel_values, got a BertModel \('bert'\), which takes input_ids"),
            (dino, dino, r"text tower for input_ids, got a Dinov2Model \('dinov2'\), which takes pixel_values"),
            (dino, lambda: transformers.BertModel(bert().config, add_pooling_layer=False), r"BertModel \(.*\) without"),
            (dino, lambda: transformers.DistilBertModel(transformers.DistilBertConfig(
                dim=16, hidden_dim=32, n_layers=1, n_heads=2, vocab_size=40)), r"a DistilBertModel \(.*\) without one"),
            (lambda: transformers.ResNetModel(transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])), bert, "hidden_size, got a ResNetModel"),
            (dino, lambda: transformers.SiglipTextModel(transformers.SiglipTextConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2)), "that AutoModel loads, got a SiglipText"),
            (own_tower, bert, "transformers' own class, got a SiglipVision"),
            (dino, lambda: 7, "a model of transformers as text"),
        ],
    )  # fmt: skip
    def test_wrong_towers(self, vision, text, message):
        with pytest.raises((ValueError, TypeError), match=message):
            DualEncoderModel.from_towers(vision(), text())

    @pytest.mark.thorough
    def test_wrong_settings(self, towers):
        with pytest.raises(ValueError, match=r"loss softmax or sigmoid, .* got 'mse' and 512"):
            DualEncoderModel.from_towers(**towers, loss="mse")
        wrong: list[Any] = [0, 2.5, "8", None]
        for dim in wrong:
            with pytest.raises(ValueError, match=f"at least 1, got 'softmax' and {dim!r}"):
                DualEncoderModel.from_towers(**towers, projection_dim=dim)

    @pytest.mark.thorough
    def test_a_saved_folder_with_a_tower_that_pools_nothing(self, tmp_path):
        """transformers saves it, and fails when it is run."""
        text = transformers.DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2, vocab_size=40)
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(dino().config, text)
        transformers.VisionTextDualEncoderModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"a DistilBertModel \(.*\) without one"):
            DualEncoderModel.from_pretrained(tmp_path)

    @pytest.mark.thorough
    def test_parts_that_are_missing(self, towers, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no image processor"):
            DualEncoderProcessor.from_parts(towers["text"], towers["text"])
        with pytest.raises(ValueError, match="holds no vocabulary"):
            DualEncoderProcessor.from_parts(towers["vision"], towers["vision"])
        DualEncoderModel.from_towers(**towers).save_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match="from_parts makes a processor"):
            DualEncoderProcessor.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for pair in ShapesDataset("train", 24):
        pair["image"].save(folder / f"{pair['index']}.png")
        (folder / f"{pair['index']}.txt").write_text(pair["text"])
    return folder


class TestTraining:
    @pytest.mark.thorough
    def test_locked_image_tuning(self, towers, pairs, tmp_path):
        start, end = tmp_path / "start", tmp_path / "end"
        DualEncoderModel.from_towers(**towers, projection_dim=8, loss="sigmoid").save_pretrained(start)
        DualEncoderProcessor.from_parts(**towers).save_pretrained(start)
        settings = [
            "--freeze",
            "image",
            "--steps",
            "12",
            "--batch-size",
            "8",
            "--learning-rate",
            "1e-2",
            "--log-steps",
            "1",
        ]
        result = CliRunner().invoke(app, ["train", str(start), str(pairs), str(end), *settings])
        assert result.exit_code == 0, result.output
        before, after = (load_file(folder / "model.safetensors") for folder in (start, end))
        assert before.keys() == after.keys() >= {"logit_bias"}
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert not any(name.startswith(("vision_model.", "visual_projection.")) for name in changed)
        assert {"text_projection.weight", "logit_scale", "logit_bias"} <= changed
        losses = [
            entry["loss"] for entry in json.loads((end / "training.json").read_text())["history"] if "loss" in entry
        ]
        assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
        assert type(transformers.AutoModel.from_pretrained(end)) is transformers.VisionTextDualEncoderModel
        assert load_exact_model(end).traits.loss == "sigmoid"
        assert "# A dual encoder of two towers trained" in (end / "README.md").read_text()

    @pytest.mark.thorough
    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_family_trains(self, folders, pairs, tmp_path, name):
        plan = TrainingPlan(
            model=str(folders / name), data=str(pairs), output=str(tmp_path / "end"), steps=2, batch_size=8
        )
        assert train(plan).updates == 2
        before, after = (load_file(folder / "model.safetensors") for folder in (folders / name, tmp_path / "end"))
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[key], after[key]) for key in before)
        load_exact_model(tmp_path / "end")

    @pytest.mark.thorough
    def test_a_resumed_run_goes_on_where_it_stopped(self, folders, pairs, tmp_path):
        """AltCLIP's weights have other names in files than in memory, which transformers' trainer does not know."""
        plans = [
            TrainingPlan(
                model=str(folders / "altclip"),
                data=str(pairs),
                output=str(tmp_path / name),
                steps=3,
                batch_size=8,
                save_steps=2,
                learning_rate=1e-3,
            )
            for name in ("whole", "stopped")
        ]
        train(plans[0])
        folder = tmp_path / "stopped" / WORK_FOLDER
        shutil.copytree(tmp_path / "whole" / WORK_FOLDER / "checkpoint-2", folder / "checkpoint-2")
        train(replace(plans[1], resume=True))
        whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    @pytest.mark.thorough
    def test_a_frozen_tower_keeps_its_batch_statistics(self, folders):
        model = DualEncoderModel.from_pretrained(folders / "align")
        freeze(model, "image")
        model.train()
        pixels = torch.randn(4, 3, 32, 32)
        before = {name: value.clone() for name, value in model.vision_model.named_buffers()}
        together, alone = model.encode_image(pixels), model.encode_image(pixels[:1])
        torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)
        assert all(torch.equal(before[name], value) for name, value in model.vision_model.named_buffers())
        assert model.text_model.training
