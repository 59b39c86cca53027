"""README, CONTRIBUTING and docs/: every snippet and every command is run or checked, every link and picture is right.

A page is run from top to bottom in a folder of its own, in which the tour has run. Blocks are of these kinds:

- `python` is executed; what it prints is what its lines `# prints: ...` say. After `<!-- network -->` a test of its own
  executes it, where there is a network, and after `<!-- client: NAME -->` one in tests/clients.
- `sh` is executed, a line at a time. After `<!-- not run: REASON -->` its commands and options are only looked up.
- `text` is the output of the `sh` block before it, or after `<!-- diagram -->` anything.
- `yaml` after `<!-- file: NAME -->` is written to that file.

A page with a line `<!-- needs: PACKAGE, ... -->` is run where these are installed, in the thorough tier.
"""

import ast
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import transformers
from helpers.architecture import rooms
from helpers.versions import NEEDS_AUTO_IMAGE_PROCESSOR
from PIL import Image

import twinlens
from twinlens import cli

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
CLIENTS = tuple(  # libraries whose blocks tests/clients/test_page.py runs
    f"client: {name}"
    for name in (
        *("chroma", "compel", "faiss", "lancedb", "langchain", "llama-index", "qdrant"),
        *("sentence-transformers", "torchmetrics"),
    )
)
REASONS = ("GPUs", "installs", "minutes", "network", "placeholders", "the checks themselves")
TOUR = "twinlens demo --folder tour"


class Block(NamedTuple):
    """A fenced block of a page, and the comment before it."""

    language: str
    mark: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    result = [Block(match[2], match[1] or "", match[3], text[: match.start()].count("\n") + 1) for match in found]
    assert len(result) * 2 == len(re.findall(r"^\s*```", text, flags=re.MULTILINE)), f"{page.name}: a fence is not read"
    return result


def commands(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ")
    return [line.partition("  # ")[0].strip() for line in joined.splitlines() if line.strip()]


def printed_by(block: Block) -> list[str]:
    """What a block says that it prints."""
    return re.findall(r"# prints: (.*)", block.text)


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    """What decides whether the blocks of a page are run."""
    needed = re.findall(r"^<!-- needs: (.*) -->$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    packages = [package for line in needed for package in line.split(", ")]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    skipped = [pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")]
    by_version = [NEEDS_AUTO_IMAGE_PROCESSOR] if "AutoImageProcessor" in str(blocks(page)) else []
    return [pytest.mark.thorough, *skipped, *by_version] if packages else by_version


def run_command_line(command: str) -> str:
    """Run a line `twinlens ...` in this process and return what it prints."""
    arguments = sys.argv, transformers.logging.get_verbosity()
    sys.argv = shlex.split(command)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv, verbosity = arguments
        transformers.logging.set_verbosity(verbosity)
    assert not end.value.code, f"{command}: {errors.getvalue()}"
    return output.getvalue()


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tour has run."""
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        output = run_command_line(TOUR)
    assert "Parity of siglip-shapes.npz: pass" in output
    for label in ("red star", "purple heart", "white arrow", "green circle"):
        assert re.search(rf"{label} +a {label} \d", output)
    assert "two yellow squares" in output
    return folder


@pytest.fixture
def closed_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the event loops that Gradio makes and leaves open: a later test would get the warning about them."""
    loops: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def make_and_remember() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", make_and_remember)
    yield
    for loop in loops:
        loop.close()
    if loops:
        asyncio.set_event_loop(None)


