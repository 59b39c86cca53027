"""What is said where PyTorch or transformers is too old, or too new."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from helpers.architecture import ROOT

import twinlens
from twinlens.configuration import accepted_versions as versions

NAMES = """
import twinlens
for name in dir(twinlens):
    try:
        getattr(twinlens, name)
    except ImportError as error:
        assert str(error).startswith("Expected transformers>=5.12,<6 for twinlens"), (name, error)
        print(name)
"""


# transformers 4 needs a huggingface_hub that lacks names of later ones.
FORMER_HUB = """
import huggingface_hub
find = huggingface_hub.__getattr__
def find_former(name):
    if name == "is_offline_mode":
        raise AttributeError(name)
    return find(name)
huggingface_hub.__getattr__ = find_former
"""


def test_the_range_is_that_of_setup_cfg() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    required = settings["options"]["install_requires"].split("\n")
    for package, supported in versions.SUPPORTED.items():
        assert f"{package}{supported}" in required


@pytest.mark.parametrize(
    ("package", "installed"),
    [("transformers", "4.57.6"), ("transformers", "5.11.9"), ("transformers", "6.0.0.dev0"), ("torch", "2.10.1+cpu")],
)
def test_outside_of_it(package: str, installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"torch": "2.13.0", "transformers": "5.23.0", package: installed}
    monkeypatch.setattr(versions, "version", known.__getitem__)
    supported = versions.SUPPORTED[package]
    with pytest.raises(ImportError) as raised:
        versions.check_versions()
    said = f"Expected {package}{supported} for twinlens {twinlens.__version__}, got {installed}: "
    assert str(raised.value) == f"{said}pip install '{package}{supported}'."
    assert raised.value.name == package


@pytest.mark.parametrize(
    ("package", "installed"),
    [
        ("transformers", "5.12.0.dev0"),
        ("transformers", "5.99.1"),
        ("torch", "2.11.0a0+nv26.02"),  # of a vendor
        ("torch", "2.16.0.dev20261101+cu130"),
    ],
)
def test_inside_of_it(package: str, installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"torch": "2.13.0", "transformers": "5.23.0", package: installed}
    monkeypatch.setattr(versions, "version", known.__getitem__)
    versions.check_versions()


@pytest.mark.thorough
def test_when_something_of_it_is_used(tmp_path: Path) -> None:
    """The names that need transformers say so; `import twinlens`, `--version` and `--help` need neither."""
    metadata = tmp_path / "transformers-4.57.6.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.6\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    done = run("-c", NAMES)
    assert done.returncode == 0, done.stderr
    assert {"SiglipModel", "SiglipProcessor", "SiglipConfig", "register"} <= {*done.stdout.split()}
    assert {"catalogue", "cli", "losses"} & {*done.stdout.split()} == set()
    assert run("-m", "twinlens", "--version").returncode == run("-m", "twinlens", "--help").returncode == 0
    (tmp_path / "sitecustomize.py").write_text(FORMER_HUB)
    for command in (
        "inspect clip-shapes",
        "embed clip-shapes . --out x",
        "onnx clip-shapes x",
        "train clip-shapes . x",
    ):
        done = run("-m", "twinlens", *command.split())
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith("twinlens: Expected transformers>=5.12,<6 for twinlens")
