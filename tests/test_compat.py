"""`twinlens.compat`: features as tensors, for clients written before transformers 5."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families

import twinlens
from twinlens import compat


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # two copies of weights lie differently in memory


@pytest.mark.parametrize(
    "family", ["Siglip", *(pytest.param(family, marks=pytest.mark.thorough) for family in ("CLIP", "Siglip2"))]
)
def test_features_are_tensors_and_all_else_is_the_same(family: str, tmp_path: Path) -> None:
    plain = families.model(family)
    plain.save_pretrained(tmp_path)
    model = getattr(compat, f"{family}Model").from_pretrained(tmp_path)
    plain = getattr(twinlens, f"{family}Model").from_pretrained(tmp_path)
    ids, images = families.token_ids(family), families.images(family)
    with torch.no_grad():
        texts, pictures = model.get_text_features(ids), model.get_image_features(**images)
        assert_equal(texts, plain.get_text_features(ids).pooler_output)
        assert_equal(pictures, plain.get_image_features(**images).pooler_output)
        assert_equal(model.get_text_features(ids, return_dict=True).pooler_output, texts)
        assert_equal(model.encode_text(ids), plain.encode_text(ids))
        found, expected = model(input_ids=ids, **images), plain(input_ids=ids, **images)
        assert_equal(found.logits_per_image, expected.logits_per_image)
        assert_equal(found.text_model_output.pooler_output, texts)
        with pytest.raises(AttributeError, match="norm"):
            plain.get_text_features(ids).norm(dim=-1)  # what old clients do
    model.save_pretrained(tmp_path / "again")
    assert type(getattr(transformers, f"{family}Model").from_pretrained(tmp_path / "again")).__module__.startswith(
        "transformers"
    )


def test_clients_that_name_transformers_class(tmp_path: Path) -> None:
    native = transformers.SiglipModel
    families.model("Siglip").save_pretrained(tmp_path)
    with compat.in_place_of_transformers():
        assert type(native.from_pretrained(tmp_path)) is compat.SiglipModel
        derived: Any = type("Derived", (native,), {})
        assert type(derived.from_pretrained(tmp_path)) is derived
    assert type(native.from_pretrained(tmp_path)) is native
    with pytest.raises(KeyError), compat.in_place_of_transformers():
        raise KeyError
    assert type(native.from_pretrained(tmp_path)) is native