@pytest.mark.usefixtures("closed_loops")
class TestPagesRun:
    @pytest.mark.parametrize(
        "page", [pytest.param(page, marks=marks_of(page), id=name_of(page)) for page in PAGES if blocks(page)]
    )
    def test_every_block(self, page: Path, tour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(tour, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        self.run_page(page, monkeypatch)

    @pytest.mark.thorough
    def test_all_pages_in_one_folder(self, tour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As a newcomer reads them: one page must not be in the way of the next."""
        shutil.copytree(tour, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        for page in PAGES:
            if all(mark.name == "thorough" or not mark.args[0] for mark in marks_of(page)):
                self.run_page(page, monkeypatch)

    def run_page(self, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run the blocks of a page in the present folder, where the tour is."""
        monkeypatch.setenv("COLUMNS", "120")
        for mapping in (transformers.CONFIG_MAPPING, transformers.MODEL_MAPPING):  # a page may register a class
            monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
        names: dict[str, Any] = {"__name__": "page"}
        output = None  # of the commands just above
        for block in blocks(page):
            where = f"{name_of(page)}, line {block.line}"
            match block.language, block.mark:
                case "python", "":
                    assert run_python(block, names, where) == printed_by(block), where
                case "python", mark if mark == "network" or mark in CLIENTS:
                    compile(block.text, where, "exec")  # and run by a test of its own
                case "sh", "":
                    output = "".join(run_command_line(line) for line in commands(block) if line != TOUR)
                case "sh", mark if mark.removeprefix("not run: ") in REASONS:
                    for line in commands(block):
                        check_command(line)
                case "text", "" if output is not None:
                    assert output.strip().splitlines() == block.text.strip().splitlines(), where
                case "yaml", mark if mark.startswith("file: "):
                    Path(mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
                case "text", "diagram":
                    pass
                case _:
                    pytest.fail(
                        f"{where}: a block of {block.language!r} after {block.mark!r} is neither run nor checked"
                    )
            if block.language != "sh":
                output = None


def run_python(block: Block, names: dict[str, Any], where: str) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, where, "exec"), names)
    return printed.getvalue().strip().splitlines()


def check_command(line: str) -> None:
    """Look up what a line that is not run names: programs, files, commands, options, extras and targets."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words[0] in ("accelerate", "torchrun"):
        words = words[words.index("-m") + 1 :]
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        case ["pip", "install", *arguments]:
            check_pip(arguments)
        case ["twinlens", command, *arguments]:
            missing = options_among(arguments) - options_of(command)
            assert not missing, f"{line}: {missing}"
        case ["python", "-m", module, *arguments] if spec := importlib.util.find_spec(module):
            assert options_among(arguments) <= options_in(Path(str(spec.origin)))
        case ["python", script, *arguments]:
            assert options_among(arguments) <= options_in(PROJECT / script)
        case ["pytest" | "ruff" | "mypy" | "mkdocs" | "pre-commit", *_]:
            pass
        case [".ci/run"]:
            assert (PROJECT / ".ci" / "run").is_file()
        case _:
            pytest.fail(f"a command that no check knows: {line}")


def check_pip(arguments: list[str]) -> None:
    settings = ConfigParser()
    settings.read(PROJECT / "setup.cfg")
    for argument in arguments:
        if (extra := re.fullmatch(r"\.(?:\[(\w+)\])?", argument)) and extra[1]:
            assert extra[1] in settings["options.extras_require"]
        elif not extra and argument not in ("-c", "-e", "--no-deps"):
            assert (PROJECT / argument).is_file()


def options_among(words: list[str]) -> set[str]:
    return {match[0] for word in words if (match := re.match(r"--[a-z][a-z-]*", word))}


def options_in(script: Path) -> set[str]:
    """The options that a script adds to its parser, by itself or in the module `common` beside it."""
    sources = [file.read_text(encoding="utf-8") for file in (script, script.with_name("common.py")) if file.exists()]
    return options_among("".join(sources).split('"'))


@cache
def options_of(command: str) -> set[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}.items():
            patch.setenv(name, value)
        return {*re.findall(r"--[a-z][a-z-]*", run_command_line(f"twinlens {command} --help"))}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.mark == "network" for b in blocks(page))], ids=name_of
)
def test_every_block_that_needs_a_network(page: Path, tmp_path: Path) -> None:
    for host, port in (("huggingface.co", 443), ("images.cocodataset.org", 80)):
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            pytest.skip(f"needs a network: {host} cannot be reached ({error})")
    for block in blocks(page):
        if (block.language, block.mark) == ("python", "network"):
            done = subprocess.run(
                [sys.executable, "-c", block.text],
                cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip().splitlines() == printed_by(block)


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


class TestWhatPagesName:
    @pages
    def test_links_and_pictures(self, page: Path) -> None:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
            target, _, anchor = link.partition("#")
            if target.startswith("https://"):
                continue
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{name_of(page)}: {link}"
            assert not anchor or anchor in anchors(file), f"{name_of(page)}: {link}"

    @pages
    def test_commands_and_options_in_sentences(self, page: Path) -> None:
        code = re.findall(r"`([^`\n]+)`", without_blocks(page))
        of_others = {
            "--thorough",
            "--strict",
            "--local-loss",
            "--gather-with-grad",
            "--accum-freq",
        }  # pytest, open_clip
        known = of_others.union(*(options_of(command) for command in command_names()))
        for text in code:
            if match := re.match(r"twinlens ([a-z]+)", text):
                assert match[1] in command_names(), f"{name_of(page)}: {text}"
            if text.startswith(("twinlens ", "--")):
                assert options_among(text.split()) <= known, f"{name_of(page)}: {text}"

    @pages
    def test_files_of_the_project_in_sentences(self, page: Path) -> None:
        top = {path.name for path in PROJECT.iterdir()}
        for path in re.findall(r"`([\w.-]+/[\w./-]*)`", without_blocks(page)):
            folder = path.split("/")[0]
            assert folder not in top or (PROJECT / path).exists(), f"{name_of(page)}: {path}"

    def test_every_fault_has_a_test(self) -> None:
        """The last column of docs/faults.md: `tests/test_x.py::TestY::test_z`, one or more, each of which is there."""
        rows = re.findall(r"^\| (?!report|---)(.*) \|$", (PROJECT / "docs/faults.md").read_text(), flags=re.MULTILINE)
        assert rows
        for row in rows:
            cells = re.split(r"(?<!\\) \| ", row)
            assert len(cells) == 4, row
            names = re.findall(r"`(tests/\w+\.py)::([\w:]+)`", cells[-1])
            assert names, row
            for file, name in names:
                scope = module_body(PROJECT / file)
                for part in name.split("::"):
                    found = [x for x in scope if isinstance(x, (ast.ClassDef, ast.FunctionDef)) and x.name == part]
                    assert found, f"{file}::{name}"
                    scope = found[0].body


@cache
def module_body(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


@cache
def command_names() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        return re.findall(r"^  ([a-z]+)  ", run_command_line("twinlens --help"), flags=re.MULTILINE)


class TestNumbers:
    def test_readme_is_short(self) -> None:
        assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150

    def test_memory_of_the_loss_is_what_was_measured(self) -> None:
        case = json.loads((PROJECT / "benchmarks/results/losses-cpu.json").read_text())["cases"]["sigmoid-16384"]
        theirs, ours = case["transformers_mib"], case["twinlens_mib"]
        text = (PROJECT / "README.md").read_text(encoding="utf-8")
        assert f"16,384 pairs | {theirs:,} MiB for the loss" in text
        assert f"| {ours:,} MiB for the same loss" in text

    def test_toy_models_are_as_good_as_their_reports_say(self) -> None:
        rows = {
            "which of 100 captions": "zero_shot_accuracy",
            "the same, combinations seen": "zero_shot_accuracy_seen",
            "the same, combinations never seen": "zero_shot_accuracy_unseen",
            "linear probe, combinations never seen": "probe_accuracy_unseen",
            "how many": "count_accuracy",
            "how two things lie": "relation_accuracy",
            "recall at 1, picture to caption": "image_to_text_recall_at_1",
            "recall at 1, caption to picture": "text_to_image_recall_at_1",
        }
        page = (PROJECT / "docs" / "toy_world.md").read_text(encoding="utf-8")
        reports = [
            json.loads((PROJECT / "catalogue" / "assets" / f"{name}.json").read_text())["metrics"]
            for name in ("siglip-shapes", "clip-shapes")
        ]
        for row, metric in rows.items():
            (shown,) = re.findall(rf"^\| {row}[^|]*\|[^|]*\| ([\d.]+)% \| ([\d.]+)% \|$", page, flags=re.MULTILINE)
            assert [float(number) for number in shown] == pytest.approx([100 * r[metric] for r in reports], abs=0.051)


def drawing(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def thumbnail(file: Path) -> Any:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").resize((120, 40), Image.Resampling.BOX), dtype=float)


class TestPictures:
    def test_rooms_are_drawn_from_the_imports(self) -> None:
        """`python docs/draw_rooms.py` draws them again."""
        assert (PROJECT / "docs" / "pictures" / "rooms.svg").read_text(encoding="utf-8") == drawing("draw_rooms").draw()

    def test_the_demo_draws_what_the_readme_shows(self, tour: Path, tmp_path: Path) -> None:
        """`python docs/draw_demo.py tour` draws both again; renderers differ by a few levels."""
        drawing("draw_demo").draw(tour / "tour", tmp_path / "demo.png")
        for name, drawn in (("demo", tmp_path / "demo.png"), ("attention", tour / "tour" / "attention.png")):
            committed = thumbnail(PROJECT / "docs" / "pictures" / f"{name}.png")
            assert np.abs(committed - thumbnail(drawn)).mean() < 2

    def test_the_errors_by_layer_have_the_labels_that_verify_draws(self, tour: Path, tmp_path: Path) -> None:
        """`twinlens verify siglip-shapes tour/siglip-shapes --plot docs/pictures/parity.svg` draws them again."""
        parity = json.loads((tour / "tour" / "siglip-shapes" / "parity.json").read_text())
        twinlens.parity.plot_certificate(parity, tmp_path / "parity.svg")
        committed, drawn = (
            re.findall(r"<!-- (.*) -->", file.read_text(encoding="utf-8"))
            for file in (PROJECT / "docs" / "pictures" / "parity.svg", tmp_path / "parity.svg")
        )
        assert committed == drawn


@pytest.mark.parametrize("room", [room for room in rooms() if room != "cli"])
def test_every_room_has_a_page_of_the_reference(room: str) -> None:
    name = {"index": "index_room"}.get(room, room)  # index.md is the page of the whole folder
    page = (PROJECT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    assert page == f"# twinlens.{room}\n\n::: twinlens.{room}\n"
    assert f"[twinlens.{room}]({name}.md)" in (PROJECT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_menu() -> None:
    menu = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = PROJECT / "docs"
    missing = [page for page in docs.rglob("*.md") if f" {page.relative_to(docs).as_posix()}\n" not in menu]
    assert missing == []
