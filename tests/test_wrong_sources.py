"""Every command on every kind of wrong source: one line that says what is wrong, exit code 1, nothing written."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image

from twinlens.cli import app as application
from twinlens.cli.app import COMMANDS, TRACEBACK
from twinlens.conversion import convert, export
from twinlens.formats import FormatError, inspect_source, read_config
from twinlens.index import ShardContent, weights_fingerprint, write_index, write_shard
from twinlens.inference import classify_images, load_exact_model, load_processor, read_labels
from twinlens.parity import verify

Run = Callable[..., tuple[int, str, str]]


class World(NamedTuple):
    """A sound model and a picture to combine wrong sources with, and the wrong sources by their names."""

    model: Path
    picture: Path
    pairs: Path
    search_index: Path
    sources: dict[str, str]


class Executes:
    """A pickle of it makes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


OTHER_FAMILIES = {
    "bert": transformers.BertConfig,
    "t5": transformers.T5Config,
    "resnet": transformers.ResNetConfig,
    "blip": transformers.BlipConfig,
}
DAMAGED_JSON = {
    "not-json": b"{not json",
    "a-list": b"[1, 2]",
    "null": b"null",
    "empty": b"",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "utf-16": '{"model_type": "siglip"}'.encode("utf-16"),
}
DAMAGED_CONFIG = DAMAGED_JSON | {
    "an-object": b"{}",
    "unhashable": b'{"model_type": ["siglip"]}',
    "a-tower-of-text": b'{"model_type": "siglip", "vision_config": "big"}',
    "a-size-in-words": b'{"model_type": "siglip", "vision_config": {"hidden_size": "many"}}',
    "no-activation": b'{"model_type": "siglip", "vision_config": {"hidden_act": "nope"}}',
}


def write_sources(root: Path, model: Path) -> dict[str, str]:
    """Write the wrong sources, and return what to pass to a command for each."""
    sources: dict[str, Path | str] = {}

    def folder(name: str, **files: bytes) -> Path:
        """A copy of the sound model with some files replaced."""
        path = shutil.copytree(model, root / name)
        for file, content in files.items():
            (path / file.replace("__", ".")).write_bytes(content)
        sources[name] = path
        return path

    for name, config in OTHER_FAMILIES.items():
        config().save_pretrained(root / name)
        safetensors.torch.save_file({"a.weight": torch.ones(2, 2)}, root / name / "model.safetensors")
        sources[name] = root / name
    for name, content in DAMAGED_CONFIG.items():
        folder(f"config-{name}", config__json=content)
    for name, content in DAMAGED_JSON.items():
        folder(f"tokenizer-{name}", tokenizer__json=content, tokenizer_config__json=content)
        folder(f"preprocessor-{name}", preprocessor_config__json=content)
    weights = (model / "model.safetensors").read_bytes()
    for name, content in {
        "half": weights[:-5000],
        "empty": b"",
        "garbage": weights[::-1],
        "header": weights[:8],
    }.items():
        folder(f"weights-{name}", model__safetensors=content)
    other_shape = safetensors.torch.load(weights) | {"logit_scale": torch.ones(3)}
    folder("weights-shape", model__safetensors=safetensors.torch.save(other_shape))
    (folder("weights-missing") / "model.safetensors").unlink()
    hostile = folder("weights-pickled", pytorch_model__bin=pickle.dumps(Executes(root / "executed")))
    (hostile / "model.safetensors").unlink()
    (folder("weights-unreadable") / "model.safetensors").unlink()  # nobody, root included, can read the next one
    (root / "weights-unreadable" / "model.safetensors").symlink_to("/proc/self/mem")

    for name in ("empty-folder", "folder.pt", "folder.csv", "new\nline"):
        (root / name).mkdir()
        sources[name] = root / name
    for suffix in ("pt", "npz", "safetensors", "csv", "jsonl", "model", "png", "yaml", "tar"):
        for name, content in (("zero", b""), ("garbage", b"\x80\x00\xff" + bytes(range(256)) * 8)):
            sources[f"{name}.{suffix}"] = root / f"{name}.{suffix}"
            (root / f"{name}.{suffix}").write_bytes(content)
    (root / "text.txt").write_text("just a text\n")
    (root / "naïve 日本\n.npz").write_bytes(b"x")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "unreadable.pt").symlink_to("/proc/self/mem")
    for name in ("text.txt", "naïve 日本\n.npz", "dangling", "unreadable.pt", "absent", "absent.pt"):
        sources[name] = root / name
    sources |= {
        "hub": "some/model",
        "address": "https://huggingface.co/some/model",
        "device": "/dev/null",
        "long": "x" * 300,
        "escape": "a\x1b[31mred\udcff",
    }
    return {name: str(source) for name, source in sources.items()}


