"""What `twinlens push` takes out of a folder, what it leaves there, and what makes it stop."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from twinlens.conversion import convert, push
from twinlens.parity import verify_files

Run = Callable[..., tuple[int, str, str]]

# Assembled, so that no scanner takes this file for one that holds them.
TOKENS = {
    "a token of Hugging Face": "hf_" + "aB3" * 12,
    "an access key of AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "a token of GitHub": "ghp_" + "a1B2" * 9,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that is a model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    safetensors.torch.save_file({"logit_scale": torch.ones(())}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


LEAST = ["README.md", "config.json", "model.safetensors"]


def plan(folder: Path, *include: str, code: bool = False) -> tuple[list[str], dict[str, str]]:
    found = push(folder, "someone/model", include=include, include_code=code, dry_run=True)
    return [*found.files], found.left_out


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("text")


class TestChoice:
    def test_what_belongs_to_a_model_folder(self, folder: Path) -> None:
        names = [
            "LICENSE",
            "config_sentence_transformers.json",
            "modules.json",
            "official_layout.json",
            "onnx/model.onnx",
            "onnx/text_model.onnx",
            "onnx/text_model.onnx_data",
            "openvino/openvino_model.bin",
            "openvino/openvino_model.xml",
            "preprocessor_config.json",
            "processor_config.json",
            "sentence_bert_config.json",
            "spiece.model",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ]
        write(folder, *names)
        for name in names:
            if name.endswith(".json"):
                (folder / name).write_text("{}")
        files, left_out = plan(folder)
        assert sorted(files) == sorted([*LEAST, *names])
        assert left_out == {}

    def test_whatever_else_lies_there_stays(self, folder: Path) -> None:
        names = ["customers.csv", "key.pem", "onnx/other.onnx", "pytorch_model.bin", "training.json", "train.parquet"]
        write(folder, *names, "model-00001-of-00001.safetensors", "setup.py", "data/a.csv", "data/b/c.csv")
        files, left_out = plan(folder)
        assert files == LEAST
        other = "no part of a model folder; --include uploads it"
        expected = dict.fromkeys([*names, "model-00001-of-00001.safetensors"], other)
        expected |= {"setup.py": "code that no auto_map names", "data/": f"{other} (2 files)"}
        assert left_out == expected

    def test_pictures_that_the_card_shows(self, folder: Path) -> None:
        write(folder, "curves.png", "maps/a b.jpg", "maps/c.webp", "other.png", "maps/notes.txt")
        (folder / "README.md").write_text(
            "![curves](curves.png) ![a](./maps/a%20b.jpg 'title')\n<img width=3 src='maps/c.webp'>\n"
            "![far](https://host/other.png) [text](maps/notes.txt) ![up](../other.png) ![notes](maps/notes.txt)\n"
        )
        files, left_out = plan(folder)
        assert sorted({*files} - {*LEAST}) == ["curves.png", "maps/a b.jpg", "maps/c.webp"]
        assert [*left_out] == ["maps/notes.txt", "other.png"]

    def test_what_is_included_by_name_folder_or_pattern(self, folder: Path) -> None:
        write(folder, "notes.txt", "examples/a.png", "examples/b/c.png", "logs/x.txt", "data.csv")
        files, left_out = plan(folder, "notes.txt", "examples/", "logs/*.txt")
        assert sorted({*files} - {*LEAST}) == ["examples/a.png", "examples/b/c.png", "logs/x.txt", "notes.txt"]
        assert [*left_out] == ["data.csv"]

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ("none.txt", r"--include none\.txt names no file of .* to upload\.$"),
            (".env", r"--include \.env names no file of .* to upload: \.env is hidden\.$"),
            ("away.txt", r"names no file of .* to upload: away\.txt is a link that leaves the folder\.$"),
            ("../secret.txt", r"names no file of .* to upload\.$"),
        ],
    )
    def test_what_cannot_be_included(self, folder: Path, item: str, message: str) -> None:
        write(folder, ".env", "../secret.txt")
        (folder / "away.txt").symlink_to("../secret.txt")
        with pytest.raises(ValueError, match=message):
            plan(folder, item)

    def test_links(self, folder: Path, tmp_path: Path) -> None:
        write(folder, ".env", "notes.txt", "../secret.txt")
        for name, target in {
            "vocab.json": "../secret.txt",
            "merges.txt": ".env",
            "spiece.model": "nowhere",
            "vocab.txt": "vocab.txt",
            "onnx": str(tmp_path),
            "NOTICE": "notes.txt",
        }.items():
            (folder / name).symlink_to(target)
        files, left_out = plan(folder, "*")
        assert sorted(files) == sorted([*LEAST, "NOTICE", "notes.txt"])
        assert left_out == {
            ".env": "hidden",
            "merges.txt": "a link to what is hidden",
            "onnx": "a link that leaves the folder",
            "spiece.model": "no file",
            "vocab.json": "a link that leaves the folder",
            "vocab.txt": "no file",
        }

    def test_weights_behind_a_link_are_named(self, folder: Path) -> None:
        """As in the cache of huggingface_hub, whose folders are made of links."""
        (folder / "model.safetensors").rename(folder.parent / "blob")
        (folder / "model.safetensors").symlink_to("../blob")
        with pytest.raises(ValueError, match=r"to push: model\.safetensors is a link that leaves the folder\."):
            plan(folder)

    def test_a_pipe_is_not_waited_for(self, folder: Path) -> None:
        (folder / "README.md").unlink()
        for name in ("README.md", "tokenizer.json"):
            os.mkfifo(folder / name)
        assert plan(folder) == (LEAST[1:], {"README.md": "no file", "tokenizer.json": "no file"})

    def test_a_card_behind_a_link_names_no_pictures(self, folder: Path) -> None:
        write(folder, "a.png")
        (folder / "README.md").rename(folder.parent / "card.md")
        (folder.parent / "card.md").write_text("![a](a.png)")
        (folder / "README.md").symlink_to("../card.md")
        assert [*plan(folder)[1]] == ["README.md", "a.png"]

    def test_code_that_auto_map_names_and_what_it_imports(self, folder: Path) -> None:
        config = {"model_type": "clip", "auto_map": {"AutoModel": "one.Model", "AutoConfig": "owner/name--far.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": [null, "four.Tokenizer"]}}')
        write(folder, "far.py", "five.py")
        (folder / "one.py").write_text("from .two import x\nimport torch\nfrom ./../../../secret import y\n")
        (folder / "two.py").write_text("    from .three import x\nfrom .one import y\n")
        (folder / "three.py").write_text("")
        (folder / "four.py").write_text("from five import x")
        files, left_out = plan(folder, code=True)
        assert sorted(name for name in files if name.endswith(".py")) == ["four.py", "one.py", "three.py", "two.py"]
        assert left_out == dict.fromkeys(["far.py", "five.py"], "code that no auto_map names")
        assert "far.py" in plan(folder, "far.py")[0]

    def test_names_are_printed_without_what_a_terminal_obeys(self, folder: Path) -> None:
        write(folder, "a\x1b[2J\nupload      b.txt")
        text = push(folder, "someone/model", dry_run=True).describe()
        assert "leave out   a\\x1b[2J\\nupload      b.txt, no part of a model folder" in text


class TestCredentials:
    @pytest.mark.parametrize("kind", TOKENS)
    @pytest.mark.parametrize("name", ["README.md", "config.json", "notes.csv"])
    def test_a_token_stops_the_push(self, folder: Path, kind: str, name: str, run: Run) -> None:
        content = {"model_type": "clip", "note": TOKENS[kind]}
        (folder / name).write_text(f"\n\n{json.dumps(content)}\n")
        code, output, errors = run("push", folder, "someone/model", "--dry-run", "--include", "*")
        assert (code, output) == (1, "")
        assert re.fullmatch(rf"twinlens: .* is not pushed: {name} holds {kind} in line 3\. Take it out.*\n", errors)
        assert TOKENS[kind] not in errors

    def test_what_is_left_out_does_not_matter(self, folder: Path) -> None:
        (folder / "notes.txt").write_text(" ".join(TOKENS.values()))
        assert plan(folder)[0] == LEAST

    def test_words_that_look_alike(self, folder: Path) -> None:
        text = "hf_hub_download hf_ ASIA AKIA ghp_ PRIVATE KEY sha256 " + "0123456789abcdef" * 4 + " xhf_" + "a" * 34
        (folder / "README.md").write_text(text)
        (folder / "tokenizer.json").touch()
        assert plan(folder)[0] == [*LEAST, "tokenizer.json"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sound") / "siglip"
    convert("siglip-shapes", folder)
    return folder


@pytest.fixture
def converted(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "converted"))


def spoil_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def read_proof(folder: Path) -> dict[str, Any]:
    proof: dict[str, Any] = json.loads((folder / "parity.json").read_text())
    return proof


class TestProof:
    def test_it_vouches_for_all_that_is_loaded(self, sound: Path) -> None:
        names = [file["name"] for file in read_proof(sound)["files"]]
        assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"} < {*names}
        assert names == [*verify_files(sound).files]
        card = (sound / "README.md").read_text()
        for file in read_proof(sound)["files"]:
            assert f"`{file['name']}`, {file['bytes']:,} bytes, sha256 `{file['sha256']}`" in card

    @pytest.mark.parametrize(
        "name",
        ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"],
    )
    def test_a_changed_byte_is_named(self, converted: Path, name: str, run: Run) -> None:
        if name.endswith(".json"):
            with (converted / name).open("a") as file:
                file.write("\n")
        else:
            spoil_byte(converted / name)
        check = verify_files(converted)
        assert check.faults == (f"{name} was changed",)
        code, output, errors = run("verify", converted, "--quick")
        assert (code, output) == (1, "")
        assert errors == f"twinlens: parity.json is stale, and proves nothing about {converted}: {name} was changed.\n"
        with pytest.raises(ValueError, match=rf"parity\.json is stale, {re.escape(name)} was changed \(remove it"):
            push(converted, "someone/model", dry_run=True)

    def test_files_that_came_or_went(self, converted: Path) -> None:
        (converted / "preprocessor_config.json").unlink()
        (converted / "vocab.json").write_text("{}")
        assert verify_files(converted).faults == ("vocab.json was added", "preprocessor_config.json is missing")

    def test_what_is_not_measured_may_change(self, converted: Path) -> None:
        for name in ("README.md", "modules.json", "official_layout.json"):
            with (converted / name).open("a") as file:
                file.write("\n")
        assert verify_files(converted).passed
        assert push(converted, "someone/model", dry_run=True).proof == "pass"

    def test_the_source(self, sound: Path, tmp_path: Path, run: Run) -> None:
        assert verify_files(sound, "siglip-shapes").passed
        assert run("verify", "siglip-shapes", sound, "--quick")[0] == 0
        code, output, _ = run("verify", "clip-shapes", sound, "--quick", "--json")
        assert code == 1
        assert json.loads(output)["faults"] == ["clip-shapes is not the source that was measured"]

    def test_a_proof_of_before_there_were_hashes(self, converted: Path) -> None:
        proof = read_proof(converted)
        del proof["files"]
        (converted / "parity.json").write_text(json.dumps(proof))
        with pytest.raises(ValueError, match=r"stale, it has no hashes of the files that were measured \(remove it"):
            push(converted, "someone/model", dry_run=True)
        (converted / "parity.json").unlink()
        assert push(converted, "someone/model", dry_run=True).proof is None

    @pytest.mark.parametrize(
        "files", [None, 3, "x", [], [3], [{}], [{"name": "../../etc/passwd", "sha256": "0"}], [{"name": ["a"] * 999}]]
    )
    def test_a_forged_proof(self, converted: Path, files: object) -> None:
        proof = {**read_proof(converted), "files": files, "source": files}
        (converted / "parity.json").write_text(json.dumps(proof))
        check = verify_files(converted, "siglip-shapes")
        assert check.faults
        assert len(check.describe()) < 2000

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("siglip-shapes",), 2, "Pass both SOURCE and FOLDER, or FOLDER alone with --quick."),
            (
                ("absent", "--quick"),
                1,
                "has no parity.json, expected a folder that twinlens convert wrote and verified",
            ),
            (("absent", "--quick", "--plot", "a.png"), 2, "--quick computes nothing, and goes with --json alone."),
            (("absent", "--quick", "--image-size", "3"), 2, "--quick computes nothing, and goes with --json alone."),
        ],
    )
    def test_wrong_use(
        self, arguments: tuple[str, ...], code: int, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        actual, output, errors = run("verify", *arguments)
        assert (actual, output) == (code, "")
        assert message in errors
