"""Models whose weights accelerate keeps in memory or on disk until a layer needs them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from helpers import families
from helpers.other_families import other_families, write_folder

import twinlens
from twinlens.deployment.graphs import Graph
from twinlens.deployment.inputs import Case

OTHER = [pytest.param(family, marks=pytest.mark.thorough) for family in other_families()]
CPU = torch.device("cpu")
WAYS = ["memory", "disk", "device_map"]


def all_methods(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each method computes, called by itself, as when embeddings were stored in between."""
    texts = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    images = {name: value for name, value in inputs.items() if name not in texts}
    image_embeds, text_embeds = model.encode_image(**images), model.encode_text(**texts)
    return {
        "image_embeds": image_embeds,
        "text_embeds": text_embeds,
        "logits": model.logits(image_embeds, text_embeds),
        "loss": model.loss(image_embeds, text_embeds),
        "forward": model(**inputs).logits_per_image,
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*families.FAMILIES, *OTHER])
@torch.no_grad()
def test_every_method_finds_its_weights(family: str, way: str, tmp_path: Path) -> None:
    if family in families.FAMILIES:
        families.model(family).save_pretrained(tmp_path / "model")
    else:
        write_folder(family, tmp_path / "model")
    model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "model").eval()
    inputs = Case(3, 3, 8, 16).inputs(model, Graph.of(model, "both").inputs)
    expected = all_methods(model, inputs)
    if way == "device_map":
        memory = {"cpu": int(0.7 * 4 * model.num_parameters())}  # bytes
        offload = {"device_map": "auto", "max_memory": memory, "offload_folder": str(tmp_path / "off")}
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "model", **offload).eval()
    elif way == "disk":
        disk_offload(model, str(tmp_path / "off"), execution_device=CPU)
    else:
        cpu_offload(model, execution_device=CPU)
    where = [parameter.device.type for parameter in model.parameters()]
    assert "meta" in where
    torch.testing.assert_close(all_methods(model, inputs), expected)
    assert [parameter.device.type for parameter in model.parameters()] == where
