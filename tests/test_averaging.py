"""Averages of models' weights: the folder, against `torch.lerp` of the files, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.training import average


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "start"
    DualEncoderModel.from_pretrained("clip-shapes").save_pretrained(folder)
    DualEncoderProcessor.from_pretrained("clip-shapes").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(start: Path) -> Path:
    """The start with noise on its weights, as training leaves it."""
    folder = start.with_name("tuned")
    model = DualEncoderModel.from_pretrained(start)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.save_pretrained(folder)
    DualEncoderProcessor.from_pretrained(start).save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.5])
def test_every_weight_is_interpolated(start: Path, tuned: Path, tmp_path: Path, share: float) -> None:
    folder = average([start, tuned], tmp_path / "out", [1 - share, share])
    ours, before, after = weights_of(folder), weights_of(start), weights_of(tuned)
    assert ours.keys() == before.keys()
    for name, values in ours.items():
        expected = torch.lerp(before[name].double(), after[name].double(), share).float()
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)


def test_the_folder_is_one_for_any_transformers(start: Path, tuned: Path, tmp_path: Path) -> None:
    folder = average([start, tuned, tuned], tmp_path / "out")
    ours, theirs = DualEncoderModel.from_pretrained(folder).eval(), AutoModel.from_pretrained(folder).eval()
    inputs = DualEncoderProcessor.from_pretrained(folder)(text=["a red star", "a blue ring"])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs.get_text_features(**inputs).pooler_output, dim=-1)
        torch.testing.assert_close(ours.encode_text(**inputs), expected, rtol=0, atol=5e-6)
    assert "| `start` | 0.333333 |" in (folder / "README.md").read_text()


def test_a_dtype_is_that_of_the_first(start: Path, tuned: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    DualEncoderModel.from_pretrained(start, dtype=torch.bfloat16).save_pretrained(half)
    DualEncoderProcessor.from_pretrained(start).save_pretrained(half)
    averaged = weights_of(average([half, tuned], tmp_path / "out"))
    assert {values.dtype for values in averaged.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], "a weight for each of the 2 models, got 1"),
        ([0.5, 0.6], "must be 1 together, got 1.1"),
        ([float("nan"), 1.0], "must be 1 together, got nan"),
    ],
)
def test_shares_that_make_no_average(start: Path, tmp_path: Path, weights: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        average([start, start], tmp_path / "out", weights)


def test_other_models_are_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 models, got 1"):
        average([start], tmp_path / "out")
    with pytest.raises(ValueError, match="siglip-shapes is another kind of model"):
        average([start, "siglip-shapes"], tmp_path / "out")
    other = tmp_path / "other"
    DualEncoderModel.from_pretrained(start).save_pretrained(other)
    DualEncoderProcessor.from_pretrained(start, image_mean=[0.0, 0.0, 0.0]).save_pretrained(other)
    with pytest.raises(ValueError, match="image_mean is"):
        average([start, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(start: Path, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        average([start, tuned], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    average([start, tuned], tmp_path, overwrite=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
