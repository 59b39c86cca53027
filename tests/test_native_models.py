"""`to_transformers` returns transformers' own model with the same weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families
from helpers.versions import skip_old_peft
from peft import LoraConfig

import twinlens

KINDS = ("Model", "VisionModel", "TextModel", "ForImageClassification")


def inputs_of(family: str, kind: str) -> dict[str, torch.Tensor]:
    texts = {"input_ids": families.token_ids(family, 2)}
    return texts if kind.startswith("Text") else {**families.images(family), **(texts if kind == "Model" else {})}


def kinds() -> list[Any]:
    found = [(family, kind) for family in families.FAMILIES for kind in KINDS]
    found += [("CLIP", "VisionModelWithProjection"), ("CLIP", "TextModelWithProjection")]
    by_day = {("CLIP", "Model"), ("Siglip", "ForImageClassification")}
    return [entry if entry in by_day else pytest.param(*entry, marks=pytest.mark.thorough) for entry in found]


@pytest.mark.parametrize(("family", "kind"), kinds())
def test_same_class_weights_and_outputs(family: str, kind: str, tmp_path: Path) -> None:
    ours = families.model(family, kind, attention="eager")
    ours.name_or_path = ours.config.name_or_path = "somewhere"
    theirs = twinlens.to_transformers(ours)
    assert type(theirs) is getattr(transformers, f"{family}{kind}")
    assert type(theirs.config).__module__.startswith("transformers")
    assert (theirs.training, theirs.name_or_path) == (False, "somewhere")
    assert all(torch.isfinite(weight).all() for weight in theirs.state_dict().values())
    for key, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], weight)
        assert theirs.state_dict()[key].data_ptr() != weight.data_ptr()
    inputs = inputs_of(family, kind)
    with torch.no_grad():
        found, expected = ours(**inputs), theirs(**inputs)
    for name in ("logits_per_image", "pooler_output", "logits", "image_embeds", "text_embeds"):
        if name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path)
    again = getattr(twinlens, f"{family}{kind}").from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_state_of_an_optimizer_crosses(family: str) -> None:
    """It has no names, and belongs to weights by their order: of another one, momentum would go astray."""
    ours, theirs = families.twins(family)
    inputs = {**families.images(family), "input_ids": families.token_ids(family, 2)}

    def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        optimizer.step()

    first = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    step(theirs, first)
    ours.load_state_dict(theirs.state_dict())
    second = torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(theirs, first)
    step(ours, second)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-6)


def test_dtype_mode_kernels_and_what_is_frozen() -> None:
    ours = families.model("Siglip").bfloat16().train()
    ours.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    ours.text_model.requires_grad_(False)
    with twinlens.register():  # which changes nothing here
        theirs = twinlens.to_transformers(ours)
    assert type(theirs).__module__.startswith("transformers")
    assert (theirs.dtype, theirs.training) == (torch.bfloat16, True)
    kernels = [tower.config._attn_implementation for tower in (theirs.vision_model, theirs.text_model)]
    assert kernels == ["eager", "sdpa"]
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in theirs.named_parameters() if parameter.requires_grad} == trained


@pytest.mark.thorough
def test_an_optimised_model() -> None:
    ours = families.model("CLIP")
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    theirs = twinlens.to_transformers(ours.optimize_for_inference(linear="onednn"))
    torch.testing.assert_close(theirs.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_other_families_and_their_bias() -> None:
    towers = (families.model("CLIP", "VisionModel", transformers), families.model("CLIP", "TextModel", transformers))
    joined = twinlens.DualEncoderModel.from_towers(*towers, projection_dim=8)
    assert type(twinlens.to_transformers(joined)) is transformers.VisionTextDualEncoderModel
    joined = twinlens.DualEncoderModel.from_towers(*towers, projection_dim=8, loss="sigmoid")
    with pytest.raises(ValueError, match="no place for 1 weights of this one: logit_bias"):
        twinlens.to_transformers(joined)


def test_what_transformers_has_nothing_for() -> None:
    with pytest.raises(TypeError, match="Expected a model of twinlens, got a transformers"):
        twinlens.to_transformers(families.model("CLIP", "VisionModel", transformers))
    vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "depths": [1, 1, 1, 1]}
    resnet = twinlens.CLIPResNetVisionModel(twinlens.CLIPResNetVisionConfig(**vision))
    with pytest.raises(
        ValueError, match=r"transformers has no CLIPResNetVisionModel\. Its saved folder carries its code"
    ):
        twinlens.to_transformers(resnet)
    config = families.config("Siglip")
    config.classifier_pooling = "pooled"
    with pytest.raises(ValueError, match="would give other answers there"):
        twinlens.to_transformers(twinlens.SiglipForImageClassification(config))
    skip_old_peft()
    adapted = families.model("CLIP")
    adapted.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"no place for .*lora.*merge_and_unload"):
        twinlens.to_transformers(adapted)
    with torch.device("meta"):
        empty = twinlens.CLIPModel(families.config("CLIP"))
    with pytest.raises(ValueError, match="all in memory"):
        twinlens.to_transformers(empty)
