"""Pairs from every kind of source, parts of images at random, and the batches made of them."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import twinlens
from twinlens.processing import CLIPTokenizer
from twinlens.training import ContrastiveCollator, RandomResizedCrop, load_pairs
from twinlens.training.sources import image_classes

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


@pytest.fixture
def images(tmp_path):
    """Three pictures of one colour each."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    return folder


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path, samples: dict[str, dict[str, bytes]]):
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for kind, content in files.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def summary(pairs) -> list[tuple]:
    """(name of the image, caption, index, number of the image) of all samples."""
    return [
        (str(sample["image"]).rpartition("/")[2], sample["text"], sample["index"], sample.get("image_id"))
        for sample in (pairs[i] for i in range(len(pairs)))
    ]


class TestFiles:
    def test_captions_beside_images(self, images):
        (images / "0.txt").write_text("red\n\n a red one \n")
        (images / "2.txt").write_text("blue\n")
        assert summary(load_pairs(images)) == [
            ("0.png", "red", 0, 0), ("0.png", "a red one", 1, 0), ("2.png", "blue", 2, 1)
        ]  # fmt: skip

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_metadata_of_a_folder(self, images, name):
        rows = [{"file_name": f"{number}.png", "text": f"colour, number {number}"} for number in (1, 0, 1)]
        if name.endswith("csv"):
            lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        (images / name).write_text("\n".join(lines) + "\n")
        pairs = load_pairs(str(images))
        assert [(image, number) for image, _, _, number in summary(pairs)] == [("1.png", 0), ("0.png", 1), ("1.png", 0)]
        assert pairs[2]["text"] == "colour, number 1"
        assert pairs[0]["image"] == str(images / "1.png")

    def test_tables_with_columns_of_other_names(self, images):
        table = images / "pairs.tsv"
        table.write_text("picture\tsays\n0.png\tred\n")
        assert summary(load_pairs(table, image_column="picture", text_column="says")) == [("0.png", "red", 0, 0)]
        with pytest.raises(
            ValueError, match=r"column with the image, such as 'image', in row 1 of .*'picture', 'says'"
        ):
            load_pairs(table)
        with pytest.raises(ValueError, match=r"column named 'caption' in row 1 of .* Name it with text_column"):
            load_pairs(table, image_column="picture", text_column="caption")

    def test_wrong_input(self, images, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere, which is not there"):
            load_pairs(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"0.png, which is none of them"):
            load_pairs(images / "0.png")
        with pytest.raises(FileNotFoundError, match=r"lost.csv is not there"):
            load_pairs(tmp_path / "lost.csv")
        with pytest.raises(ValueError, match=r"or images each with a .txt beside it, got neither"):
            load_pairs(images)
        (images / "empty.csv").write_text("image,text\n")
        with pytest.raises(ValueError, match=r"empty.csv without any"):
            load_pairs(images / "empty.csv")
        (images / "hole.csv").write_text("image,text\n0.png,red\n1.png,\n")
        with pytest.raises(ValueError, match=r"Row 2 of .*hole.csv needs a path and a caption, got '1.png' and ''"):
            load_pairs(images / "hole.csv")
        (images / "broken.jsonl").write_text('{"image": "0.png"')
        with pytest.raises(ValueError, match=r"broken.jsonl is not a sound .jsonl file"):
            load_pairs(images / "broken.jsonl")
        with pytest.raises(TypeError, match="a path, a name or a data set of `datasets`, got int"):
            load_pairs(7)

    def test_folders_of_classes(self, images):
        for name in ("red_things", "blue"):
            (images / name).mkdir()
        (images / "2.png").rename(images / "blue" / "a.png")
        (images / "0.png").rename(images / "red_things" / "b.png")
        data, names = image_classes(images)
        assert names == ["blue", "red things"]
        assert [(data[i]["image"][-5:], data[i]["label"]) for i in range(len(data))] == [("a.png", 0), ("b.png", 1)]
        with pytest.raises(ValueError, match="a folder of images for each class"):
            image_classes(images / "blue")


class TestDatasets:
    def data(self, images):
        files = [str(images / f"{number}.png") for number in range(3)]
        data = datasets.Dataset.from_dict({"image": files, "caption": ["red", "green", ["blue", "azure"][0]]})
        return data.cast_column("image", datasets.Image())

    def test_given_and_saved(self, images, tmp_path):
        for source in (self.data(images), tmp_path / "saved"):
            if source == tmp_path / "saved":
                self.data(images).save_to_disk(source)
            pairs = load_pairs(source)
            assert [pairs[i]["text"] for i in range(len(pairs))] == ["red", "green", "blue"]
            assert pairs[1]["image"].getpixel((0, 0)) == COLOURS[1]
        with pytest.raises(ValueError, match="named 'words' in the data set, got 'image', 'caption'"):
            load_pairs(self.data(images), text_column="words")
        with pytest.raises(ValueError, match="got an empty data set"):
            load_pairs(self.data(images).select([]))

    def test_splits(self, images, tmp_path):
        datasets.DatasetDict({"test": self.data(images)}).save_to_disk(tmp_path / "splits")
        assert len(load_pairs(tmp_path / "splits", split="test")) == 3
        with pytest.raises(ValueError, match="no split 'train', only test"):
            load_pairs(tmp_path / "splits")

    def test_streams(self, images):
        stream = self.data(images).to_iterable_dataset()
        assert [sample["text"] for sample in load_pairs(stream, repeat=False)] == ["red", "green", "blue"]
        endless = iter(load_pairs(stream))
        texts = [next(endless)["text"] for _ in range(30)]
        assert all(set(texts[start : start + 3]) == {"red", "green", "blue"} for start in range(0, 30, 3))
        assert len({tuple(texts[start : start + 3]) for start in range(0, 30, 3)}) > 1


class TestTars:
    @pytest.fixture
    def shards(self, tmp_path) -> str:
        """Four tars of five pairs, numbered through by their captions."""
        for shard in range(4):
            numbers = range(5 * shard, 5 * shard + 5)
            tar(
                tmp_path / f"{shard}.tar",
                {f"{n:03}": {"png": encoded(n), "txt": str(n).encode()} for n in numbers},
            )
        return str(tmp_path / "{0..3}.tar")

    def test_once_in_order(self, shards):
        samples = list(load_pairs(shards, repeat=False))
        assert [sample["text"] for sample in samples] == [str(n) for n in range(20)]
        assert samples[7]["image"].getpixel((0, 0)) == (7, 0, 7)
        assert [sample["index"] for sample in samples] == list(range(20))

    def test_shuffled_by_seed_and_epoch_without_an_end(self, shards):
        def texts(seed: int) -> list[str]:
            stream = iter(load_pairs(shards, seed=seed))
            return [next(stream)["text"] for _ in range(60)]

        first = texts(0)
        assert first == texts(0)
        assert first != texts(1)
        passes = [first[start : start + 20] for start in (0, 20, 40)]
        assert all(sorted(map(int, one)) == list(range(20)) for one in passes)
        assert passes[0] != passes[1] != passes[2]

    @pytest.mark.parametrize("repeat", [True, False])
    def test_workers_read_every_pair_once(self, shards, repeat):
        loader = iter(DataLoader(load_pairs(shards, repeat=repeat), batch_size=5, num_workers=2, collate_fn=list))
        samples = [sample for _ in range(4) for sample in next(loader)]
        assert sorted(int(sample["text"]) for sample in samples) == list(range(20))
        assert sorted(sample["index"] for sample in samples) == list(range(20))

    def test_processes_read_every_pair_once(self, shards, monkeypatch):
        read = []
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
        for rank in range(4):
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            stream = iter(load_pairs(shards))
            read += [int(next(stream)["text"]) for _ in range(5)]
        assert sorted(read) == list(range(20))
        assert len(list(load_pairs(shards, repeat=False))) == 20  # an evaluation is not shared out
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 5)
        with pytest.raises(ValueError, match="5 processes and workers need as many tars, got 4"):
            next(iter(load_pairs(shards)))

    def test_damage_is_left_out_and_counted(self, tmp_path, caplog):
        good = {"png": encoded(1), "txt": b"good"}
        samples = {
            "a": good, "b": {"png": encoded(2)[:-30], "txt": b"cut off"}, "c": {"png": encoded(3)},
            "d": {"txt": b"text"}, "e": {"png": b"nonsense", "txt": b"no image"},
            "f": {"png": encoded(4), "json": b'{"caption": "json"}'},
        }  # fmt: skip
        path = tar(tmp_path / "mixed.tar", samples)
        pairs = load_pairs(str(path), repeat=False)
        assert [sample["text"] for sample in pairs] == ["good", "json"]
        assert pairs.skipped == 4
        assert "b in" in caplog.text
        by_workers = load_pairs(str(path), repeat=False)
        list(DataLoader(by_workers, batch_size=2, num_workers=1, collate_fn=list))
        assert by_workers.skipped == 4

    def test_tars_that_are_none(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="1 of 1 tars are not there"):
            load_pairs(str(tmp_path / "lost.tar"))
        (tmp_path / "text.tar").write_bytes(b"this is no tar" * 100)
        with pytest.raises(ValueError, match=r"No pair of .*text.tar can be read \(1 are damaged\)"):
            list(load_pairs(str(tmp_path / "text.tar")))


