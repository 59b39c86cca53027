"""Image classifiers over the tower's own pooling, and such that start from the embeddings of labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families
from helpers.photographs import PHOTOGRAPHS

import twinlens
from twinlens.toy_world import KINDS, ShapesDataset

LABELS = [" ".join(kind) for kind in KINDS]


@pytest.mark.parametrize(
    "family", ["Siglip", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("CLIP", "Siglip2"))]
)
def test_pooled(family: str, tmp_path: Path) -> None:
    """The features are those of the tower, and all of its weights are trained."""
    dual = families.model(family)
    dual.save_pretrained(tmp_path)
    name = f"{family}ForImageClassification"
    model = getattr(twinlens, name).from_pretrained(tmp_path, num_labels=3, classifier_pooling="pooled")
    inputs = families.images(family)
    pooled = dual.vision_model(**inputs).pooler_output
    torch.testing.assert_close(model(**inputs).logits, model.classifier(pooled), rtol=0, atol=1e-5)
    model.train()(**inputs, labels=torch.tensor([0, 2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.eval().save_pretrained(tmp_path / "saved")
    again = getattr(twinlens, name).from_pretrained(tmp_path / "saved")
    assert again.config.classifier_pooling == "pooled"
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    # What it costs: transformers loads the folder without a word, and takes the mean of the patches.
    native = getattr(transformers, name).from_pretrained(tmp_path / "saved")
    assert (native(**inputs).logits - model(**inputs).logits).abs().max() > 0.01


def test_the_mean_is_the_default_and_is_not_written(tmp_path: Path) -> None:
    model = families.model("Siglip", "ForImageClassification")
    assert not hasattr(model.vision_model, "head")
    model.save_pretrained(tmp_path)
    assert "classifier_pooling" not in (tmp_path / "config.json").read_text()


def test_wrong_poolings() -> None:
    with pytest.raises(ValueError, match="must be 'mean' or 'pooled', got 'max'"):
        twinlens.CLIPConfig(classifier_pooling="max")
    with pytest.raises(ValueError, match="needs a tower with its head, got vision_use_head=False"):
        twinlens.SiglipConfig(vision_config={"vision_use_head": False}, classifier_pooling="pooled")


@pytest.mark.parametrize("name", [pytest.param("clip-shapes", marks=pytest.mark.thorough), "siglip-shapes"])
def test_from_labels_starts_as_the_zero_shot_classifier(name: str, tmp_path: Path) -> None:
    model: Any = twinlens.DualEncoderModel.from_pretrained(name)
    processor = twinlens.DualEncoderProcessor.from_pretrained(name)
    images = [pair["image"] for pair in ShapesDataset("test", size=20)] + list(PHOTOGRAPHS.values())
    classifier_class = getattr(twinlens, type(model).__name__.replace("Model", "ForImageClassification"))
    classifier = classifier_class.from_labels(model, processor, LABELS, templates="{}")
    expected = twinlens.ZeroShotClassifier(model, processor, LABELS, templates="{}")
    with torch.no_grad():
        logits = classifier(**processor(images=images)).logits
    similarity = model.encode(images, processor) @ expected.class_embeds.T
    assert logits.argmax(dim=1).tolist() == similarity.argmax(dim=1).tolist()
    bias = model.logit_bias.detach() if model.config.has_logit_bias else 0
    cosines = (logits - bias).detach() / model.logit_scale.detach().exp()
    assert 0.5 < float((cosines.abs() / similarity.abs().clamp(min=1e-6)).median()) < 2
    classifier.save_pretrained(tmp_path)
    again = classifier_class.from_pretrained(tmp_path)
    assert again.config.id2label == dict(enumerate(LABELS))
    answers = transformers.pipeline(
        "image-classification", model=again, image_processor=processor.image_processor, top_k=1
    )(images[0])
    assert answers[0]["label"] == LABELS[int(similarity[0].argmax())]
    with pytest.raises(TypeError, match="starts from a dual encoder with a Siglip2VisionModel, got a"):
        twinlens.Siglip2ForImageClassification.from_labels(model, processor, LABELS)


@pytest.mark.thorough
def test_from_labels_of_a_resnet() -> None:
    """Its pooling projects, so that the classifier has the width of the common space."""
    vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "depths": [1, 1, 1, 1]}
    processor = twinlens.DualEncoderProcessor.from_pretrained("clip-shapes")
    text = {**families.TEXT, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 16}
    config = twinlens.CLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = twinlens.CLIPResNetModel(config).eval()
    own = twinlens.CLIPProcessor(
        twinlens.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), processor.tokenizer
    )
    classifier = twinlens.CLIPResNetForImageClassification.from_labels(model, own, LABELS)
    assert classifier.classifier.in_features == 24
    images = list(PHOTOGRAPHS.values())
    found = classifier(**own(images=images)).logits.argmax(dim=1)
    expected = twinlens.ZeroShotClassifier(model, own, LABELS).class_embeds @ model.encode(images, own).T
    assert found.tolist() == expected.argmax(dim=0).tolist()
