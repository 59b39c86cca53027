"""`twinlens.compat`: features as tensors, for clients written before transformers 5."""

from pathlib import Path

import pytest
import torch
import transformers
from helpers import families

import twinlens
from twinlens import compat


@pytest.mark.parametrize("family", families.FAMILIES)
def test_features_are_tensors_and_all_else_is_the_same(family: str, tmp_path: Path) -> None:
    plain = families.model(family)
    plain.save_pretrained(tmp_path)
    model = getattr(compat, f"{family}Model").from_pretrained(tmp_path)
    ids, images = families.token_ids(family), families.images(family)
    with torch.no_grad():
        texts, pictures = model.get_text_features(ids), model.get_image_features(**images)
        assert torch.equal(texts, plain.get_text_features(ids).pooler_output)
        assert torch.equal(pictures, plain.get_image_features(**images).pooler_output)
        assert torch.equal(model.get_text_features(ids, return_dict=True).pooler_output, texts)
        assert torch.equal(model.encode_text(ids), plain.encode_text(ids))
        found, expected = model(input_ids=ids, **images), plain(input_ids=ids, **images)
        assert torch.equal(found.logits_per_image, expected.logits_per_image)
        assert torch.equal(found.text_model_output.pooler_output, texts)
        with pytest.raises(AttributeError, match="norm"):
            plain.get_text_features(ids).norm(dim=-1)  # what old clients do
    model.save_pretrained(tmp_path / "again")
    assert type(getattr(transformers, f"{family}Model").from_pretrained(tmp_path / "again")).__module__.startswith(
        "transformers"
    )


def test_clients_that_name_transformers_class() -> None:
    native = transformers.SiglipModel
    with compat.in_transformers():
        assert transformers.SiglipModel is compat.SiglipModel
        assert issubclass(compat.SiglipModel, twinlens.SiglipModel)
    assert transformers.SiglipModel is native
    with pytest.raises(KeyError), compat.in_transformers():
        raise KeyError
    assert transformers.SiglipModel is native
