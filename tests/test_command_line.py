"""The command line as a newcomer meets it: help texts, what is imported for them, exit codes, and the demo."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import typer.main
from typer.testing import CliRunner

from twinlens.catalogue import CATALOGUE, download
from twinlens.catalogue.bundled import bundled_checkpoint
from twinlens.cli import app, main
from twinlens.cli.app import COMMANDS
from twinlens.cli.models import check_model

GROUP: Any = typer.main.get_command(app)
PARAMETERS = [
    pytest.param(parameter, id=f"{name} {parameter.name}")
    for name, command in GROUP.commands.items()
    for parameter in command.params
    if parameter.name != "help"
]
# A sentence begins with a capital letter or the name of a value, has several words, and ends with a full stop.
SENTENCE = re.compile(r"([A-Z]|[a-z]+[:,] ).+ .+ .+\.")
PRIVATE_IDIOM = re.compile(r"^(Of|What|Whose|As|At) |what \w+ wrote|\bgive[ns]?\b|what was", re.IGNORECASE)


def help_page(*arguments: str) -> str:
    """Return a help page as one line."""
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    return re.sub(r"(?<=\w-) (?=\w)", "", " ".join(result.stdout.split()))  # words are divided at hyphens


class TestHelp:
    def test_commands_are_in_the_order_of_the_table(self):
        assert list(GROUP.commands) == list(COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_is_explained(self, name):
        first_line = GROUP.commands[name].help.splitlines()[0]
        assert SENTENCE.fullmatch(first_line)
        assert first_line in help_page(name)

    @pytest.mark.parametrize("parameter", PARAMETERS)
    def test_every_argument_and_option_is_explained_in_sentences(self, parameter):
        assert SENTENCE.fullmatch(parameter.help)
        assert not PRIVATE_IDIOM.search(parameter.help)

    @pytest.mark.parametrize("name", ["inspect", "convert", "verify"])
    def test_three_commands_take_the_same_options_for_what_a_file_does_not_say(self, name):
        page = help_page(name)
        for option in ("--image-size", "--vision-activation", "--vision-heads"):
            assert option in page

    def test_the_demo_does_what_its_help_says(self, tmp_path):
        """Its steps are numbered in the help and in what it prints; the words of each step are in both."""
        page = help_page("demo")
        result = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "tour")], catch_exceptions=False)
        steps = re.findall(r"^(\d)\. (.*)$", result.stdout, flags=re.MULTILINE)
        assert [number for number, _ in steps] == re.findall(r"(\d)\. ", page) == ["1", "2", "3", "4"]
        for (_, printed), words in zip(steps, ("convert", "transformers pipeline", "search 200", "look"), strict=True):
            for word in words.split():
                assert word in printed.lower()
                assert word in page.lower()
        assert "big_vision" in page
        for name in ("siglip-shapes", "attention.png"):
            assert str(tmp_path / "tour" / name) in result.stdout
        *_, kept, command = result.stdout.splitlines()
        assert str(tmp_path / "tour") in kept
        answer = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert answer.stdout.splitlines()[1].endswith("a red star")
        assert "SigLIP in big_vision's format" in result.stdout


def imported_by(code: str, *arguments: str) -> str:
    """Run a program and return which heavy packages it has imported, as text."""
    heavy = {"torch", "transformers", "numpy", "PIL", "yaml", "huggingface_hub", "tokenizers"}
    code += f"\nprint(*{heavy} & set(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return result.stderr.strip()


class TestSpeed:
    """What is shown at once may not wait for torch."""

    @pytest.mark.parametrize("arguments", ["--version", "--help", "list", "list --json", "train --help", "demo --help"])
    def test_heavy_packages_are_not_imported(self, arguments):
        code = "import sys\nfrom twinlens.cli import app\ncode = app(standalone_mode=False)\nassert not code, code"
        assert imported_by(code, *arguments.split()) == ""

    @pytest.mark.parametrize("room", ["training", "training.plan", "inference", "evaluation", "toy_world", "cli"])
    def test_rooms_are_imported_alone_and_at_once(self, room):
        assert imported_by(f"import sys, twinlens.{room}") == ""

    @pytest.mark.parametrize("room", ["training", "inference", "evaluation", "toy_world"])
    def test_every_public_name_of_a_room_resolves(self, room):
        module = __import__(f"twinlens.{room}", fromlist=["__all__"])
        assert module.__all__
        assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.fixture
def failed_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let there be no network, and return the list of the addresses that are tried."""
    requests: list[str] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def request(address: str) -> None:
        requests.append(address)
        raise ConnectionError("no network")

    monkeypatch.setattr(download, "get_hf_file_metadata", request)
    return requests


