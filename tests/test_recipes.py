"""The scripts of `recipes/`, run as they are called, on folders of drawings."""

import re
import runpy
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from twinlens.conversion import convert
from twinlens.toy_world import draw_scene, render

RECIPES = Path(__file__).parent.parent / "recipes"
KINDS = [("red", "star"), ("cyan", "heart"), ("green", "ring"), ("orange", "moon"), ("blue", "cross")]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and folders of drawings named after what they show."""
    folder = tmp_path_factory.mktemp("drawings")
    convert("siglip-shapes", folder / "model", verify=False)
    for split, count in (("train", 4), ("test", 3)):
        for kind in KINDS:
            place = folder / split / "_".join(kind)
            place.mkdir(parents=True)
            for number in range(count):
                scene = draw_scene(Random(f"{split} {kind} {number}"), [kind], "one")  # type: ignore[list-item]
                render(scene).save(place / f"{number}.png")
    return folder


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a script and give the percentages that it prints."""

    def run(script: str, *arguments: object) -> list[float]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(RECIPES / script), run_name="__main__")
        return [float(number) for number in re.findall(r"accuracy ([\d.]+)%", capsys.readouterr().out)]

    return run


def test_linear_probe(drawings, accuracies):
    (accuracy,) = accuracies("linear_probe.py", drawings / "model", drawings / "train", drawings / "test")
    assert accuracy >= 90  # chance is 20


def test_examples_help_where_names_do_not(drawings, accuracies, tmp_path):
    arguments: tuple[Any, ...] = (drawings / "model", drawings / "train", drawings / "test", "--shots", 2, "--template")
    by_name, with_examples = accuracies("few_shot.py", *arguments, "a picture of a {}")
    assert by_name >= 90
    assert with_examples >= 90
    for split in ("train", "test"):  # names that say nothing
        (tmp_path / split).mkdir()
        for number, kind in enumerate(KINDS):
            (tmp_path / split / f"number_{number}").symlink_to(drawings / split / "_".join(kind))
    arguments = (drawings / "model", tmp_path / "train", tmp_path / "test", "--alpha", 50)
    by_name, with_examples = accuracies("few_shot.py", *arguments)
    assert by_name < 60
    assert with_examples >= 90


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.py")))
def test_wrong_folders(script, drawings, accuracies, tmp_path, capsys):
    (tmp_path / "red_star").mkdir()
    with pytest.raises(ValueError, match="a folder of images for each class, got"):
        accuracies(script, drawings / "model", tmp_path, drawings / "test")
    (tmp_path / "red_star" / "0.png").symlink_to(drawings / "test" / "red_star" / "0.png")
    with pytest.raises(SystemExit):
        accuracies(script, drawings / "model", tmp_path, drawings / "test")
    assert "the classes differ: red star and blue cross" in capsys.readouterr().err
