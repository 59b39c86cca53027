"""What users trip over in open_clip and openai-clip: each test fails with that library and passes with ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.builders import TINY_CLIP, TINY_CLIP_JSON, write_openai
from helpers.differences import difference
from helpers.photographs import cat
from PIL import Image

import twinlens

pytestmark = pytest.mark.filterwarnings("ignore")


def tiny_open_clip(folder: Path, name: str, weights: Path, **changes: Any) -> Any:
    """open_clip's model of a configuration of its own, with weights from a file."""
    import open_clip

    (folder / f"{name}.json").write_text(json.dumps({**TINY_CLIP_JSON, **changes}))
    open_clip.add_model_config(folder / f"{name}.json")
    return open_clip.create_model(name, pretrained=str(weights), precision="fp32").eval()


@difference(
    "sources",
    "OpenAI's weights as a plain state dict, in open_clip's model without `quick_gelu`",
    "(open_clip) exact GELU, silently: another embedding",
    "quick GELU, which the file's mixture of dtypes tells",
    "the names of the weights are the same",
    fails=(AssertionError, "not close"),
    library="open_clip",
)
@torch.no_grad()
def test_openai_weights_have_quick_gelu(library: Any, tmp_path: Path) -> None:
    write_openai(tmp_path / "clip.pt", container="torch", **TINY_CLIP)
    pixels = torch.randn(2, 3, 32, 32)
    official = tiny_open_clip(tmp_path, "tiny-quick", tmp_path / "clip.pt", quick_gelu=True)
    expected = official.encode_image(pixels, normalize=True)
    if library is twinlens:
        found = twinlens.DualEncoderModel.from_pretrained(tmp_path / "clip.pt").encode_image(pixels)
    else:
        found = tiny_open_clip(tmp_path, "tiny-exact", tmp_path / "clip.pt").encode_image(pixels, normalize=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@difference(
    "images",
    "the two back-ends of an image processor",
    "torchvision's and Pillow's differ by more than a level",
    "`resize_engine`: at most one level between them",
    "one picture, one result",
    fails=(AssertionError, "assert "),
)
def test_engines_agree(library: Any) -> None:
    image = cat().resize((500, 333), Image.Resampling.BICUBIC)
    found = []
    for engine in ("torch", "pillow"):
        if library is twinlens:
            processor = twinlens.SiglipImageProcessor(resize_engine=engine)
        else:
            processor = getattr(
                library, {"torch": "SiglipImageProcessor", "pillow": "SiglipImageProcessorPil"}[engine]
            )()
        pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        found.append(np.asarray(pixels, dtype=float))
    assert np.abs(found[0] - found[1]).max() <= 1


@difference(
    "texts",
    "texts longer than CLIP reads",
    "(openai-clip) an error, unless `truncate=True`",
    "cut, keeping the end of text",
    "a long caption is no fault of the program",
    fails=(RuntimeError, "too long for context length 77"),
    library="clip",
)
def test_long_captions(library: Any) -> None:
    text = "a red star and " * 40
    if library is twinlens:
        ids = twinlens.CLIPTokenizer.from_official()(text, padding="max_length", return_tensors="pt")["input_ids"]
    else:
        ids = library.tokenize([text])
    assert (ids.shape, ids[0, -1]) == ((1, 77), 49407)