class TestOutOfReach:
    """What is neither here nor on the Hub is named in one line, after at most one request."""

    @pytest.mark.parametrize("model", ["nothing/here", "nothing-here"])
    @pytest.mark.parametrize("command", ["classify {model} {file} --labels a,b", "train {model} {folder} out"])
    def test_a_model(self, run, failed_requests, tmp_path, model, command):
        file = tmp_path / "a.png"
        file.touch()
        code, output, errors = run(*command.format(model=model, file=file, folder=tmp_path).split())
        reason = "is neither a file nor a folder here, nor a model on the Hub within reach."
        assert (code, output, errors) == (1, "", f"twinlens: {model} {reason}\n")
        assert failed_requests == [f"https://huggingface.co/{model}/resolve/main/config.json"]

    @pytest.mark.parametrize(
        "model", ["some/folder/here", "/absent", "./absent", "some/absent.pt", "absent.safetensors"]
    )
    def test_what_is_no_name_of_a_repository_is_not_asked_for(self, failed_requests, model):
        with pytest.raises(FileNotFoundError, match=f"^{model} is neither a file nor a folder here"):
            check_model(model)
        assert failed_requests == []

    def test_a_data_set(self, run, failed_requests, folders, tmp_path):
        code, output, errors = run("train", folders["siglip-shapes"], "nopairs", tmp_path / "out")
        reason = "is neither a file nor a folder here, nor a data set on the Hub within reach."
        assert (code, output, errors) == (1, "", f"twinlens: nopairs {reason}\n")
        assert failed_requests == ["https://huggingface.co/datasets/nopairs/resolve/main/README.md"]

    def test_a_model_in_the_cache_needs_no_network(self, failed_requests, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        repository = tmp_path / "models--some--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (repository / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
        check_model("some/model")
        assert failed_requests == []


class TestExit:
    def test_list(self, run):
        code, output, errors = run("list", "--json")
        assert (code, errors) == (0, "")
        assert [row["name"] for row in json.loads(output)] == list(CATALOGUE)

    @pytest.mark.parametrize("option", ["--epochs", "--workers", "--no-model", "--json-file"])
    def test_a_wrong_option_of_train_exits_2(self, run, option):
        code, output, errors = run("train", option, "many")
        assert (code, output) == (2, "")
        assert option in errors

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train"], "A training run needs model, data, output: pass them as arguments or"),
            (
                ["train", "m", "d", "o", "--config", "absent.yaml"],
                "a YAML file, got absent.yaml, which does not exist.",
            ),
            (["train", "m", "d", "o", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
            (["demo", "--folder", "."], "Expected a folder that does not exist yet"),
            (["export", "absent", "out.pt", "--format", "openai"], "absent"),
            (["push", "absent", "owner/name"], "absent"),
            (["verify", "siglip-shapes", "absent"], "absent has no config.json"),
        ],
    )
    def test_a_failure_is_one_line_and_exits_1(self, run, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, output, errors = run(*arguments)
        assert (code, output) == (1, "")
        (line,) = errors.splitlines()
        assert line.startswith("twinlens: ")
        assert message in line
        assert list(tmp_path.iterdir()) == []


def test_a_name_is_nothing_that_a_terminal_obeys(run, tmp_path):
    name = "\x1b[2J\n\u202e"
    file = shutil.copy(bundled_checkpoint("siglip-shapes").weights, tmp_path / f"{name}.npz")
    code, output, _ = run("inspect", file)
    assert code == 0
    assert r"\x1b[2J\n\u202e.npz" in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["--help"]])
def test_a_full_disk_is_one_line(arguments, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "argv", ["twinlens", *arguments])
        with pytest.raises(SystemExit, match="1"):
            main()
    assert capsys.readouterr().err == "twinlens: No space left on device\n"
