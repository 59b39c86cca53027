"""The small checkpoints that ship: what they know, that they are official files, and the recipe that made them."""

import json

import pytest
import torch
from safetensors.torch import load_file

import twinlens
from twinlens.catalogue import BUNDLED, PHOTOGRAPH, bundled_checkpoint
from twinlens.conversion import convert, export
from twinlens.formats import inspect_source, read_checkpoint
from twinlens.parity import verify
from twinlens.toy_world import ShapesDataset
from twinlens.toy_world.evaluation import evaluate
from twinlens.toy_world.recipe import RECIPES
from twinlens.toy_world.reproduce import reproduce


@pytest.fixture(scope="module", params=BUNDLED)
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled") / request.param
    certificate = convert(request.param, folder)
    assert certificate is not None
    assert certificate.passed
    return folder


def report(name: str) -> dict:
    return json.loads(bundled_checkpoint(name).weights.with_suffix(".json").read_text())


def test_they_know_the_world_as_their_reports_say(converted, thorough):
    """At least 95% of held-out pictures find their caption among 100, a fifth of which nothing in training showed."""
    model = twinlens.DualEncoderModel.from_pretrained(converted)
    sample = {} if thorough else {"pictures": 300, "questions": 50}
    metrics = evaluate(model, twinlens.DualEncoderProcessor.from_pretrained(converted), **sample)
    assert metrics["zero_shot_accuracy"] >= 0.95
    assert metrics["zero_shot_accuracy_unseen"] >= 0.8
    reported = report(converted.name)["metrics"]
    if thorough:
        assert metrics == pytest.approx(reported, abs=0.004)  # kernels round differently
    for name in ("zero_shot_accuracy", "image_to_text_recall_at_1", "text_to_image_recall_at_1"):
        assert metrics[name] == pytest.approx(reported[name], abs=0.01)


def test_they_are_small_official_files(converted, tmp_path):
    file = bundled_checkpoint(converted.name).weights
    assert file.stat().st_size < 6e6
    assert read_checkpoint(file).format == {"siglip-shapes": "big_vision", "clip-shapes": "openai"}[converted.name]
    assert inspect_source(converted.name)["files"] == inspect_source(file)["files"]
    assert verify(converted.name, converted).passed
    (again,) = export(converted, tmp_path / file.name, format=read_checkpoint(file).format)  # type: ignore[arg-type]
    before, after = read_checkpoint(file).tensors, read_checkpoint(again).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_plain_transformers_gives_the_same_logits(converted):
    import transformers

    processor = twinlens.DualEncoderProcessor.from_pretrained(converted)
    pairs = [ShapesDataset("test", 8)[i] for i in range(8)]
    inputs = processor(images=[pair["image"] for pair in pairs], text=[pair["text"] for pair in pairs])
    inputs = {name: inputs[name] for name in ("pixel_values", "input_ids")}
    ours = twinlens.DualEncoderModel.from_pretrained(converted)(**inputs).logits_per_image
    theirs = transformers.AutoModel.from_pretrained(converted)(**inputs).logits_per_image
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_an_unknown_name_and_a_path_of_that_name(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="siglip-shape: no such file"):
        convert("siglip-shape", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "siglip-shapes").write_text("a file of one's own comes first")
    with pytest.raises(ValueError, match="siglip-shapes"):
        convert("siglip-shapes", tmp_path / "out")


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_one_command_makes_them(family, tmp_path, monkeypatch):
    """Two updates go the whole way, from first weights to an official file and a report, twice the same."""
    monkeypatch.setattr("twinlens.toy_world.reproduce.evaluate", lambda model, processor: {"asked": 1.0})
    made = []
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        made.append(reproduce(family, tmp_path / place, updates=2))
    first, second = (read_checkpoint(next((tmp_path / place).glob("*-shapes.[np]*"))) for place in ("first", "second"))
    shipped = read_checkpoint(bundled_checkpoint(f"{family}-shapes").weights)
    assert all(torch.equal(first.tensors[name], value) for name, value in second.tensors.items())
    assert {name: value.shape for name, value in first.tensors.items()} == {
        name: value.shape for name, value in shipped.tensors.items()
    }
    assert made[0]["metrics"] == {"asked": 1.0}
    assert [step for step, _ in made[0]["loss"]] == [1, 2]
    assert report(f"{family}-shapes")["updates"] == RECIPES[family].updates


def test_the_folder_holds_the_weights_of_the_file(converted):
    weights = load_file(converted / "model.safetensors")
    official = read_checkpoint(bundled_checkpoint(converted.name).weights).state_dict()
    assert weights.keys() == official.keys()
    assert all(torch.equal(weights[name], value.float()) for name, value in official.items())


def test_the_photograph_is_small_and_says_where_it_is_from():
    assert PHOTOGRAPH.stat().st_size <= 64 * 1024
    assert "Licence: CC0" in PHOTOGRAPH.with_suffix(".txt").read_text()
