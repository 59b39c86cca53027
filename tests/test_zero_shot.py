"""`ZeroShotClassifier` beside transformers' pipeline, and templates beside the papers' arithmetic."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from accelerate import cpu_offload
from helpers.losses_process import OPEN_CLIP
from helpers.photographs import PHOTOGRAPHS
from helpers.released_files import released_module
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import twinlens
from twinlens import ZeroShotClassifier
from twinlens.inference import TEMPLATES, class_embeddings, read_templates
from twinlens.processing import DualEncoderProcessor
from twinlens.toy_world import KINDS, describe_kind

Pair = tuple[twinlens.DualEncoderModel, DualEncoderProcessor]

LABELS = [describe_kind(kind) for kind in KINDS[:7]]
IMAGES = [*PHOTOGRAPHS.values()][:5]


def load(source: str | Path) -> Pair:
    return twinlens.DualEncoderModel.from_pretrained(source), DualEncoderProcessor.from_pretrained(source)


@pytest.fixture(scope="module", params=["clip-shapes", "siglip-shapes"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return load(request.param)


@pytest.fixture(scope="module")
def clip() -> Pair:
    return load("clip-shapes")


def by_label(answer: list[dict[str, Any]]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer}


class TestScores:
    def test_are_those_of_transformers_pipeline_and_model(self, pair: Pair, tmp_path: Path) -> None:
        model, processor = pair
        model.save_pretrained(tmp_path)
        # The pipeline pads to 64 tokens, whatever a SigLIP was trained with; our tokenizer knows better.
        pipeline = transformers.pipeline(
            "zero-shot-image-classification",
            model=transformers.AutoModel.from_pretrained(tmp_path),
            tokenizer=processor.tokenizer,
            image_processor=processor.image_processor,
        )
        ours = ZeroShotClassifier(model, processor, LABELS)(IMAGES, batch_size=2)
        for answer, expected in zip(ours, pipeline(IMAGES, candidate_labels=LABELS), strict=True):
            assert by_label(answer) == pytest.approx(by_label(expected), abs=1e-5)
            assert [entry["score"] for entry in answer] == sorted(by_label(answer).values(), reverse=True)

    @pytest.mark.parametrize("scores", ["sigmoid", "softmax", "cosine"])
    def test_of_each_kind(self, pair: Pair, scores: Any) -> None:
        model, processor = pair
        classifier = ZeroShotClassifier(model, processor, LABELS, scores=scores)
        found = classifier.score(IMAGES)
        images = model.encode(IMAGES, processor).double()
        cosine = images @ model.encode([f"This is a photo of {label}." for label in LABELS], processor).double().t()
        bias = model.logit_bias.double() if model.traits.has_logit_bias else 0
        logits = (cosine * model.logit_scale.double().exp() + bias).detach()
        expected = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "cosine": cosine}[scores]
        assert (found.dtype, found.requires_grad) == (torch.float32, False)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)

    def test_of_bfloat16_are_float32(self) -> None:
        model = twinlens.DualEncoderModel.from_pretrained("clip-shapes", dtype=torch.bfloat16)
        processor = DualEncoderProcessor.from_pretrained("clip-shapes")
        scores = ZeroShotClassifier(model, processor, LABELS).score(IMAGES)
        torch.testing.assert_close(scores.sum(dim=-1), torch.ones(len(IMAGES)), rtol=0, atol=1e-6)

    def test_of_one_image_alone(self, clip: Pair) -> None:
        classifier = ZeroShotClassifier(*clip, LABELS)
        assert classifier.score(IMAGES[0]).shape == (len(LABELS),)
        assert classifier(IMAGES[0]) == classifier(IMAGES[:1])[0]

    def test_top_k_and_threshold(self, clip: Pair) -> None:
        classifier = ZeroShotClassifier(*clip, LABELS, scores="sigmoid")
        everything = classifier(IMAGES)
        assert classifier(IMAGES, top_k=2) == [answer[:2] for answer in everything]
        limit = everything[0][2]["score"]
        assert classifier(IMAGES, threshold=limit)[0] == everything[0][:3]
        assert classifier(IMAGES[0], threshold=1.1) == []

    def test_labels_are_encoded_once(self, clip: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        classifier = ZeroShotClassifier(*clip, LABELS)
        monkeypatch.setattr(clip[0].text_model, "forward", None)
        assert len(classifier(IMAGES)) == len(IMAGES)


class TestTemplates:
    def test_of_openai_are_those_that_open_clip_has(self) -> None:
        theirs = released_module(OPEN_CLIP[0], "open_clip/zero_shot_metadata.py").OPENAI_IMAGENET_TEMPLATES
        expected = [template("LABEL") for template in theirs]
        assert [template.replace("{}", "LABEL") for template in TEMPLATES["openai80"]] == expected

    def test_are_averaged_and_renormalised(self, pair: Pair) -> None:
        model, processor = pair
        templates = ["a picture of {}", "{}", "{}, and again {}."]
        found = class_embeddings(model, processor, LABELS, templates)
        each: list[Tensor] = [
            model.encode([t.replace("{}", label) for t in templates], processor).double().mean(0) for label in LABELS
        ]
        expected = torch.stack([vector / vector.norm() for vector in each])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)

    def test_in_parts(self, clip: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = class_embeddings(*clip, LABELS, ["{}", "a {}"])
        monkeypatch.setattr("twinlens.inference.templates.TEXTS_AT_ONCE", 4)
        torch.testing.assert_close(class_embeddings(*clip, LABELS, ["{}", "a {}"]), expected, rtol=0, atol=5e-6)

    def test_from_a_name_a_sentence_or_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "templates.txt"
        file.write_text("a {}\n\nthe {}\n")
        assert read_templates(str(file)) == ("a {}", "the {}")
        assert read_templates("an {}") == ("an {}",)
        assert len(read_templates("openai80")) == 80

    @pytest.mark.parametrize("templates", ["openai81", [], ["a photo"], "a photo", ["a {}"] * 1001])
    def test_that_are_wrong(self, clip: Pair, templates: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=r"Expected (at least one |at most 1,000 )?template"):
            ZeroShotClassifier(*clip, LABELS, templates)


class TestFiles:
    def test_are_read_without_encoding_the_labels(self, pair: Pair, tmp_path: Path) -> None:
        classifier = ZeroShotClassifier(*pair, LABELS, "siglip", scores="cosine")
        classifier.save(tmp_path / "shapes.safetensors")
        loaded = ZeroShotClassifier.load(tmp_path / "shapes.safetensors", *pair)
        assert (loaded.labels, loaded.templates) == (LABELS, ("This is a photo of {}.",))
        assert torch.equal(loaded.class_embeds, classifier.class_embeds)
        assert repr(loaded) == "ZeroShotClassifier(7 labels, 1 templates, scores='cosine')"
        assert loaded(IMAGES) == classifier(IMAGES)

    def test_of_another_model_are_refused(self, clip: Pair, tmp_path: Path) -> None:
        file = tmp_path / "shapes.safetensors"
        ZeroShotClassifier(*clip, LABELS).save(file)
        other = twinlens.DualEncoderModel.from_pretrained("clip-shapes")
        with torch.no_grad():
            other.text_projection.weight.add_(0.1 * torch.randn_like(other.text_projection.weight))
        with pytest.raises(ValueError, match="was saved with another model"):
            ZeroShotClassifier.load(file, other, clip[1])
        ZeroShotClassifier.load(file, other.from_pretrained("clip-shapes", dtype=torch.bfloat16), clip[1])

    def test_of_another_kind_are_refused(self, clip: Pair, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("labels")
        clip[0].save_pretrained(tmp_path)
        for name in ("text", "model.safetensors"):
            with pytest.raises(ValueError, match=r"Expected a file of ZeroShotClassifier\.save"):
                ZeroShotClassifier.load(tmp_path / name, *clip)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": '["a red star"]'}, r"embeddings of 1 labels have the shape \(7, 64\)"),
            ({"labels": "[oops"}, "Expecting value"),
            ({"labels": '{"a": 1}'}, "labels, templates or scores are none"),
            ({"labels": "[1, 2]"}, "labels in words, got 1"),
            ({"templates": "[1]"}, "where the label goes, got 1"),
            ({"scores": '"logits"'}, "labels, templates or scores are none"),
            ({"labels": None}, "it has no labels"),
            ({"class_embeds": lambda x: math.nan * x}, "not of length 1"),
            ({"class_embeds": lambda x: torch.cat([x[:-1], math.nan * x[-1:]])}, "not of length 1"),
            ({"class_embeds": lambda x: 1000 * x}, "not of length 1"),
            ({"class_embeds": lambda x: x.half()}, "float32"),
            ({"class_embeds": lambda x: x[:0].clone()}, "the shape"),
            ({"class_embeds": lambda x: x[0].clone()}, "the shape"),
        ],
    )
    def test_that_are_damaged_are_refused(
        self, clip: Pair, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        ZeroShotClassifier(*clip, LABELS).save(tmp_path / "file")
        with safe_open(tmp_path / "file", framework="pt") as opened:
            metadata, embeds = opened.metadata(), opened.get_tensor("class_embeds")
        embeds = change.get("class_embeds", lambda x: x)(embeds)
        metadata = {name: value for name, value in {**metadata, **change}.items() if isinstance(value, str)}
        save_file({"class_embeds": embeds}, tmp_path / "file", metadata)
        with pytest.raises(ValueError, match=rf"Expected a file of ZeroShotClassifier\.save, got .*file: .*{message}"):
            ZeroShotClassifier.load(tmp_path / "file", *clip)

    def test_that_are_folders_are_refused(self, clip: Pair, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a folder"):
            ZeroShotClassifier.load(tmp_path, *clip)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "at least one label"),
        ({"labels": "a cat"}, "a list of labels"),
        ({"labels": ["a", " "]}, "labels in words"),
        ({"labels": None}, "a list of labels, got None"),
        ({"labels": LABELS, "templates": ["a {}", 3]}, "where the label goes, got 3"),
        ({"labels": LABELS, "templates": b"a {}"}, "where the label goes, got 97"),
        ({"labels": LABELS, "templates": 3}, "a list of templates, got 3"),
        ({"labels": LABELS, "scores": "logits"}, "sigmoid, softmax, cosine or None, got 'logits'"),
    ],
)
def test_wrong_arguments(clip: Pair, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(*clip, **arguments)


def test_models_of_another_library(clip: Pair) -> None:
    for other in (torch.nn.DataParallel(clip[0]), transformers.CLIPModel):
        with pytest.raises(TypeError, match="Expected a model of twinlens"):
            ZeroShotClassifier(other, clip[1], LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option", [{"top_k": 0}, {"top_k": 1.5}, {"top_k": "1"}, {"threshold": math.nan}, {"threshold": "0.5"}]
)
def test_wrong_options(clip: Pair, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be a "):
        ZeroShotClassifier(*clip, LABELS)(IMAGES, **option)


@pytest.mark.parametrize("form", [np.array, pandas.Series, iter])
def test_labels_and_templates_of_any_form(clip: Pair, form: Any) -> None:
    classifier = ZeroShotClassifier(*clip, form(LABELS), form(["a {}", "the {}"]))
    expected = ZeroShotClassifier(*clip, LABELS, ["a {}", "the {}"])
    assert torch.equal(classifier.class_embeds, expected.class_embeds)
    assert {type(text) for text in (*classifier.labels, *classifier.templates)} == {str}


def test_off_loaded_weights(pair: Pair) -> None:
    model, processor = copy.deepcopy(pair[0]), pair[1]
    expected = ZeroShotClassifier(model, processor, LABELS).score(IMAGES)
    cpu_offload(model)
    torch.testing.assert_close(ZeroShotClassifier(model, processor, LABELS).score(IMAGES), expected)
    assert model.logit_scale.is_meta


def test_command_line(clip: Pair, tmp_path: Path, run: Any) -> None:
    IMAGES[0].save(tmp_path / "picture.png")
    command = ["classify", "clip-shapes", str(tmp_path / "picture.png"), "--labels", ",".join(LABELS)]
    code, output, _ = run(*command, "--template", "openai80", "--scores", "sigmoid", "--top", "2", "--json")
    expected = ZeroShotClassifier(*clip, LABELS, "openai80", scores="sigmoid")(IMAGES[0], top_k=2)
    assert code == 0
    assert json.loads(output)[0]["scores"] == pytest.approx(by_label(expected), abs=1e-5)
    assert run(*command, "--scores", "logits")[0] == 2
    assert run(*command, "--top", "0")[0] == 2
    assert "Expected templates: " in run(*command, "--template", "photo")[2]