def write_small_index(folder: Path, model: Path, picture: Path) -> None:
    """Write an index of one picture."""
    loaded, processor = load_exact_model(model), load_processor(model)
    embeds = loaded.encode([picture], processor, convert_to_numpy=True)
    folder.mkdir()
    write_shard(folder, 0, ShardContent(embeds, [str(picture)], ["0" * 64], [1]), first_row=0)
    shape = {"rows": 1, "dim": embeds.shape[1], "dtype": "float32", "shards": 1}
    write_index(folder, {"model": str(model), "weights": weights_fingerprint(loaded), **shape})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    convert("siglip-shapes", root / "model", verify=False)
    (root / "pairs").mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(root / "pairs" / f"{number}.png")
        (root / "pairs" / f"{number}.txt").write_text(f"no. {number}")
    write_small_index(root / "index", root / "model", root / "pairs" / "0.png")
    (root / "sources").mkdir()
    sources = write_sources(root / "sources", root / "model")
    return World(root / "model", root / "pairs" / "0.png", root / "pairs", root / "index", sources)


def train(*arguments: Any) -> list[Any]:
    return ["train", *arguments, "--batch-size", 2, "--steps", 1]


# The arguments of each place that a command takes a source or a destination in.
USES: dict[str, Callable[[World, str, Path], list[Any]]] = {
    "inspect": lambda world, source, out: ["inspect", source],
    "convert": lambda world, source, out: ["convert", source, out, "--no-verify"],
    "convert tokenizer": lambda world, source, out: ["convert", "siglip-shapes", out, "--tokenizer", source],
    "convert folder": lambda world, source, out: ["convert", world.model, source, "--no-verify"],
    "verify": lambda world, source, out: ["verify", source, world.model],
    "verify folder": lambda world, source, out: ["verify", "siglip-shapes", source],
    "export": lambda world, source, out: ["export", source, f"{out}.npz", "--format", "big_vision"],
    "export file": lambda world, source, out: ["export", world.model, source, "--format", "open_clip"],
    "push": lambda world, source, out: ["push", source, "owner/name", "--dry-run"],
    "push repository": lambda world, source, out: ["push", world.model, source, "--dry-run"],
    "classify": lambda world, source, out: ["classify", source, world.picture, "--labels", "a,b"],
    "classify image": lambda world, source, out: ["classify", world.model, source, "--labels", "a,b"],
    "classify labels": lambda world, source, out: ["classify", world.model, world.picture, "--labels", f"@{source}"],
    "classify tokenizer": lambda world, source, out: [
        *("classify", world.model, world.picture, "--labels", "a,b", "--tokenizer", source)
    ],
    "explain": lambda world, source, out: ["explain", source, world.picture, "--text", "a", "--out", f"{out}.png"],
    "explain image": lambda world, source, out: ["explain", world.model, source, "--text", "a", "--out", f"{out}.png"],
    "locate": lambda world, source, out: ["locate", source, world.picture, "--text", "a", "--out", f"{out}.png"],
    "locate image": lambda world, source, out: ["locate", world.model, source, "--text", "a", "--out", f"{out}.png"],
    "app": lambda world, source, out: ["app", source],
    "app index": lambda world, source, out: ["app", world.model, "--index", source],
    "embed": lambda world, source, out: ["embed", source, world.pairs, "--out", out],
    "evaluate": lambda world, source, out: ["evaluate", source, world.pairs],
    "onnx": lambda world, source, out: ["onnx", source, out, "--no-verify"],
    "search": lambda world, source, out: ["search", source, "a"],
    "search image": lambda world, source, out: ["search", world.search_index, "--image", source],
    "search model": lambda world, source, out: ["search", world.search_index, "a", "--model", source],
    "search page": lambda world, source, out: ["search", world.search_index, "a", "--html", source],
    "train": lambda world, source, out: train(source, world.pairs, out),
    "train data": lambda world, source, out: train(world.model, source, out),
    "train eval": lambda world, source, out: train(world.model, world.pairs, out, "--eval-data", source),
    "train zero-shot": lambda world, source, out: train(
        world.model, world.pairs, out, "--eval-data", world.pairs, "--zero-shot", source
    ),
    "train config": lambda world, source, out: train(world.model, world.pairs, out, "--config", source),
    "average": lambda world, source, out: ["average", source, world.model, "--out", out],
    "average tuned": lambda world, source, out: ["average", world.model, source, "--out", out],
    "demo": lambda world, source, out: ["demo", "--folder", source],
    "list": lambda world, source, out: ["list", source],
}
# The sources that are not wrong for a use: it does not read the part that is, or takes text files as they are.
_PROCESSOR = "(tokenizer|preprocessor)-.*"
SOUND = {
    "inspect": _PROCESSOR,
    "export": _PROCESSOR,
    "push": "weights-shape|config-(a-.*-of-text|a-size.*|no-activation)",
    "push repository": "hub",
    "convert tokenizer": "(config|preprocessor|weights)-.*",
    "classify tokenizer": "(config|preprocessor|weights)-.*",
    "classify labels": "text.txt|naïve.*",
    "train config": "zero.*",  # a YAML file without settings
}
DESTINATIONS = ("convert folder", "export file", "demo")  # where only what is in the way is wrong


