"""Single bounds: descriptors, headers, configurations, long texts, names in cards."""

import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.builders import TINY_CLIP, openai_tensors
from markdown_it import MarkdownIt

import twinlens
from twinlens.cli.evaluation_data import read_names
from twinlens.conversion import convert
from twinlens.evaluation.images import embed_images
from twinlens.formats import FormatError, code_span, escaped, inspect_source, read_checkpoint, safetensors_file
from twinlens.formats.reader import read_files
from twinlens.index import EmbedPlan, Index, embed
from twinlens.index.originals import make_thumbnail
from twinlens.messages import quoted
from twinlens.processing.text_cleanup import OPEN_CLIP_CLEANUPS, clean_beginning, lower, spell_specials
from twinlens.training import TrainingPlan, load_labels, load_pairs

from . import images


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestManyTensors:
    def test_one_descriptor_for_all_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "many.npz"
        arrays: dict[str, Any] = {f"params/{number}": np.full(3, number, np.float32) for number in range(300)}
        np.savez(path, **arrays)
        before = descriptors()
        held = dict(read_files([path])[1])
        assert descriptors() <= before + 1
        assert all(torch.equal(value, torch.from_numpy(arrays[name])) for name, value in held.items())
        del held
        assert descriptors() == before

    def test_a_header_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, read = tmp_path / "many.safetensors", []
        tensors = {f"t{number}": torch.randn(number % 5, 3).to(torch.bfloat16) for number in range(100)}
        safetensors.torch.save_file(tensors, path)
        loads = json.loads

        def counted(text: str) -> str:
            read.append(text)
            return text

        monkeypatch.setattr(safetensors_file.json, "loads", lambda text: loads(counted(text)))
        stored = read_files([path])[1]
        assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
        assert len(read) == 1

    @pytest.mark.parametrize("most", [1, 100, 1 << 20])
    def test_runs_are_the_tensors_one_behind_the_other(self, tmp_path: Path, most: int) -> None:
        kinds = (torch.float32, torch.bfloat16, torch.int64)
        tensors = {f"t{number}": torch.randn(number % 4, 5).to(kinds[number // 4 % 3]) for number in range(30)}
        safetensors.torch.save_file(tensors, tmp_path / "file")
        found = list(safetensors_file.read_runs(tmp_path / "file", most))
        assert sorted(name for names, _ in found for name in names) == sorted(tensors)
        for names, values in found:
            assert torch.equal(values, torch.cat([tensors[name].flatten() for name in names]))
            assert len(names) == 1 or values.nbytes <= most
        assert len(found) < len(tensors) or most == 1

    def test_a_thousand_faults_are_ten_and_a_count(self, tmp_path: Path) -> None:
        tensors = openai_tensors(**TINY_CLIP, half=False, integers=False)
        tensors |= {f"visual.transformer.resblocks.0.{'x' * 200}{number}": torch.ones(1) for number in range(1000)}
        torch.save(tensors, tmp_path / "file.pt")
        with pytest.raises(FormatError, match=r"not expected; and 990 more\.$") as error:
            read_checkpoint(tmp_path / "file.pt")
        assert len(str(error.value)) < 2500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("converted") / "folder"
    convert("siglip-shapes", path, verify=False)
    return path


@pytest.fixture
def change(folder: Path) -> Any:
    """Set a field of the vision tower in config.json, for one test."""
    file = folder / "config.json"
    sound = file.read_text()

    def change(field: str, value: object) -> Path:
        content = json.loads(sound)
        content["vision_config"][field] = value
        file.write_text(json.dumps(content))
        return folder

    yield change
    file.write_text(sound)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("intermediate_size", 2**24), ("hidden_size", 2**24), ("image_size", 2**20)],
    )
    def test_larger_than_the_weights(self, change: Callable[[str, object], Path], field: str, value: int) -> None:
        source = change(field, value)
        with pytest.raises(ValueError, match=r"bytes of weights, but its config\.json describes a model of at least"):
            twinlens.DualEncoderModel.from_pretrained(source)
        with pytest.raises(FormatError):
            inspect_source(source)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("num_hidden_layers", 10**9, "num_hidden_layers must be at most 1,000, got 1,000,000,000"),
            ("num_hidden_layers", -1, "num_hidden_layers must be at least 0, got -1"),
            ("hidden_size", 10**30, "hidden_size must be at most 16,777,216, got a int"),
            ("layer_norm_eps", float("nan"), "layer_norm_eps must be a number of at least 0, got nan"),
        ],
    )
    def test_beyond_all_models(
        self, change: Callable[[str, object], Path], field: str, value: object, message: str
    ) -> None:
        with pytest.raises(Exception, match=message):
            twinlens.SiglipConfig.from_pretrained(change(field, value))

    def test_labels_are_counted_before_they_are_named(self) -> None:
        with pytest.raises(Exception, match="num_labels must be a whole number of at most 1,000,000"):
            twinlens.SiglipConfig(num_labels=2**40)

    def test_inspect_counts_the_weights(self, folder: Path, change: Callable[[str, object], Path]) -> None:
        model = twinlens.DualEncoderModel.from_pretrained(folder)
        assert inspect_source(folder)["parameters"] == sum(p.numel() for p in model.parameters())
        with pytest.raises(FormatError, match=r"has shape \(64, 3, 8, 8\), expected \(128, 3, 8, 8\)"):
            inspect_source(change("hidden_size", 128))


