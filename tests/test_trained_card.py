"""The card of a trained folder: licence, origin, snippets that run, pixels, data, and what was done."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from twinlens.catalogue import CATALOGUE
from twinlens.conversion import convert
from twinlens.processing import DualEncoderProcessor
from twinlens.toy_world import ShapesDataset
from twinlens.training import TrainingPlan, train
from twinlens.training.origin import Origin, origin_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("world")
    (folder / "pairs").mkdir()
    for pair in ShapesDataset("train", 8):  # type: ignore[arg-type]
        pair["image"].save(folder / "pairs" / f"{pair['index']}.png")
        (folder / "pairs" / f"{pair['index']}.txt").write_text(pair["text"])
    return folder


@pytest.fixture(scope="module", params=["siglip-shapes", "clip-shapes"])
def trained(request: pytest.FixtureRequest, world: Path) -> Path:
    folder = world / request.param
    convert(request.param, folder, verify=False)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license:", "base_model: someone/shapes\nlicense:", 1))
    settings: dict[str, Any] = {"model": str(folder), "data": str(world / "pairs"), "eval_data": str(world / "pairs")}
    settings |= {"output": str(world / f"trained-{request.param}"), "steps": 2, "batch_size": 4, "weight_decay": 0.3}
    train(TrainingPlan(**settings))
    return Path(settings["output"])


def test_metadata_and_numbers(trained: Path) -> None:
    card = ModelCard.load(trained / "README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "someone/shapes")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "Licence: that of what it started from, `apache-2.0`" in card.text
    assert "Trained on 8 pairs of `pairs`; 8 were drawn. Measured on 8 pairs of `pairs`." in card.text
    assert re.search(r"^2 updates of 4 pairs in 1 process, \d+ seconds\.$", card.text, flags=re.MULTILINE)
    assert "- `weight_decay`: 0.3\n" in card.text
    assert "](training_curves.png)" in card.text
    assert "| image to text recall at 1 |" in card.text
    pixels = DualEncoderProcessor.from_pretrained(trained).describe()
    assert pixels in card.text


def test_both_snippets_give_the_same_answer(trained: Path, world: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (trained / "README.md").read_text(), flags=re.DOTALL)
    texts = ["a picture of a red star", "a picture of a white arrow"]
    with Image.open(world / "pairs" / "0.png") as image:
        spaces: list[dict[str, Any]] = [{"images": [image.convert("RGB")], "texts": texts} for _ in range(2)]
    for code, space in zip(blocks, spaces, strict=True):
        exec(code.replace("FOLDER", str(trained)), space)
    ours, theirs = spaces
    if "answers" in theirs:  # of the pipeline, which returns probabilities
        scores = {answer["label"]: answer["score"] for answer in theirs["answers"][0]}
        found, expected = torch.tensor([[scores[text] for text in texts]]), ours["logits"].softmax(dim=-1)
    else:
        found, expected = theirs["logits"], ours["logits"]
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "origin"),
    [
        ("license: mit\nbase_model: a/b", Origin("mit", "a/b")),
        ("license: [mit]\nbase_model:\n- a/b", Origin(None, None)),
        ("license: " + "x" * 101, Origin(None, None)),
        ("license: 'a\\nb'\nbase_model: \"a\\nb\"", Origin("a\\nb", None)),
        ("[" * 100_000, Origin(None, None)),
        ("- a list", Origin(None, None)),
        ("a: [", Origin(None, None)),
    ],
)
def test_what_a_folder_states(tmp_path: Path, metadata: str, origin: Origin) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# A model\n")
    assert origin_of(str(tmp_path)) == origin


def test_where_weights_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    assert origin_of(str(tmp_path / "weights.pt")) == origin_of(str(tmp_path)) == Origin(None, None)
    assert origin_of("siglip-shapes") == Origin("apache-2.0", None)
    entry = CATALOGUE["ViT-B/32"]
    assert origin_of("ViT-B/32") == Origin(entry.license, "openai/clip-vit-base-patch32")
    monkeypatch.setattr("twinlens.training.origin._downloaded_card", lambda repository: None)
    assert origin_of("someone/model") == Origin(None, "someone/model")


@pytest.mark.parametrize("name", ["siglip-shapes", "clip-shapes"])
def test_bundled_checkpoints_say_who_trained_them(name: str, tmp_path: Path) -> None:
    convert(name, tmp_path / "folder", verify=False)
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "The authors of twinlens trained it from random weights, on a CPU" in card.text
    assert "3,000 updates and 192,000 drawings" in card.text
    assert "cannot be read" not in card.text
