"""Adapters of peft on the attention of SigLIP's pooling head, whose weights transformers reads past them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import families
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import twinlens

pytestmark = pytest.mark.parametrize("family", ["Siglip", pytest.param("Siglip2", marks=pytest.mark.thorough)])
OUT_PROJ = r".*head\.attention\.out_proj"


def adapt(model: Any, targets: Any) -> Any:
    """The model with an adapter that is far from zero."""
    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()


def pooled(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return getattr(model, "base_model", model).get_image_features(**inputs).pooler_output


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_out_proj_is_trained_and_used(family: str) -> None:
    """As the sum of the weights in transformers' model says, computed by hand."""
    ours, theirs = families.twins(family)
    inputs = families.images(family)
    before = pooled(ours, inputs)
    adapted = adapt(ours, OUT_PROJ)
    layer = adapted.base_model.model.vision_model.head.attention.out_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    theirs.vision_model.head.attention.out_proj.weight.data += product.detach()
    found = pooled(adapted, inputs)
    assert (found - before).abs().max() > 0.1
    assert_same(found, pooled(theirs, inputs))
    found.sum().backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


@torch.no_grad()
def test_out_proj_crosses_when_it_is_merged(family: str, tmp_path: Path) -> None:
    """As an adapter it has no effect in transformers, without a word."""
    ours, theirs = families.twins(family)
    inputs = families.images(family)
    before = pooled(theirs, inputs)
    adapted = adapt(ours, OUT_PROJ)
    expected = pooled(adapted, inputs)
    adapted.save_pretrained(str(tmp_path))
    there = PeftModel.from_pretrained(theirs, str(tmp_path))
    assert any("head.attention.out_proj.lora_A" in name for name, _ in there.named_parameters())
    assert_same(pooled(there, inputs), before)
    assert_same(pooled(twinlens.to_transformers(adapted.merge_and_unload()), inputs), expected)


@torch.no_grad()
def test_an_adapter_of_the_whole_attention_is_refused_until_it_is_merged(family: str, tmp_path: Path) -> None:
    ours, theirs = families.twins(family)
    inputs = families.images(family)
    adapted = adapt(theirs, ["attention"])
    expected = pooled(adapted, inputs)
    assert (expected - pooled(ours, inputs)).abs().max() > 0.1
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"Target module PoolingAttention(.|\n)* is not supported"):
        PeftModel.from_pretrained(ours, str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same(pooled(twinlens.DualEncoderModel.from_pretrained(tmp_path / "merged"), inputs), expected)
