"""What users trip over in open_clip: each test fails with it, in a process of its own, and passes with ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import open_clip_models
from helpers.builders import TINY_CLIP, TINY_CLIP_JSON, write_openai
from helpers.differences import difference
from helpers.processes import finish, start
from helpers.released_files import released_module, released_package
from safetensors.torch import save_file

import twinlens

pytestmark = pytest.mark.thorough


def by_open_clip(folder: Path, weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The embeddings of open_clip's model of this size with these weights."""
    packages = [released_package(name) for name in ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0")]
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP_JSON}))
    integers = ("input_resolution", "context_length", "vocab_size")
    floats = {name: weight.float() for name, weight in weights.items() if name not in integers}
    save_file(floats, folder / "model" / "open_clip_model.safetensors")
    (folder / "trunks.json").write_text("{}")
    np.savez(folder / "inputs.npz", pixels=pixels.double().numpy(), ids=np.full((1, 12), 98))
    files = (folder / name for name in ("inputs.npz", "outputs.npz", "trunks.json", "model"))
    assert finish(start(open_clip_models.main, packages, *files, output=folder / "log")) == 0, (
        folder / "log"
    ).read_text()
    return torch.from_numpy(np.load(folder / "outputs.npz")["0/images"]).float()


@difference(
    "sources",
    "OpenAI's weights in open_clip's model of the same size, whose name does not end in `quickgelu`",
    "(open_clip) exact GELU: another embedding",
    "quick GELU, which the file's mixture of dtypes tells",
    "the names of the weights are the same",
    fails=(AssertionError, "not close"),
    library="helpers.open_clip_models",
)
@torch.no_grad()
def test_openai_weights_have_quick_gelu(library: Any, tmp_path: Path) -> None:
    weights = write_openai(tmp_path / "clip.pt", container="torch", **TINY_CLIP)
    pixels = torch.randn(2, 3, 32, 32)
    official = released_module("openai-clip==1.0.1", "clip/model.py").build_model({**weights}).float()
    if library is twinlens:
        found = twinlens.DualEncoderModel.from_pretrained(tmp_path / "clip.pt").encode_image(pixels)
    else:
        found = by_open_clip(tmp_path, weights, pixels)
    expected = torch.nn.functional.normalize(official.encode_image(pixels), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