def check(run: Run, world: World, use: str, name: str, out: Path) -> int:
    """Run one command on one source; return its exit code, which is 0 only where the source is not wrong for it."""
    before = sorted(world.model.parent.rglob("*"))
    code, output, errors = run(*USES[use](world, world.sources[name], out))
    assert "Traceback" not in errors
    if code == 1:
        assert output == ""
        (line,) = errors.splitlines()
        assert line.startswith("twinlens: ")
        assert line.isprintable()
        assert len(line) < 2100
        assert TRACEBACK not in line  # it is known what is wrong
        assert not out.exists()
        assert sorted(world.model.parent.rglob("*")) == before
    return code


@pytest.mark.parametrize("use", USES)
def test_a_sample(run: Run, world: World, use: str, tmp_path: Path) -> None:
    expected = 2 if use == "list" else 1
    assert check(run, world, use, "bert", tmp_path / "out") == expected


@pytest.mark.thorough
@pytest.mark.parametrize("use", USES)
def test_the_full_product(run: Run, world: World, use: str, tmp_path: Path) -> None:
    for number, (name, source) in enumerate(world.sources.items()):
        in_the_way = os.path.isfile(source) or (os.path.isdir(source) and os.listdir(source))
        if use in DESTINATIONS and not in_the_way:
            continue
        code = check(run, world, use, name, tmp_path / str(number))
        sound = re.fullmatch(SOUND.get(use, ""), name, re.DOTALL) is not None
        assert code == (2 if use == "list" else 0 if sound else 1), name


def test_every_command_has_uses() -> None:
    assert {use.split()[0] for use in USES} == set(COMMANDS)


@pytest.mark.parametrize("name", ["bert", "t5", "resnet", "blip"])
def test_functions_name_what_a_folder_is(world: World, name: str, tmp_path: Path) -> None:
    folder = world.sources[name]
    model = transformers.AutoConfig.from_pretrained(folder).model_type
    calls: list[Callable[[], object]] = [
        lambda: verify("siglip-shapes", folder),
        lambda: verify(folder, world.model),
        lambda: convert(folder, tmp_path / "out"),
        lambda: export(folder, tmp_path / "out.npz", format="big_vision"),
        lambda: inspect_source(folder),
        lambda: read_config(Path(folder)),
    ]
    for call in calls:
        with pytest.raises(
            FormatError, match=rf"(?i)expected a CLIP or SigLIP model, got .*'{model}' \(a {name} model\)"
        ):
            call()
    with pytest.raises(ValueError, match=f"{model}"):
        load_exact_model(folder)


