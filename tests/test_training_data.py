"""Training data: every kind of source, tars shared out and damaged, crops, and batches that depend on nothing else."""

import base64
import csv
import io
import json
import math
import pickle
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from braceexpand import braceexpand
from helpers import families
from helpers.text_corpus import trained_sentencepiece
from PIL import ExifTags, Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader

import twinlens
from twinlens.processing import (
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipImageProcessor,
    SiglipProcessor,
    SiglipTokenizer,
)
from twinlens.training import ContrastiveCollator, RandomResizedCrop, image_classes
from twinlens.training.shards import _count_names, expand_braces
from twinlens.training.streams import Sample, SkipCounter

load_pairs: Any = twinlens.training.load_pairs  # what it returns depends on what it is given

# More workers than the machine has cores.
MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def picture(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """An image of (width, height) whose first pixel tells its number, in a format without loss."""
    levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    levels[0, 0] = number
    return Image.fromarray(levels)


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def number_of(sample: dict) -> int:
    return sample["image"].convert("RGB").getpixel((0, 0))[0]


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(number))
    return names


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, each: int) -> str:
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        files = {f"{n:04d}.{kind}": encoded(n) if kind == "png" else b"no. %d" % n for n in numbers for kind in KINDS}
        write_tar(folder / f"s-{shard:02d}.tar", files)
    return str(folder / f"s-{{00..{shards - 1:02d}}}.tar")


KINDS = ("png", "txt")


@pytest.fixture(scope="module")
def clip() -> CLIPProcessor:
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16), CLIPTokenizer.from_official())


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> SiglipProcessor:
    vocabulary = trained_sentencepiece(tmp_path_factory.mktemp("vocabulary"), "bpe")
    tokenizer = SiglipTokenizer.from_file(vocabulary, model_max_length=12)
    return SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 12}), tokenizer)