class TestCrops:
    def boxes(self, height: int, width: int, count: int = 500, **settings) -> list[tuple[int, int, int, int]]:
        crop, generator = RandomResizedCrop(**settings), torch.Generator().manual_seed(3)
        return [crop.box(height, width, generator) for _ in range(count)]

    def test_area_and_ratio(self):
        boxes = np.array(self.boxes(300, 400, scale=(0.2, 0.6), ratio=(0.5, 2.0)))
        left, top, right, bottom = boxes.T
        assert left.min() >= 0
        assert top.min() >= 0
        assert right.max() <= 400
        assert bottom.max() <= 300
        area = (right - left) * (bottom - top) / (300 * 400)
        ratio = (right - left) / (bottom - top)
        assert 0.195 < area.min() < 0.25
        assert 0.55 < area.max() < 0.61
        assert 0.49 < ratio.min() < 0.6
        assert 1.7 < ratio.max() < 2.03
        assert abs(np.log(ratio).mean()) < 0.1  # evenly on a logarithmic scale
        assert left.max() > 100
        assert (left == 0).mean() < 0.1

    def test_whole_images_and_impossible_ratios(self):
        assert set(self.boxes(30, 30, 20, scale=(1.0, 1.0), ratio=(1.0, 1.0))) == {(0, 0, 30, 30)}
        assert set(self.boxes(10, 1000, 20)) == {(493, 0, 506, 10)}  # the middle, 4 by 3
        assert set(self.boxes(1000, 10, 20)) == {(0, 493, 10, 506)}
        assert set(self.boxes(1, 1, 20)) == {(0, 0, 1, 1)}

    @pytest.mark.parametrize(
        "settings", [{"scale": (0, 1)}, {"scale": (0.5, 1.2)}, {"scale": (0.8, 0.4)}, {"ratio": (2, 1)}]
    )
    def test_wrong_settings(self, settings):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must hold two"):
            RandomResizedCrop(**settings)