def test_verify_names_another_model(world: World) -> None:
    with pytest.raises(FormatError, match=r"model_type 'siglip' \(a Siglip model\), and clip-shapes has 'clip'"):
        verify("clip-shapes", world.model)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (ValueError("two\nlines \x1b[1m"), "two lines \\x1b[1m"),
            (KeyError("name"), "Unexpected KeyError: 'name' (set TWINLENS_TRACEBACK=1 to see where, and report it"),
            (AssertionError(), "Unexpected AssertionError: without a message (set"),
            (EOFError("Ran out of input"), "Unexpected EOFError: Ran out of input (set"),
            (RecursionError("too deep"), "Unexpected RecursionError: too deep (set"),
            (MemoryError(), "Out of memory"),
            (ValueError("Original Traceback (most recent call last):\n  x\nValueError: no. 3"), "ValueError: no. 3"),
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_whatever_is_raised_becomes_a_line(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr("twinlens.formats.inspect_source", fail)
        code, output, errors = run("inspect", "x")
        assert (code, output, errors.count("\n")) == (1, "", 1)
        assert errors.startswith(f"twinlens: {line}")
        monkeypatch.setenv(TRACEBACK, "1")
        monkeypatch.setattr("sys.argv", ["twinlens", "inspect", "x"])
        if not isinstance(error, EOFError):  # typer makes an exit of it
            with pytest.raises(type(error)):
                application()

    def test_an_interruption(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("twinlens.formats.inspect_source", interrupt)
        assert run("inspect", "x") == (130, "", "twinlens: interrupted.\n")


class TestLabels:
    def test_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "labels.txt"
        file.write_bytes("\ufeffa red star, big\r\n\r\n  # 1 \r\nça".encode())
        assert read_labels(f"@{file}") == ["a red star, big", "# 1", "ça"]
        assert read_labels(" a cat, a dog,") == ["a cat", "a dog"]

    @pytest.mark.parametrize("source", ["clip-shapes", pytest.param("siglip-shapes", marks=pytest.mark.thorough)])
    def test_that_are_repeated(self, run: Run, world: World, source: str) -> None:
        """The command scores different labels; the function gives each text its share, as transformers' pipeline."""
        labels = ["red", "blue", "red", "green", "red"]
        command = ["classify", source, world.picture, "--template", "{}", "--json", "--labels"]
        code, output, errors = run(*command, ",".join(labels))
        assert (code, errors) == (0, "Repeated, and counted once: 'red'.\n")
        assert (output, "") == run(*command, "red,blue,green")[1:]
        scores = json.loads(output)[0]["scores"]
        (answer,) = classify_images(source, [world.picture], labels, templates="{}")
        assert sorted(entry["label"] for entry in answer) == sorted(labels)
        total = sum(scores[label] for label in labels) if source == "clip-shapes" else 1
        expected = [scores[entry["label"]] / total for entry in answer]
        assert [entry["score"] for entry in answer] == pytest.approx(expected, abs=1e-6)

    def test_of_both_options(self, run: Run, world: World) -> None:
        options = ["--labels", "red,blue", "--label", "a star, big", "--label", "é", "--json"]
        code, output, _ = run("classify", world.model, world.picture, *options)
        assert code == 0
        assert set(json.loads(output)[0]["scores"]) == {"red", "blue", "a star, big", "é"}

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--labels", ","], 1, "got none in ','"),
            (["--labels", "@absent"], 1, "with a label on each line, got 'absent'"),
            (["--label", " "], 1, "Expected labels in words, got ''."),
            ([], 2, "--label"),
        ],
    )
    def test_that_are_wrong(self, run: Run, world: World, options: list[str], code: int, message: str) -> None:
        result, output, errors = run("classify", world.model, world.picture, *options)
        assert (result, output) == (code, "")
        assert message in errors

    @pytest.mark.parametrize("texts", [[], ["a", ""], "a cat"])
    def test_of_the_function(self, world: World, texts: list[str]) -> None:
        with pytest.raises(ValueError, match="label"):
            classify_images(world.model, [world.picture], texts)