class TestFolders:
    def test_captions_beside_images(self, tmp_path, caplog):
        write_images(tmp_path / "deep", 3)
        (tmp_path / "deep" / "000.txt").write_text("a cat\n\n  two captions  \n")
        (tmp_path / "deep" / "001.txt").write_bytes("\ufeffein Hörnchen".encode())
        pairs = load_pairs(tmp_path)
        root = f"{tmp_path}/deep"
        assert [pairs[index] for index in range(len(pairs))] == [
            {"image": f"{root}/000.png", "text": "a cat", "index": 0, "image_id": 0},
            {"image": f"{root}/000.png", "text": "two captions", "index": 1, "image_id": 0},
            {"image": f"{root}/001.png", "text": "ein Hörnchen", "index": 2, "image_id": 1},
        ]
        assert "Left out 1 images" in caplog.text

    @pytest.mark.parametrize(
        ("content", "message"), [(b"\xff", "001.txt is not in UTF-8"), (b" \n", "001.txt, which is")]
    )
    def test_a_caption_that_cannot_be_read(self, tmp_path, content, message):
        write_images(tmp_path, 2)
        (tmp_path / "000.txt").write_text("a cat")
        (tmp_path / "001.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path)

    def test_a_folder_without_pairs(self, tmp_path):
        write_images(tmp_path, 1)
        with pytest.raises(ValueError, match=r"Expected metadata\.csv or metadata\.jsonl in .*, or images each with"):
            load_pairs(tmp_path)

    def test_classes(self, tmp_path):
        for name, count in (("dog", 2), ("a_cat", 1)):
            write_images(tmp_path / name, count)
        images, names = image_classes(tmp_path)
        assert names == ["a cat", "dog"]
        assert [(Path(s["image"]).parent.name, s["label"]) for s in map(images.__getitem__, range(3))] == [
            ("a_cat", 0),
            ("dog", 1),
            ("dog", 1),
        ]
        with pytest.raises(ValueError, match="folder of images for each class"):
            image_classes(tmp_path / "dog")


def write_table(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file
    with file.open("w", newline="", encoding="utf-8-sig") as lines:  # as spreadsheets write it
        table = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    return file


class TestTables:
    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "any.csv", "any.tsv", "any.jsonl"])
    def test_rows(self, tmp_path, name):
        write_images(tmp_path / "images", 2)
        rows = [
            {"file_name": "images/001.png", "text": 'says "a, b"'},
            {"file_name": "images/000.png", "text": "x"},
            {"file_name": "images/001.png", "text": "y"},
        ]
        file = write_table(tmp_path / name, rows)
        pairs = load_pairs(tmp_path if name.startswith("metadata") else file)
        samples = [pairs[index] for index in range(len(pairs))]
        assert [sample["text"] for sample in samples] == ['says "a, b"', "x", "y"]
        assert [sample["image_id"] for sample in samples] == [0, 1, 0]
        assert samples[0]["image"] == str(tmp_path / "images" / "001.png")

    def test_columns_by_name(self, tmp_path):
        write_images(tmp_path, 1)
        file = write_table(tmp_path / "t.csv", [{"image": "nothing", "where": "000.png", "text": "a", "long": "b"}])
        assert load_pairs(file, image_column="where", text_column="long")[0]["text"] == "b"
        with pytest.raises(ValueError, match=r"named 'label' in row 1 of .*, got 'image', 'where', 'text', 'long'"):
            load_pairs(file, text_column="label")

    @pytest.mark.parametrize(
        ("name", "content", "error", "message"),
        [
            ("t.csv", "x,text\n000.png,a\n", ValueError, r"with the image, such as 'image', in row 1 of .*, got 'x'"),
            ("t.csv", "image,text\n000.png,a\nb.png,b\n", FileNotFoundError, r"1 of 2 .*b.png \(row 2 of .*t.csv\)"),
            ("t.csv", "image,text\n000.png\n", ValueError, r"Row 1 of .*t.csv: Expected a caption .*, got None"),
            ("t.csv", "image,text\n,a\n", ValueError, r"Row 1 of .*t.csv: Expected the path of an image, got ''"),
            ("t.csv", "image,text\n000.png,a red, big star\n", ValueError, r"Row 1 of .* got ' big star' after them"),
            ("t.csv", "image,text\n000.png,a,,\nb.png,b\n", FileNotFoundError, r"1 of 2"),
            ("t.csv", "image,text\n000.png,\udce9toile\n", ValueError, r"t.csv is not in UTF-8, at the byte 0xe9 in"),
            ("t.jsonl", '{"text": "\udce9"}', ValueError, r"Row 1 of .*t.jsonl is not in UTF-8"),
            ("t.csv", "image,text\n", ValueError, r"Expected image-caption pairs, got .*t.csv without any"),
            ("t.csv", 'image,text\n"a', ValueError, r"t.csv is not a sound .csv file: unexpected end of data"),
            ("t.jsonl", '{"image": "000.png", "text": []}\n', ValueError, r"Row 1 of .*: Expected a caption"),
            ("t.jsonl", "{}\n{", ValueError, r"with the image, .* in row 1 of .*t.jsonl, got none"),
            ("t.jsonl", "[1]\n", ValueError, r"Row 1 of .*t.jsonl is no JSON object but .\[1\]"),
            ("t.jsonl", "\n{\n", ValueError, r"Row 2 of .*t.jsonl is no JSON object but '{'"),
        ],
    )  # fmt: skip
    def test_wrong_tables(self, tmp_path, name, content, error, message):
        write_images(tmp_path, 1)
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(error, match=message):
            load_pairs(tmp_path / name)

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_the_delimiter_is_that_of_the_header(self, tmp_path, suffix, delimiter):
        """As the csv module writes it; open_clip's own default is the tab (--csv-separator)."""
        write_images(tmp_path, 2)
        texts = ["a; b, c\td | e", 'the "second"\nline']
        rows = [["filepath", "a, b; c", "title"], ["000.png", "-", texts[0]], ["001.png", "-", texts[1]]]
        with (tmp_path / f"t.{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        pairs = load_pairs(tmp_path / f"t.{suffix}")
        assert [pairs[index]["text"] for index in range(2)] == texts

    def test_a_named_column_decides_the_delimiter(self, tmp_path):
        write_images(tmp_path, 1)
        (tmp_path / "t.csv").write_text("image,text;where;said\n,;000.png;x\n")
        assert load_pairs(tmp_path / "t.csv", image_column="where", text_column="said")[0]["text"] == "x"

    @pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
    def test_rows_without_an_image_or_a_caption_are_left_out_and_counted(self, tmp_path, caplog, name):
        write_images(tmp_path, 3)
        files = ["000.png", "gone.png", "001.png", "", ".", "002.png"]
        rows = [{"image": image, "text": "" if image == "001.png" else f"at {image}"} for image in files]
        file = write_table(tmp_path / name, rows)
        with pytest.raises(ValueError, match=r"Row 3 of .*: Expected a caption"):
            load_pairs(file)
        pairs = load_pairs(file, skip_corrupt=True)
        assert [pairs[index]["text"] for index in range(len(pairs))] == ["at 000.png", "at 002.png"]
        assert pairs.skipped == 4
        assert "Left out 4 of 6 pairs" in caplog.text
        assert "gone.png (row 2 of" in caplog.text
        for image in tmp_path.glob("*.png"):
            image.unlink()
        with pytest.raises(ValueError, match=r"without any: 6 cannot be read, the first: .*000\.png"):
            load_pairs(file, skip_corrupt=True)

    @pytest.mark.parametrize(
        ("name", "damaged"),
        [
            ("t.jsonl", b'{"image": "001.png", "te'),
            ("t.jsonl", b'{"image": "001.png", "text": "\xe9"}'),
            ("t.jsonl", b"[" * 100_000),
            ("t.csv", b"001.png,a red, big star"),
        ],
        ids=["half", "latin-1", "deep", "comma"],
    )
    def test_damaged_rows_are_left_out_and_counted(self, tmp_path, name, damaged):
        write_images(tmp_path, 3)
        sound = [(f"00{number}.png", f"no. {number}") for number in (0, 2)]
        if name == "t.csv":
            lines = [f"{image},{text}".encode() for image, text in sound]
        else:
            lines = [json.dumps({"image": image, "text": text}).encode() for image, text in sound]
        header = [b"image,text"] if name == "t.csv" else []
        (tmp_path / name).write_bytes(b"\n".join([*header, lines[0], damaged, lines[1]]))
        with pytest.raises(ValueError, match="Row 2 of"):
            load_pairs(tmp_path / name)
        pairs = load_pairs(tmp_path / name, skip_corrupt=True)
        assert [pairs[index]["text"] for index in range(len(pairs))] == ["no. 0", "no. 2"]
        assert pairs.skipped == 1

    def test_captions_beside_images_are_left_out_and_counted(self, tmp_path):
        write_images(tmp_path, 3)
        for number, content in enumerate((b"a cat", b"\xff", b" ")):
            (tmp_path / f"{number:03d}.txt").write_bytes(content)
        pairs = load_pairs(tmp_path, skip_corrupt=True)
        assert (len(pairs), pairs.skipped, pairs[0]["text"]) == (1, 2, "a cat")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing.csv", "nothing.csv is not there"),
            ("nothing", "which is not there"),
            ("000.png", "which is none of them"),
            ("s-{0..1}.tar", r"2 of 2 tars are not there: .*s-0.tar, .*s-1.tar"),
        ],
    )
    def test_nothing_of_that_name(self, tmp_path, name, message):
        write_images(tmp_path, 1)
        with pytest.raises(FileNotFoundError, match=message):
            load_pairs(tmp_path / name)

    def test_neither_path_nor_data_set(self):
        with pytest.raises(TypeError, match="Expected a path, a name or a data set of `datasets`, got int"):
            load_pairs(3)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_urls_in_tables(tmp_path: Path, suffix: str) -> None:
    """They are read as the processors read them, and no error shows a payload."""
    stored = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stored, "PNG")
    file, table = tmp_path / "a b.png", tmp_path / f"table{suffix}"
    file.write_bytes(stored.getvalue())

    def write(image: str) -> str:
        table.write_text(
            json.dumps({"image": image, "text": "a"}) if suffix == ".jsonl" else f'image,text\n"{image}",a'
        )
        return str(table)

    data = f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"
    for image, expected in ((file.as_uri(), str(file)), (data, data)):
        assert load_pairs(write(image))[0]["image"] == expected
        assert load_pairs(write(image), skip_corrupt=True)[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    for wrong in ("A" * 6000, (tmp_path / "gone.png").as_uri()):
        with pytest.raises(FileNotFoundError) as caught:
            load_pairs(write(wrong))
        assert len(str(caught.value)) < 300


class TestDamagedImages:
    @pytest.fixture
    def pairs(self, tmp_path) -> Path:
        write_images(tmp_path, 4)
        (tmp_path / "001.png").write_bytes(encoded(1)[:60])
        (tmp_path / "002.png").write_bytes(b"nothing")
        rows = [{"image": f"{number:03d}.png", "text": f"no. {number}"} for number in range(4)]
        return write_table(tmp_path / "t.csv", rows)

    def test_one_is_an_error_that_names_it(self, pairs, clip):
        data = load_pairs(pairs)
        for augmentation in (None, RandomResizedCrop()):
            with pytest.raises(ValueError, match=r"001\.png"):
                ContrastiveCollator(clip, augmentation=augmentation)([data[0], data[1]])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_next_sound_one_takes_its_place(self, pairs, workers):
        data = load_pairs(pairs, skip_corrupt=True)
        loader = DataLoader(data, 2, collate_fn=list, num_workers=workers)
        samples = [sample for batch in loader for sample in batch]
        assert [number_of(sample) for sample in samples] == [0, 3, 3, 3]
        assert [sample["text"] for sample in samples] == ["no. 0", "no. 3", "no. 3", "no. 3"]
        assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
        assert data.skipped == 2  # each once, in however many places and passes it was found

    def test_none_is_sound(self, pairs):
        for file in pairs.parent.glob("*.png"):
            file.write_bytes(b"")
        with pytest.raises(ValueError, match="None of the 4 pairs can be read"):
            load_pairs(pairs, skip_corrupt=True)[1]

    def test_the_log_does_not_fill(self, caplog):
        count = SkipCounter()
        for number in range(100):
            assert count(f"reason {number}") is True
        assert count.total == 100
        assert [record.args for record in caplog.records] == [(2**n, f"reason {2**n - 1}") for n in range(7)]


@pytest.fixture
def table(tmp_path) -> datasets.Dataset:
    """Six images with captions, of which the fourth is damaged."""
    rows = {
        "image": [{"bytes": encoded(number) if number != 3 else b"nothing", "path": None} for number in range(6)],
        "caption": [f"no. {number}" for number in range(6)],
        "other": list(range(6)),
    }
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "other": datasets.Value("int64")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def generated():
    yield from ({"image": picture(number), "text": f"no. {number}"} for number in range(3))


class TestDatasets:
    def test_rows(self, table, clip):
        pairs = load_pairs(table)
        assert len(pairs) == 6
        assert pairs[2] == {"image": encoded(2), "text": "no. 2", "index": 2}
        with pytest.raises(ValueError, match=r"Sample 3: .* no format that Pillow knows"):
            ContrastiveCollator(clip, augmentation=RandomResizedCrop())([pairs[3]])
        assert number_of(load_pairs(table, skip_corrupt=True)[3]) == 4

    def test_saved_to_disk(self, table, tmp_path):
        table.save_to_disk(tmp_path / "one")
        datasets.DatasetDict(train=table, test=table.select([5])).save_to_disk(tmp_path / "splits")
        assert load_pairs(tmp_path / "one")[1]["text"] == "no. 1"
        assert len(load_pairs(tmp_path / "splits")) == 6
        assert load_pairs(str(tmp_path / "splits"), split="test")[0]["text"] == "no. 5"
        with pytest.raises(ValueError, match="no split 'validation', only train, test"):
            load_pairs(tmp_path / "splits", split="validation")

    def test_a_missing_column(self, table):
        with pytest.raises(ValueError, match=r"named 'title' in the data set, got 'image', 'caption', 'other'"):
            load_pairs(table, text_column="title")
        with pytest.raises(ValueError, match=r"with the text, such as 'text', in the data set, got 'image', 'other'"):
            load_pairs(table.remove_columns("caption"))

    def test_an_empty_one(self, table):
        with pytest.raises(ValueError, match="got an empty data set"):
            load_pairs(table.select([]))

    def test_a_name_out_of_reach(self, monkeypatch):
        def unreachable(name, split, streaming):
            raise ConnectionError(f"no network for {name} {split} {streaming}")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        with pytest.raises(
            FileNotFoundError, match=r"some/set is neither a file .*: no network for some/set test True"
        ):
            load_pairs("some/set", split="test", streaming=True)

    @MANY_WORKERS
    @pytest.mark.parametrize("workers", [0, 2, 3])
    def test_a_stream_once(self, table, workers):
        """With more workers than shards some have nothing to do."""
        stream = load_pairs(table.to_iterable_dataset(num_shards=2), repeat=False)
        samples = list(DataLoader(stream, None, num_workers=workers))
        assert sorted(map(number_of, samples)) == [0, 1, 2, 4, 5]
        assert all(sample["text"] == f"no. {number_of(sample)}" for sample in samples)
        assert len({sample["index"] for sample in samples}) == 5
        assert stream.skipped == 1

    def test_a_stream_without_end(self, table, monkeypatch):
        """Every pass has every sample once over both processes, and another order."""
        data = table.select([0, 1, 2, 4, 5, 2, 1, 0]).to_iterable_dataset(num_shards=2)
        monkeypatch.setenv("WORLD_SIZE", "2")
        passes: list[list[Any]] = [[] for _ in range(5)]
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            found = [number_of(sample) for sample, _ in zip(load_pairs(data, seed=1), range(20), strict=False)]
            for number, one in enumerate(passes):
                one += found[number * 4 : (number + 1) * 4]
        assert all(sorted(one) == [0, 0, 1, 1, 2, 2, 4, 5] for one in passes)
        assert len(set(map(tuple, passes))) > 1

    def test_a_stream_that_does_not_know_its_columns(self):
        stream = datasets.IterableDataset.from_generator(generated)
        assert stream.column_names is None
        assert [number_of(sample) for sample in load_pairs(stream, repeat=False)] == [0, 1, 2]
        with pytest.raises(ValueError, match="named 'title' in the data set, got 'image', 'text'"):
            load_pairs(stream, text_column="title")

    @MANY_WORKERS
    def test_too_many_workers_for_a_stream_without_end(self, table):
        stream = load_pairs(table.to_iterable_dataset(num_shards=2))
        with pytest.raises(ValueError, match=r"At most 2 can read the data set.* side by side, got 3 processes"):
            next(iter(DataLoader(stream, None, num_workers=3)))


class TestTars:
    def read(self, stream, workers: int = 0, count: int | None = None) -> list[int]:
        samples = zip(DataLoader(stream, None, num_workers=workers), range(count or sys.maxsize), strict=False)
        found = []
        for sample, _ in samples:
            assert sample["text"] == f"no. {number_of(sample)}"
            found.append(number_of(sample))
        return found

    @MANY_WORKERS
    @pytest.mark.parametrize("workers", [0, 2, 4])
    def test_once(self, tmp_path, workers):
        stream = load_pairs(write_shards(tmp_path, 3, 4), repeat=False)
        found = self.read(stream, workers)
        assert sorted(found) == list(range(12))
        assert found == list(range(12)) or workers
        assert self.read(stream, workers) == found

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_without_end(self, tmp_path, monkeypatch, ranks, workers):
        """Every pass has every sample once over all processes and workers, and another order."""
        shards, each = 4, 5
        source = write_shards(tmp_path, shards, each)
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        passes: list[list[Any]] = [[], [], []]
        size = shards * each // ranks
        for rank in range(ranks):
            monkeypatch.setenv("RANK", str(rank))
            found = self.read(load_pairs(source, seed=3), workers, 3 * size)
            assert found == self.read(load_pairs(source, seed=3), workers, 3 * size)
            assert found[:size] != self.read(load_pairs(source, seed=4), count=size)
            for number, one in enumerate(passes):
                one += found[number * size : (number + 1) * size]
        assert all(sorted(one) == list(range(shards * each)) for one in passes)
        assert passes[0] != passes[1] != passes[2]

    def test_indices_are_unique_over_everything(self, tmp_path, monkeypatch):
        source = write_shards(tmp_path, 4, 3)
        monkeypatch.setenv("WORLD_SIZE", "2")
        indices = []
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            loader = DataLoader(load_pairs(source), None, num_workers=2)
            indices += [sample["index"] for sample, _ in zip(loader, range(12), strict=False)]
        assert sorted(indices) == list(range(24))

    def test_processes_are_those_of_torch_distributed(self, tmp_path, monkeypatch):
        source = write_shards(tmp_path, 2, 3)
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
        numbers = self.read(load_pairs(source), count=3)
        assert sorted(numbers) in ([0, 1, 2], [3, 4, 5])
        assert self.read(load_pairs(source, repeat=False)) == list(range(6))  # an evaluation is not shared out

    def test_a_resumed_run_goes_on_where_it_was(self, tmp_path, clip):
        source = write_shards(tmp_path, 2, 6)

        def loader() -> DataLoader:
            collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.2, 1.0)), seed=5)
            return DataLoader(load_pairs(source, seed=5), 4, collate_fn=collate, num_workers=2)

        batches = [batch for batch, _ in zip(loader(), range(7), strict=False)]
        again = [batch for batch, _ in zip(skip_first_batches(loader(), 5), range(2), strict=False)]
        for batch, same in zip(batches[5:], again, strict=True):
            assert all(torch.equal(batch[name], same[name]) for name in batch)

    def test_damaged_samples_are_left_out_and_counted(self, tmp_path, caplog):
        bomb = encoded(1)[:16] + b"\xff" * 8 + encoded(1)[24:]  # a height and a width of four thousand million
        files = {
            "a.png": encoded(7), "a.txt": b"no. 7",
            "b.png": encoded(1),  # no caption
            "c.txt": b"no. 2",  # no image
            "d.png": encoded(3)[:70], "d.txt": b"no. 3",
            "e.png": bomb, "e.txt": b"no. 4",
            "f.png": encoded(5), "f.txt": b"\xff",
            "g.png": encoded(6), "g.txt": b" ",
            "h.png": encoded(8), "h.json": b'{"caption": null}',
            "i.png": encoded(9), "i.json": b"[]",
            "j.png": encoded(10), "j.json": b'{"text": "no. 10"}',
        }  # fmt: skip
        stream = load_pairs(str(write_tar(tmp_path / "s.tar", files)), repeat=False)
        assert self.read(stream) == [7, 10]
        assert stream.skipped == 8
        assert "Left out a damaged sample, number 1 in this process: b in" in caplog.text
        assert "no caption (txt, caption, text)" in caplog.text
        assert "no image (jpg, jpeg, png, webp)" in caplog.text

    def test_files_by_name(self, tmp_path):
        files = {
            "a.png": encoded(1),
            "a.left.png": encoded(2),
            "a.txt": b"no. 1",
            "a.json": b'{"long": "no. 2"}',
        }
        tar = str(write_tar(tmp_path / "s.tar.gz", files, "w:gz"))
        stream = load_pairs(tar, image_column="left.png", text_column="long", repeat=False)
        assert self.read(stream) == [2]

    def test_a_damaged_tar_is_left_out(self, tmp_path, caplog):
        source = write_shards(tmp_path, 3, 4)
        (tmp_path / "s-00.tar").write_bytes(b"not a tar" * 1000)
        whole = (tmp_path / "s-01.tar").read_bytes()
        (tmp_path / "s-01.tar").write_bytes(whole[: whole.index(b"no. 5") + 1500])  # within the third image
        stream = load_pairs(source, repeat=False)
        found = self.read(stream)
        assert found == [4, 5, 8, 9, 10, 11]
        assert stream.skipped == 2
        assert "the rest of" in caplog.text
        assert "s-00.tar" in caplog.text

    @pytest.mark.parametrize("content", [b"", b"not a tar" * 1000])
    @pytest.mark.parametrize("repeat", [False, True])
    def test_nothing_at_all(self, tmp_path, content, repeat):
        (tmp_path / "s.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"No pair of .*s\.tar can be read; 1 are damaged"):
            next(iter(load_pairs(str(tmp_path / "s.tar"), repeat=repeat)))

    def test_too_many_readers(self, tmp_path, monkeypatch):
        source = write_shards(tmp_path, 2, 1)
        monkeypatch.setenv("WORLD_SIZE", "3")
        with pytest.raises(ValueError, match=r"At most 2 can read .*s-00.tar and 1 more side by side, got 3 processes"):
            next(iter(load_pairs(source)))

    @pytest.mark.parametrize("package", ["webdataset", "datasets"])
    def test_a_package_that_is_not_there(self, tmp_path, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        source = write_shards(tmp_path, 1, 1) if package == "webdataset" else "some/set"
        with pytest.raises(ImportError, match=rf"{package}.*pip install '\.\[train\]'"):
            load_pairs(source)


def boxes(crop: RandomResizedCrop, height: int, width: int, count: int = 3000) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return np.array([crop.draw_box(height, width, generator) for _ in range(count)])


class TestCrops:
    @pytest.mark.parametrize(
        ("height", "width", "scale", "ratio"),
        [(90, 120, (0.9, 1.0), (3 / 4, 4 / 3)), (300, 200, (0.08, 1.0), (3 / 4, 4 / 3)), (77, 77, (0.5, 0.5), (1, 1))],
    )
    def test_lie_within_all_bounds(self, height, width, scale, ratio):
        left, top, right, bottom = boxes(RandomResizedCrop(scale=scale, ratio=ratio), height, width).T
        w, h = right - left, bottom - top
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        whole = (w == width) & (h == height)  # where ten draws did not fit
        # A side rounds by half a pixel, so that area and ratio go beyond their bounds by so much.
        slack = 0.5 / w + 0.5 / h + 0.25 / (w * h)
        area = w * h / (height * width)
        assert ((area * (1 + slack) >= scale[0]) & (area * (1 - slack) <= scale[1]) | whole).all()
        assert (w / h * (1 + slack) >= ratio[0] - 1e-9).all()
        assert (w / h * (1 - slack) <= ratio[1] + 1e-9).all()

    def test_are_spread_evenly(self):
        """Area, the ratio's logarithm, and the place are uniform where every draw fits."""
        crop = RandomResizedCrop(scale=(0.1, 0.5), ratio=(1 / 2, 2))
        left, top, right, bottom = boxes(crop, 4000, 4000).T
        w, h = right - left, bottom - top
        uniform = {
            "area": (w * h / 4000**2 - 0.1) / 0.4,
            "ratio": (np.log(w / h) / math.log(2) + 1) / 2,
            "left": left / (4000 - w),
            "top": top / (4000 - h),
        }
        for name, values in uniform.items():
            # Kolmogorov and Smirnov: 3000 uniform numbers are this far from their expectation once in 5000 times.
            distance = np.abs(np.sort(values) - np.linspace(0, 1, len(values))).max()
            assert distance < 2.15 / math.sqrt(len(values)), name

    @pytest.mark.parametrize(
        ("height", "width", "box"),
        [(100, 1000, (433, 0, 566, 100)), (1000, 100, (0, 433, 100, 566)), (1, 1, (0, 0, 1, 1))],
    )
    def test_of_an_image_too_long_are_its_middle(self, height, width, box):
        assert (boxes(RandomResizedCrop(), height, width, 50) == box).all()

    def test_flips(self):
        image, generator = picture(0), torch.Generator().manual_seed(0)
        crop = RandomResizedCrop(scale=(1, 1), ratio=(1.2, 1.2), flip=0.5)
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        counts = [0, 0]
        for _ in range(200):
            part = crop(image, generator)
            counts[0] += part.tobytes() == image.tobytes()
            counts[1] += part.tobytes() == mirrored.tobytes()
        assert sum(counts) == 200
        assert 70 < counts[0] < 130

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"scale": (0, 1)}, r"scale must hold two shares .* got \(0, 1\)"),
            ({"scale": (0.9, 1.1)}, "scale must hold"),
            ({"ratio": (2, 1)}, r"ratio must hold .* got \(2, 1\)"),
            ({"flip": 50}, "flip must be a probability of 0..1, got 50"),
        ],
    )
    def test_wrong_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            RandomResizedCrop(**settings)


