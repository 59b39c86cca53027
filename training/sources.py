"""Pairs of images and captions from where people keep them, as samples of one form.

A sample is {"image": what an image processor takes, "text": a caption or several, "index": its number in an epoch, and
"image_id" where images can have several captions}. Images are decoded later, but those of streams, which leave out what
is damaged.
"""

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..processing.image_input import open_image

Sample = dict[str, Any]

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "file_name", "image_path", "filepath", "path", "jpg", "png", "url")
TEXT_COLUMNS = ("text", "caption", "captions", "sentence", "title", "txt")
TABLES = {".csv": ",", ".tsv": "\t", ".jsonl": None}
BUFFER = 1000  # samples of a stream from which the next one is drawn
MAX_WORKERS = 256


def load_pairs(
    source: Any,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    repeat: bool = True,
) -> Dataset[Sample]:
    """Pairs of a folder, a table, tars, or a data set of `datasets`.

    A folder holds `metadata.csv` or `metadata.jsonl` with `file_name` and `text`, or images each with a `.txt` of the
    same name, a caption a line, or is what `Dataset.save_to_disk` wrote. A table is a `.csv`, `.tsv` or `.jsonl` file
    with paths relative to itself. Tars are named with braces, `shards-{000..009}.tar`, and stream, as does an
    `IterableDataset` of `datasets`: shuffled by `seed` and without an end, each process and worker its own part; with
    `repeat=False` once and in order. Columns are found by their usual names unless given. Raises FileNotFoundError, and
    ValueError for a source without pairs.
    """
    if not isinstance(source, str | os.PathLike):
        return _of_datasets(source, image_column, text_column, seed, repeat)
    name, path = os.fspath(source), Path(source)
    if name.endswith(".tar") or "{" in name:
        return TarPairs(name, seed=seed, repeat=repeat)
    if path.suffix in TABLES:
        return _of_table(path, image_column, text_column)
    if path.is_dir():
        for table in ("metadata.jsonl", "metadata.csv"):
            if (path / table).is_file():
                return _of_table(path / table, image_column, text_column)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _of_datasets(_from_disk(path, split), image_column, text_column, seed, repeat)
        return _of_folder(path)
    if path.exists() or path.is_absolute() or name.startswith("."):
        raise FileNotFoundError(
            f"Expected a folder, a table ({', '.join(TABLES)}) or tars with image-caption pairs, got {name}, which is "
            f"{'none of them' if path.exists() else 'not there'}."
        )
    try:
        data = _datasets().load_dataset(name, split=split)
    except Exception as error:  # of the network, of the Hub, of the data set
        raise FileNotFoundError(f"{name} is no file or folder, and no data set within reach: {error}") from error
    return _of_datasets(data, image_column, text_column, seed, repeat)


def image_classes(folder: str | Path) -> tuple["LabelledImages", list[str]]:
    """Images with labels, and the names of the classes: a folder in `folder` for each, in the order of their names."""
    folder = Path(folder)
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir()) if _is_image(file)]
    if not files:
        raise ValueError(f"Expected a folder with a folder of images for each class, got {folder} without any.")
    return LabelledImages(files), [path.name.replace("_", " ") for path in classes]