PARTS = ("a cat", "&amp;", "&lt;b&gt;", "Σ ΟΔΟΣ", "cafÃ©", "<|endoftext|>", "\n", "\x85", "\u0345", "ﬁ", "naïve",
         "&#38;amp;", "&eacute", "\u00a0", "“q”", "ſ", "!!!", "_", "&" + "\u00a0" * 20)  # fmt: skip


def long_text(seed: int) -> str:
    choose = random.Random(seed)
    return "".join(choose.choice(PARTS) + choose.choice((" ", "", " ", "\n")) for _ in range(6000))


class TestLongTexts:
    @pytest.mark.parametrize("name", ["lower", *OPEN_CLIP_CLEANUPS])
    def test_a_beginning_is_that_of_the_whole(self, name: str, thorough: bool) -> None:
        def clean(text: str) -> str:
            return lower(text) if name == "lower" else spell_specials(OPEN_CLIP_CLEANUPS[name](text))

        for seed in range(30 if thorough else 2):
            text = long_text(seed)
            whole, beginning = clean(text), clean_beginning(clean, text, words=77)
            assert f"{whole} ".startswith(f"{beginning} ")
            assert len(beginning) < len(whole) // 10

    def test_ids_are_those_of_the_whole(self, thorough: bool) -> None:
        tokenizer = twinlens.CLIPTokenizer.from_official()
        for seed in range(20 if thorough else 2):
            text = long_text(seed)
            whole = tokenizer.backend_tokenizer.encode(tokenizer.clean(text)).ids
            assert tokenizer(text)["input_ids"] == [*whole[:76], whole[-1]]
            assert tokenizer(text, return_tensors="pt")["input_ids"][0].tolist() == [*whole[:76], whole[-1]]

    def test_words_without_a_token_do_not_count(self) -> None:
        tokenizer = twinlens.CLIPTokenizer.from_official()
        text = "\u0345 " * 15_000 + "cat " * 5000
        whole = tokenizer.backend_tokenizer.encode(tokenizer.clean(text)).ids
        assert tokenizer(text)["input_ids"] == [*whole[:76], whole[-1]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(images.REFUSED):
        (folder / f"{number}.jpg").write_bytes(images.FILES[name]())
        (folder / f"{number}.txt").write_text(name)
    (folder / "sound.png").write_bytes(images.PNG)
    (folder / "sound.txt").write_text("sound")
    return folder


class TestJobs:
    """One sound image among hostile ones: jobs leave those out, whatever they are."""

    def test_embed(self, pictures: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "list").write_text("\n".join([*map(str, pictures.glob("*.*g")), "pipe.jpg", "absent.jpg"]))
        result = embed(EmbedPlan("siglip-shapes", [str(tmp_path / "list")], tmp_path / "index", batch_size=4))
        assert (result.rows, result.skipped) == (1, len(images.REFUSED) + 2)
        assert [*Index.open(tmp_path / "index").paths] == [str(pictures / "sound.png")]
        assert "It is not a file." in (tmp_path / "index" / "skipped.jsonl").read_text()

    def test_train(self, pictures: Path) -> None:
        pairs: Any = load_pairs(pictures, skip_corrupt=True)
        assert {sample["text"] for sample in (pairs[place] for place in range(len(pairs)))} == {"sound"}

    def test_train_on_tars(self, pictures: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for path in sorted(pictures.iterdir()):
                tar.add(path, path.name)
        stream: Any = load_pairs(tmp_path / "a.tar", repeat=False)
        assert [sample["text"] for sample in stream] == ["sound"]
        assert stream.skipped == len(images.REFUSED)

    def test_evaluate(self, pictures: Path) -> None:
        model = twinlens.DualEncoderModel.from_pretrained("siglip-shapes")
        processor = twinlens.DualEncoderProcessor.from_pretrained("siglip-shapes")
        found = embed_images(model, processor, [(path.name, str(path)) for path in sorted(pictures.glob("*.*g"))])
        assert (len(found.kept), len(found.skipped)) == (1, len(images.REFUSED))

    def test_thumbnails(self, pictures: Path) -> None:
        for path in pictures.glob("*.*g"):
            assert bool(make_thumbnail(path.read_bytes()).problem) == (path.name != "sound.png")


LONG = "\x1b[2J\n\u202e" + "a" * 5000
VALUES: tuple[Any, ...] = (LONG, [LONG] * 9, {LONG: [[[[LONG] * 9] * 9] * 9] * 9}, 10**5000, LONG.encode(), "\ud800")


def _table(folder: Path, **row: object) -> Path:
    (folder / "a.png").write_bytes(b"")
    (folder / "table.jsonl").write_text(json.dumps({"image": "a.png", "text": "a", "label": "a", **row}))
    return folder / "table.jsonl"


def _labels(folder: Path) -> None:
    (folder / "names.json").write_text(json.dumps({"a": [LONG]}))
    read_names(folder / "names.json", ["a"])


def _index(folder: Path) -> None:
    (folder / "index.json").write_text(json.dumps({"format": "twinlens-index", "version": [LONG] * 99}))
    Index.open(folder)


def _yaml(folder: Path) -> None:
    (folder / "a.yaml").write_text(json.dumps([LONG] * 99))
    TrainingPlan.read(folder / "a.yaml", {})


def _config(folder: Path, name: str, content: dict[str, Any]) -> None:
    torch.save({"a": torch.ones(1)}, folder / "open_clip_pytorch_model.bin")
    (folder / name).write_text(json.dumps(content))
    inspect_source(folder)


def _adapter(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    twinlens.DualEncoderModel.from_pretrained(folder)


MESSAGES: dict[str, Callable[[Path], object]] = {
    "the image of a row": lambda folder: load_pairs(_table(folder, image=[LONG] * 99)),
    "the caption of a row": lambda folder: load_pairs(_table(folder, text={LONG: 1})),
    "the label of a row": lambda folder: load_labels(_table(folder, label={LONG: 1})),
    "the columns of a row": lambda folder: load_pairs(_table(folder), image_column=LONG),
    "names of classes": _labels,
    "an index": _index,
    "settings in YAML": _yaml,
    "a model_type": lambda folder: _config(folder, "config.json", {"model_type": LONG}),
    "an adapter of another kind": lambda folder: _adapter(folder, '["a"]'),
    "an adapter without end": lambda folder: _adapter(folder, "[" * 100_000),
    "a huge adapter": lambda folder: _adapter(folder, " " * (17 << 20)),
    "an adapter of no model": lambda folder: _adapter(folder, '{"base_model_name_or_path": [1]}'),
}


class TestMessages:
    @pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
    def test_a_value_is_cut_and_escaped(self, value: object) -> None:
        assert len(quoted(value)) < 250
        assert quoted(value).isprintable()

    def test_a_short_value_is_as_python_writes_it(self) -> None:
        for value in ("a cat", 1.5, None, ["a", 2], {"a": (1, 2)}):
            assert quoted(value) == repr(value)

    @pytest.mark.parametrize("name", MESSAGES)
    def test_what_files_hold_is_quoted_so(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"xpected|adapter|names|cannot be read|weights") as error:
            MESSAGES[name](tmp_path)
        assert len(str(error.value)) < 800
        assert str(error.value).isprintable()


class TestCards:
    @pytest.mark.parametrize(
        "name",
        [
            "plain_name.pt",
            "a\n# heading",
            "a`b",
            "``",
            "`",
            "a`\n\n<script>x</script>\n\n[link](https://x)`",
            "a|b",
            "\x1b[2J",
        ],
    )
    def test_names_stay_text(self, name: str) -> None:
        markdown = MarkdownIt("commonmark").enable("table")
        for line in (f"# A model from {code_span(name)}", f"- {escaped(name)}", f"| a |\n|---|\n| {escaped(name)} |"):
            kinds = [token.type for token in markdown.parse(line)]
            inner = [child.type for token in markdown.parse(line) for child in token.children or ()]
            assert kinds.count("heading_open") == line.startswith("#")
            assert not {"html_block", "fence"} & {*kinds}
            assert {*inner} <= {"text", "code_inline", "text_special"}

    def test_a_plain_name_is_not_changed(self) -> None:
        assert code_span("ViT-B-32_x.pt") == "`ViT-B-32_x.pt`"
        assert escaped("data/pairs_1") == "data/pairs_1"