def samples() -> list[Sample]:
    return [{"image": picture(n, (30 + n, 40)), "text": ["a cat", "a dog", "a cup"], "index": n} for n in range(6)]


class TestBatches:
    def test_clip_fills_texts_to_the_longest(self, clip):
        batch = ContrastiveCollator(clip, augmentation=RandomResizedCrop())(samples())
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            "pixel_values": (6, 3, 16, 16),
            "input_ids": (6, 4),
            "attention_mask": (6, 4),
        }

    def test_what_is_no_sample_is_refused(self, clip):
        with pytest.raises(ValueError, match="at least one sample"):
            ContrastiveCollator(clip)([])
        others: Any = [samples()[0], {"image": picture(0), "text": "a cat"}]
        with pytest.raises(ValueError, match=r"Sample 1 of the batch has no index: expected image, text and index"):
            ContrastiveCollator(clip)(others)

    def test_what_fills_texts_of_clip_changes_no_gradient(self, clip):
        model = families.model("CLIP").double().train()
        short = ContrastiveCollator(clip)(samples())
        ids, mask = short["input_ids"] % 97, short["attention_mask"]  # the tiny model has a tiny vocabulary
        ids = torch.where(short["input_ids"] == clip.tokenizer.eos_token_id, 98, ids)
        pixels = torch.randn(6, 3, 32, 32, dtype=torch.float64)

        def gradients(fill: int) -> list[torch.Tensor]:
            inputs = {"input_ids": pad(ids, (0, fill)), "attention_mask": pad(mask, (0, fill))}
            model.zero_grad()
            model(pixel_values=pixels, **inputs, return_loss=True).loss.backward()
            return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

        torch.testing.assert_close(gradients(0), gradients(8), rtol=1e-5, atol=1e-9)

    def test_siglip_fills_texts_to_their_length(self, siglip):
        """The square of SigLIP need not be one."""
        batch = ContrastiveCollator(siglip, augmentation=RandomResizedCrop())(samples())
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            "pixel_values": (6, 3, 16, 12),
            "input_ids": (6, 12),
        }

    def test_texts_are_cut(self, siglip, clip):
        long: list[Sample] = [{"image": picture(0), "text": "a cat and a dog " * 40, "index": 0}]
        assert ContrastiveCollator(siglip)(long)["input_ids"].shape == (1, 12)
        assert ContrastiveCollator(clip)(long)["input_ids"].shape == (1, 77)

    def test_without_augmentation_it_is_the_processor(self, clip):
        one: list[Sample] = [{**sample, "text": "a cat", "image_id": 7} for sample in samples()]
        batch = ContrastiveCollator(clip)(one)
        plain = clip(images=[sample["image"] for sample in one], text=["a cat"] * 6, padding="longest")
        assert all(torch.equal(batch[name], plain[name]) for name in plain)
        assert batch["image_ids"].tolist() == [7] * 6
        assert batch["image_ids"].dtype == torch.int64

    def test_a_part_is_resized_as_the_processor_resizes(self, clip):
        """Nothing is cut off a second time: the whole part becomes the square."""
        crop = RandomResizedCrop(scale=(0.5, 0.5), ratio=(2, 2))
        collate = ContrastiveCollator(clip, augmentation=crop)
        sample: Sample = {"image": picture(3, (60, 40)), "text": "x", "index": 9}
        box = crop.draw_box(40, 60, collate._generator(9))
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(2, rel=0.05)
        part = sample["image"].crop(box).resize((16, 16), Image.Resampling.BICUBIC)
        assert torch.equal(collate([sample])["pixel_values"], clip(images=part)["pixel_values"])

    def test_images_of_every_kind(self, clip, tmp_path):
        (tmp_path / "i.png").write_bytes(encoded(5))
        array = np.array(picture(5))
        kinds = [picture(5), encoded(5), str(tmp_path / "i.png"), array, torch.from_numpy(array)]
        collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.3, 0.5)))
        pixels = [collate([{"image": kind, "text": "x", "index": 1}])["pixel_values"] for kind in kinds]
        assert all(torch.equal(pixels[0], other) for other in pixels)

    def test_large_batches_are_those_of_their_samples(self, clip, monkeypatch):
        """However many images exist at a time, and in however many threads they are opened."""
        collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.2, 0.8)))
        whole = collate(samples())
        monkeypatch.setattr("twinlens.training.collator.IMAGES_PER_CHUNK", 4)
        monkeypatch.setattr("torch.get_num_threads", lambda: 3)
        chunked = collate(samples())
        assert all(torch.equal(whole[name], chunked[name]) for name in whole)

    def test_photographs_are_turned_upright_before_they_are_flipped(self, clip):
        upright = picture(4, (40, 60))
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = 6  # turn clockwise to see it as it was
        upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
        turning = CLIPProcessor(
            CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, do_exif_transpose=True), clip.tokenizer
        )
        crop = RandomResizedCrop(scale=(0.5, 0.5), ratio=(0.5, 0.5), flip=1)
        batches = [
            ContrastiveCollator(processor, augmentation=crop)([{"image": image, "text": "x", "index": 0}])
            for processor, image in ((clip, upright), (turning, file.getvalue()))
        ]
        assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])

    def test_depend_on_seed_epoch_and_index_alone(self, clip):
        def batch(epoch: int = 0, seed: int = 0, order=range(6)):
            collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.2, 0.8)), seed=seed)
            collate.set_epoch(epoch)
            assert collate.epoch == epoch
            torch.manual_seed(epoch)
            return collate([samples()[n] for n in order])

        first, mixed = batch(), batch(order=[3, 1])
        assert all(torch.equal(first[name][[3, 1]], mixed[name]) for name in first)
        for other in (batch(epoch=1), batch(seed=1)):
            assert not torch.equal(first["input_ids"], other["input_ids"])
            assert all((first["pixel_values"] != other["pixel_values"]).flatten(1).any(1))
        state = torch.get_rng_state()
        ContrastiveCollator(clip, augmentation=RandomResizedCrop())(samples())
        assert torch.equal(torch.get_rng_state(), state)

    def test_draw_every_caption_in_time(self, clip):
        collate = ContrastiveCollator(clip)
        drawn = set()
        for epoch in range(12):
            collate.set_epoch(epoch)
            drawn |= {tuple(ids) for ids in collate(samples())["input_ids"].tolist()}
        expected = clip(text=["a cat", "a dog", "a cup"], padding="longest")["input_ids"]
        assert drawn == {tuple(ids) for ids in expected.tolist()}

    def test_are_the_same_from_workers(self, clip):
        """Workers that outlive an epoch learn of the next one."""
        collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.2, 0.8)), seed=2)
        data: Any = samples()  # a list is a data set
        here = DataLoader(data, 2, collate_fn=collate)
        there = DataLoader(data, 2, collate_fn=collate, num_workers=2, persistent_workers=True)
        for epoch in (0, 1):
            collate.set_epoch(epoch)
            for batch, same in zip(here, there, strict=True):
                assert all(torch.equal(batch[name], same[name]) for name in batch)

    def test_can_go_to_spawned_workers(self, clip):
        collate = ContrastiveCollator(clip, augmentation=RandomResizedCrop(scale=(0.2, 0.8)), seed=2)
        again = pickle.loads(ForkingPickler.dumps(collate))
        collate.set_epoch(3)
        assert again.epoch == 3
        assert torch.equal(collate(samples())["pixel_values"], again(samples())["pixel_values"])

    @pytest.mark.parametrize("text", [None, "", [], ["a", 3]])
    def test_a_sample_without_a_caption(self, clip, text):
        with pytest.raises(ValueError, match="Sample 4: Expected a caption or a list of captions, got"):
            ContrastiveCollator(clip)([{"image": picture(0), "text": text, "index": 4}])

    def test_a_processor_without_a_vocabulary(self):
        with pytest.raises(ValueError, match="Expected a processor with a tokenizer"):
            ContrastiveCollator(CLIPProcessor(CLIPImageProcessor()))