class TestCollator:
    @pytest.fixture(scope="class")
    @staticmethod
    def processor():
        size = {"height": 32, "width": 32}
        images = twinlens.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
        return twinlens.CLIPProcessor(images, CLIPTokenizer.from_official(model_max_length=12))

    @pytest.fixture
    def samples(self):
        generator = np.random.default_rng(0)
        pictures = [Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(4)]
        return [
            {"image": picture, "text": ["a cat", "a dog", "a cup"], "index": number, "image_id": number // 2}
            for number, picture in enumerate(pictures)
        ]

    def test_without_augmentation_it_is_the_processor(self, processor, samples):
        batch = ContrastiveCollator(processor)([{**sample, "text": "a cat"} for sample in samples])
        expected = processor(images=[sample["image"] for sample in samples], text=["a cat"] * 4)
        assert batch.keys() == {*expected, "image_ids"}
        assert all(torch.equal(batch[name], value) for name, value in expected.items())
        assert batch["image_ids"].tolist() == [0, 0, 1, 1]
        assert batch["input_ids"].shape == (4, 12)

    def test_parts_depend_on_seed_epoch_and_index_alone(self, processor, samples):
        def pixels(order, epoch: int = 0, seed: int = 0) -> torch.Tensor:
            collator = ContrastiveCollator(processor, augmentation=RandomResizedCrop(scale=(0.3, 0.9)), seed=seed)
            collator.set_epoch(epoch)
            torch.rand(epoch + 5)  # what else is drawn does not matter
            return collator([samples[i] for i in order])["pixel_values"]

        first = pixels(range(4))
        assert first.shape == (4, 3, 32, 32)
        assert torch.equal(first, pixels([3, 2, 1, 0]).flip(0))
        assert not torch.equal(first, pixels(range(4), epoch=1))
        assert not torch.equal(first, pixels(range(4), seed=1))
        loader = DataLoader(samples, 2, num_workers=2, collate_fn=self.collator(processor))
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), first)

    @staticmethod
    def collator(processor) -> ContrastiveCollator:
        return ContrastiveCollator(processor, augmentation=RandomResizedCrop(scale=(0.3, 0.9)))

    def test_a_part_fills_the_square(self, processor):
        """CLIP would cut the middle out of it once more: here what is at its border reaches the border."""
        picture = Image.new("RGB", (64, 32), (0, 0, 0))
        picture.paste((255, 255, 255), (0, 0, 8, 32))
        crop = RandomResizedCrop(scale=(1, 1), ratio=(2, 2))
        collator = ContrastiveCollator(processor, augmentation=crop)
        (pixels,) = collator([{"image": picture, "text": "a", "index": 0}])["pixel_values"]
        assert pixels[0, :, 0].min() > 1
        assert pixels[0, :, 16:].max() < -1

    def test_every_caption_is_drawn(self, processor, samples):
        collator = ContrastiveCollator(processor)
        seen = set()
        for epoch in range(12):
            collator.set_epoch(epoch)
            seen |= {tuple(ids.tolist()) for ids in collator(samples)["input_ids"]}
        assert len(seen) == 3

    def test_a_vocabulary_is_needed(self):
        with pytest.raises(ValueError, match="a processor with a tokenizer"):
            ContrastiveCollator(twinlens.SiglipProcessor(twinlens.SiglipImageProcessor()))
