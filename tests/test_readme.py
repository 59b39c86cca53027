"""The README's own commands and examples, in the order in which a newcomer meets them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from twinlens.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PLAIN = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(command: str, folder: Path) -> str:
    arguments = [sys.executable, "-m", "twinlens", *command.split()[1:]]
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def tour(tmp_path_factory) -> Path:
    """A folder where the README's demo has run."""
    folder = tmp_path_factory.mktemp("readme")
    (command,) = re.findall(r"^twinlens demo.*$", README, flags=re.MULTILINE)
    output = run(command, folder)
    assert "Parity of siglip-shapes.npz: pass" in output
    for label in ("red star", "purple heart", "white arrow", "green circle"):
        assert re.search(rf"{label} +a {label} \d", output)
    assert "two yellow squares" in output
    with Image.open(folder / "tour" / "attention.png") as picture:
        assert picture.size == (1024, 512)
    return folder


def test_examples_print_what_they_say(tour, capsys, monkeypatch):
    monkeypatch.chdir(tour)
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for block in blocks:
        capsys.readouterr()
        exec(block, namespace)
        printed = capsys.readouterr().out.strip().splitlines()
        assert printed == re.findall(r"# prints: (.*)", block) != []
    assert blocks


def test_options_exist():
    for command in ("list", "inspect", "convert", "verify", "export", "push", "classify", "train"):
        (line,) = re.findall(rf"^twinlens {command}\b.*$", README, flags=re.MULTILINE)
        text = CliRunner().invoke(app, [command, "--help"], env=PLAIN, catch_exceptions=False).stdout
        for option in re.findall(r"--[a-z-]+", line):
            assert option in text


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((Path(__file__).parent.parent / link).exists() for link in links)