class TestShards:
    @pytest.mark.parametrize(
        "pattern",
        ["a.tar", "{0..3}.tar", "{07..10..2}", "{a..e}x{0,1}", "{a/{0..2},b/{0..3}}-{x,}", "{4..-1}", r"\{1\},{2,3}"],
    )
    def test_are_those_of_a_shell(self, pattern):
        names = expand_braces(pattern)
        assert names == list(braceexpand(pattern))
        assert len(names) <= _count_names(pattern) <= len(names) * (52 if ".." in pattern else 1)

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("{0..99999999999}.tar", "at most 1,000,000 tars"),
            ("{a,b}" * 40, "at most 1,000,000 tars"),
            ("{" + "{a,b}" * 40 + ",c}", "at most 1,000,000 tars"),
            ("x" * 100_000 + "{0..99999}", "at most 1,000,000 tars"),
            ("{" * 100_000 + "}" * 100_000, "braces in at most 20 others"),
            ("{0..{1}", "Unbalanced braces"),
            ("a}", r"a \{ for each \}"),
            ("{1.." + "9" * 5000 + "}", "4300 digits"),
        ],
    )
    def test_bombs_are_refused(self, pattern, message):
        with pytest.raises(ValueError, match=message):
            expand_braces(pattern)

    def test_a_file_that_is_too_large_ends_its_tar(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("twinlens.training.shards.MAX_FILE", 2000)
        write_tar(tmp_path / "0.tar", {"a.png": encoded(1), "a.txt": b"no. 1", "b.png": bytes(2001), "b.txt": b"no. 2"})
        write_tar(tmp_path / "1.tar", {"c.png": encoded(3), "c.txt": b"no. 3"})
        stream = load_pairs(str(tmp_path / "{0..1}.tar"), repeat=False)
        assert [sample["text"] for sample in stream] == ["no. 1", "no. 3"]
        assert stream.skipped == 1
        assert "the rest of" in caplog.text
        assert "b.png has 2,001 bytes, expected at most 2,000" in caplog.text