class LabelledImages(Dataset[Sample]):
    """Paths of images with the numbers of their classes."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file, label = self.files[index]
        return {"image": str(file), "label": label}


class Pairs(Dataset[Sample]):
    """Pairs that are known in advance, with paths of images; equal paths are one image."""

    def __init__(self, images: Sequence[str], texts: Sequence[Any], source: Path) -> None:
        if not images:
            raise ValueError(f"Expected image-caption pairs, got {source} without any.")
        numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
        self.images, self.texts = list(images), list(texts)
        self.image_ids = [numbers[image] for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image, text = self.images[index], self.texts[index]
        return {"image": image, "text": text, "index": index, "image_id": self.image_ids[index]}


class TablePairs(Dataset[Sample]):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, data: Any, image_column: str, text_column: str) -> None:
        self.data, self.image_column, self.text_column = data, image_column, text_column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        row = self.data[index]
        return {"image": _image(row[self.image_column]), "text": row[self.text_column], "index": index}


class Stream(IterableDataset[Sample]):
    """Pairs without an end, or once with `repeat=False`; damaged ones are left out and counted in `skipped`.

    Each of several training processes, and each worker of a DataLoader, reads its own part.
    """

    def __init__(self, *, seed: int, repeat: bool) -> None:
        self.seed, self.repeat = seed, repeat
        self._skipped = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # one place a worker

    @property
    def skipped(self) -> int:
        """How many damaged samples this process and its workers have left out so far."""
        return int(self._skipped.sum())

    def skip(self, reason: object) -> bool:
        """Count a sample, or a file, that cannot be read; True, as webdataset's handlers say that it goes on."""
        info = get_worker_info()
        self._skipped[0 if info is None else info.id] += 1
        logger.warning("Left out a damaged sample, %d so far: %s", self.skipped, reason)
        return True

    def part(self) -> tuple[int, int]:
        """Which part of how many this process and worker read. An evaluation is not shared out between processes."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        shared = self.repeat and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        return rank * workers + worker, ranks * workers

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Images and captions of one pass over this process's and worker's part."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sample]:
        number, parts = self.part()
        epoch = count = 0
        while True:
            before = count
            for image, text in self.read(epoch):
                yield {"image": image, "text": text, "index": count * parts + number}
                count += 1
            if count == before:
                raise ValueError(f"No pair of {self} can be read ({self.skipped} are damaged).")
            if not self.repeat:
                return
            epoch += 1


class TarPairs(Stream):
    """WebDataset tars: files of a sample lie together and share their name up to the first dot."""

    def __init__(self, shards: str, *, seed: int = 0, repeat: bool = True) -> None:
        super().__init__(seed=seed, repeat=repeat)
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise ImportError(f"Tars need webdataset ({error}): pip install 'twinlens[train]'.") from error
        self.shards = list(braceexpand(shards))
        remote = ("http://", "https://", "pipe:", "s3://", "gs://", "hf://")
        if missing := [shard for shard in self.shards if not shard.startswith(remote) and not Path(shard).is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.shards)} tars are not there: {', '.join(missing[:3])}"
            )

    def __repr__(self) -> str:
        return f"{self.shards[0]}{f' and {len(self.shards) - 1} more' if len(self.shards) > 1 else ''}"

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        from webdataset.tariterators import group_by_keys

        number, parts = self.part()
        if parts > len(self.shards):
            raise ValueError(f"{parts} processes and workers need as many tars, got {len(self.shards)}.")
        random = Random(f"{self.seed} {epoch}")  # the same order in every process, of which each takes its part
        shards = random.sample(self.shards, len(self.shards)) if self.repeat else self.shards
        samples = group_by_keys(self._members(shards[number::parts]), handler=self.skip)
        if self.repeat:
            samples = _shuffled(samples, Random(f"{self.seed} {epoch} {number}"))
        for sample in samples:
            image = next((sample[kind] for kind in ("jpg", "jpeg", "png", "webp") if kind in sample), None)
            try:
                yield open_image(image), _caption(sample)
            except (KeyError, TypeError, ValueError) as error:
                self.skip(f"{sample.get('__key__')} in {sample.get('__url__')}: {error}")

    def _members(self, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import tar_file_expander

        for shard in shards:
            with gopen(shard) as stream:  # webdataset itself would leave it open
                yield from tar_file_expander([{"url": shard, "stream": stream}], handler=self.skip)


class HubStream(Stream):
    """A `datasets.IterableDataset`."""

    def __init__(
        self, data: Any, image_column: str | None, text_column: str | None, *, seed: int, repeat: bool
    ) -> None:
        super().__init__(seed=seed, repeat=repeat)
        self.data, self.columns = data, (image_column, text_column)

    def __repr__(self) -> str:
        return f"the stream {self.data.info.dataset_name or ''}".strip()

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        data = self.data
        if self.repeat:
            data = data.shuffle(seed=self.seed, buffer_size=BUFFER)
            data.set_epoch(epoch)
            if dist.is_initialized():
                from datasets.distributed import split_dataset_by_node

                data = split_dataset_by_node(data, dist.get_rank(), dist.get_world_size())
        for row in data:  # each worker its own shards
            image_column, text_column = _columns(list(row), *self.columns, self)
            try:
                yield open_image(_image(row[image_column])), row[text_column]
            except (TypeError, ValueError) as error:
                self.skip(error)


def _of_folder(folder: Path) -> Pairs:
    images, texts = [], []
    for file in sorted(folder.rglob("*")):
        if _is_image(file) and (captions := file.with_suffix(".txt")).is_file():
            lines = [line.strip() for line in captions.read_text(encoding="utf-8").splitlines() if line.strip()]
            images += [str(file)] * len(lines)
            texts += lines
    if not images:
        raise ValueError(
            f"Expected metadata.csv or metadata.jsonl in {folder}, or images each with a .txt beside it, got neither."
        )
    return Pairs(images, texts, folder)


def _of_table(file: Path, image_column: str | None, text_column: str | None) -> Pairs:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, expected a table of image-caption pairs.")
    images, texts = [], []
    for number, row in enumerate(_rows(file), 1):
        columns = _columns(list(row), image_column, text_column, f"row {number} of {file}")
        image, text = (row[column] for column in columns)
        if not isinstance(image, str) or not image or not text:
            raise ValueError(f"Row {number} of {file} needs a path and a caption, got {image!r} and {text!r}.")
        images.append(image if image.startswith(("http://", "https://")) else str(file.parent / image))
        texts.append(text)
    return Pairs(images, texts, file)


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    delimiter = TABLES[file.suffix]
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            if delimiter is not None:
                yield from csv.DictReader(lines, delimiter=delimiter, strict=True)
            else:
                yield from (json.loads(line) for line in lines if line.strip())
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not a sound {file.suffix} file: {error}") from error


def _of_datasets(
    data: Any, image_column: str | None, text_column: str | None, seed: int, repeat: bool
) -> Dataset[Sample]:
    datasets = _datasets()
    if isinstance(data, datasets.IterableDataset):
        return HubStream(data, image_column, text_column, seed=seed, repeat=repeat)
    if not isinstance(data, datasets.Dataset):
        raise TypeError(f"Expected a path, a name or a data set of `datasets`, got {type(data).__name__}.")
    if not len(data):
        raise ValueError("Expected image-caption pairs, got an empty data set.")
    return TablePairs(data, *_columns(data.column_names, image_column, text_column, "the data set"))


def _from_disk(folder: Path, split: str) -> Any:
    data = _datasets().load_from_disk(str(folder))
    if isinstance(data, Mapping):
        if split not in data:
            raise ValueError(f"{folder} has no split {split!r}, only {', '.join(data)}.")
        return data[split]
    return data


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"This source needs datasets ({error}): pip install 'twinlens[train]'.") from error
    return datasets


def _columns(names: Sequence[str], image_column: str | None, text_column: str | None, where: object) -> tuple[str, str]:
    """Give the columns of images and captions, or say which there are."""
    found = []
    for kind, given, usual in (("image", image_column, IMAGE_COLUMNS), ("text", text_column, TEXT_COLUMNS)):
        name = given or next((name for name in usual if name in names), None)
        if name is None or name not in names:
            raise ValueError(
                f"Expected a column {f'named {given!r}' if given else f'with the {kind}, such as {usual[0]!r},'} in "
                f"{where}, got {', '.join(map(repr, names)) or 'none'}. Name it with {kind}_column."
            )
        found.append(name)
    return found[0], found[1]


def _image(value: Any) -> Any:
    """What a processor takes, of what `datasets` gives for an image that it has not decoded."""
    return (value["bytes"] or value["path"]) if isinstance(value, dict) else value


def _caption(sample: Mapping[str, Any]) -> Any:
    """The caption of a sample in a tar: its .txt, or `caption` or `text` in its .json."""
    if "txt" in sample:
        return sample["txt"].decode("utf-8").strip()
    described = json.loads(sample["json"])
    return described["caption"] if "caption" in described else described["text"]


def _shuffled(samples: Iterator[Any], random: Random) -> Iterator[Any]:
    """Draw each next one from a buffer."""
    buffer = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) > BUFFER:
            place = random.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    random.shuffle(buffer)
    yield from buffer


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in Image.registered_extensions() and file.is_file()
