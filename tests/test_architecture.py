"""What the rooms of the package may import, what they show to the outside, and what a wheel holds."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from helpers.architecture import (
    DOORS,
    FLOORS,
    ROOT,
    absolute_imports,
    doors,
    family_questions,
    import_graph,
    imports,
    installed_packages,
    parsed,
    rooms,
    sources,
)

import twinlens

LEVELS = {room: level for level, floor in enumerate(FLOORS) for room in floor}


class TestImports:
    def test_nothing_imports_from_its_own_floor_or_a_higher_one(self) -> None:
        """Nor, then, in a circle."""
        upward = [found for found in imports() if LEVELS[found.imported] >= LEVELS[found.importer]]
        assert upward == []

    def test_doors_upward_open_when_they_are_used(self) -> None:
        assert doors() == DOORS
        script = "import sys, twinlens.modeling; sys.exit('twinlens.inference' in sys.modules)"
        subprocess.run([sys.executable, "-c", script], check=True)

    def test_the_package_imports_itself_relatively(self) -> None:
        """Under its full name, `import modeling` in a checkout would make a second copy of every class."""
        assert absolute_imports() == []

    def test_every_room_has_a_floor_and_is_installed(self) -> None:
        modules = {source.stem for source in sources() if len(source.parts) == 1} - {"__init__"}
        assert {*rooms(), *modules} == {*LEVELS}
        assert sorted(installed_packages()) == sorted(["twinlens", *(f"twinlens.{room}" for room in rooms())])

    def test_the_graph_holds_what_is_known(self) -> None:
        graph = import_graph()
        assert [*graph] == rooms()
        assert graph["losses"] == []
        assert {"configuration", "losses"} < {*graph["modeling"]}


@pytest.fixture(scope="module")
def family_names() -> frozenset[str]:
    """Every `model_type` and title of a family, and every public class that is named after one."""
    own, others = twinlens.configuration.FAMILIES.values(), twinlens.configuration.OTHER_FAMILIES
    names = {name for family in own for name in (*family.model_types, family.title)}
    names |= {name for model_type, family in others.items() for name in (model_type, family.title, family.model)}
    families = tuple(family.model.removesuffix("Model") for family in own)
    return frozenset(names | {name for name in dir(twinlens) if name.startswith(families)})


class TestFamilies:
    """A difference between families is a trait, on which every room but `configuration` relies without their names."""

    def test_no_room_asks_which_family_it_has(self, family_names: frozenset[str]) -> None:
        asked = {str(path): family_questions(parsed(path), family_names) for path in sources()}
        elsewhere = {path: found for path, found in asked.items() if found and not path.startswith("configuration")}
        assert elsewhere == {}

    @pytest.mark.parametrize(
        "question",
        [
            "config.model_type == 'siglip'",
            "family in ('clip', 'align')",
            "title != 'SigLIP 2 NaFlex'",
            "isinstance(config, (str, configuration.CLIPConfig))",
            "type(model) is Siglip2Model",
            "match family:\n case 'clip' | 'siglip': pass",
        ],
    )
    def test_such_a_question_is_found(self, family_names: frozenset[str], question: str) -> None:
        assert len(family_questions(ast.parse(question), family_names)) == 1

    def test_tables_and_traits_are_no_such_questions(self, family_names: frozenset[str]) -> None:
        allowed = "poolings = {'clip': 'class_token'}\nif config.pooling == 'attention': SiglipConfig('siglip')"
        assert family_questions(ast.parse(allowed), family_names) == []


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a new process has imported after each of several steps, one after the other."""
    script = """
import contextlib, io, json, sys
import twinlens
loaded = {"twinlens": [*sys.modules]}
import twinlens.catalogue
loaded["catalogue"] = [*sys.modules]
for option in ("--help", "list"):
    sys.argv = ["twinlens", option]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        twinlens.cli.main()
    loaded[option] = [*sys.modules]
import twinlens.processing
loaded["processing"] = [*sys.modules]
print(json.dumps(loaded))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {step: {*modules} for step, modules in json.loads(answer.stdout).items()}


class TestPublicFace:
    @pytest.mark.parametrize("step", ["twinlens", "catalogue", "--help", "list"])
    def test_no_torch_and_no_transformers(self, loaded: dict[str, set[str]], step: str) -> None:
        assert loaded[step] & {"torch", "transformers"} == set()

    def test_processing_needs_no_torchvision_sentencepiece_or_protobuf(self, loaded: dict[str, set[str]]) -> None:
        """Not even where they are installed."""
        assert loaded["processing"] & {"torchvision", "sentencepiece", "google.protobuf"} == set()

    @pytest.mark.parametrize("name", dir(twinlens))
    def test_every_name_is_found_when_first_used(self, name: str) -> None:
        """By the function that finds it, since rooms become attributes as soon as anything imports them."""
        assert twinlens.__getattr__(name) is getattr(twinlens, name)

    def test_every_room_is_public(self) -> None:
        assert {*rooms()} < {*dir(twinlens)}
        with pytest.raises(AttributeError, match="attribute Bogus"):
            twinlens.Bogus  # type: ignore[attr-defined]  # noqa: B018

    @pytest.mark.parametrize("room", rooms())
    def test_every_name_of_a_room_is_found(self, room: str) -> None:
        module = import_module(f"twinlens.{room}")
        assert module.__all__
        assert all(getattr(module, name) is not None for name in module.__all__)


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Not scratch files in the root, and not a module that was removed after an earlier build."""
    checkout = tmp_path / "checkout"
    leftovers = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=leftovers)
    removed = checkout / "build" / "lib" / "twinlens" / "removed" / "module.py"
    removed.parent.mkdir(parents=True)
    for leftover in (removed, checkout / "scratch.py", checkout / "scratch.pyi"):
        leftover.touch()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    settings = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, *settings, str(checkout)], check=True, env=os.environ | {"PIP_NO_INDEX": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assets = [path.relative_to(ROOT) for room in rooms() for path in (ROOT / room / "assets").glob("*")]
    found = {name for name in names if ".dist-info/" not in name}
    assert found == {f"twinlens/{path.as_posix()}" for path in [*sources(), Path("py.typed"), *assets]}
    licenses = {name.partition(".dist-info/licenses/")[2] for name in names} - {""}
    assert licenses == {"LICENSE", "processing/assets/LICENSE-openai-clip.txt", "catalogue/assets/cat.txt"}
