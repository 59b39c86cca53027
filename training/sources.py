"""Pairs of images and captions from folders, tables, tars and data sets, all as samples of one form (`Sample`).

Images are decoded later, by the collator. Streams and `SkipUnreadable` decode them at once, to leave out damaged ones.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub import constants
from torch.utils.data import Dataset

from ..catalogue.addresses import is_address
from ..catalogue.download import is_on_hub
from ..messages import describe_encoding
from ..processing.image_files import TAR_SUFFIXES, is_image
from ..processing.image_input import open_image, short_name
from .streams import (
    UNREADABLE,
    Caption,
    HubStream,
    Sample,
    SkipCounter,
    Stream,
    TarStream,
    check_caption,
    undecoded_image,
)
from .tables import (
    MAX_LINE,
    TABLE_DELIMITERS,
    Column,
    Row,
    check_image,
    check_no_surplus,
    choose_columns,
    locate_image,
    read_fields,
    read_rows,
)

if TYPE_CHECKING:
    import datasets

    DatasetOfDatasets: TypeAlias = (
        datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict | datasets.IterableDatasetDict
    )


logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "file_name", "image_path", "filepath", "path", "jpg", "png", "url")
TEXT_COLUMNS = ("text", "caption", "captions", "sentence", "sentences", "title", "txt")

PairDataset: TypeAlias = "FilePairs | ColumnPairs | SkipUnreadable | Stream"
Columns = tuple[Column, Column]  # of the images and of the texts


def load_pairs(
    source: "str | os.PathLike[str] | DatasetOfDatasets",
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    split: str = "train",
    streaming: bool = False,
    seed: int = 0,
    repeat: bool = True,
    skip_corrupt: bool = False,
) -> PairDataset:
    """Return the pairs in a folder, a table, tars, or a data set of the library `datasets`.

    - A folder holds `metadata.csv` or `metadata.jsonl` with the columns `file_name` and `text`; or images, each with a
      `.txt` file of the same name that has one caption per line; or it was written by `save_to_disk` of `datasets`.
    - A table is a `.csv`, `.tsv` or `.jsonl` file. Paths of images in it are relative to the file;
      http, https, file and data URLs are read too.
    - Tars are named with braces, `shards-{000..009}.tar`, and are streamed; they are files, or at http and https
      addresses.
    - Any other string is the name of a data set on the Hub, which is streamed with `streaming`.
    - An object of `datasets` is used as it is; an `IterableDataset` is a stream.

    A stream has no end and is shuffled by `seed`; each process and worker reads its own part. With `repeat=False` it is
    read once and in order. Streams leave unreadable pairs out; for other sources one is an error, unless `skip_corrupt`
    leaves out the pairs without an image or a caption, and replaces one that turns out to be damaged by the next
    readable pair; `skipped` counts both. The delimiter of a table is the one that separates these columns in its first
    line. Columns are found by their usual names unless given. Raises
    FileNotFoundError for a source that is not there, and ValueError for one without pairs.
    """
    columns = (Column("image", IMAGE_COLUMNS, image_column), Column("text", TEXT_COLUMNS, text_column))
    if isinstance(source, str | os.PathLike):
        pairs = _pairs_from_name(os.fspath(source), columns, split, streaming, seed, repeat, skip_corrupt)
    else:
        pairs = _pairs_from_datasets(source, columns, split, seed, repeat)
    return SkipUnreadable(pairs) if skip_corrupt and not isinstance(pairs, Stream) else pairs


class FilePairs(Dataset[Sample]):
    """Paths of images with their captions. Equal paths are one image, with one `image_id`.

    `left_out` are the reasons why further pairs of the source are not among them.
    """

    def __init__(
        self, images: Sequence[str], texts: Sequence[Caption], source: Path, left_out: Sequence[str] = ()
    ) -> None:
        if not images:
            rejected = f": {len(left_out)} cannot be read, the first: {left_out[0]}" if left_out else "."
            raise ValueError(f"Expected image-caption pairs, got {source} without any{rejected}")
        if left_out:
            count, total = len(left_out), len(images) + len(left_out)
            logger.warning("Left out %d of %d pairs of %s, the first: %s", count, total, source, left_out[0])
        self.left_out = list(left_out)
        numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
        self.images, self.texts = list(images), list(texts)
        self.image_ids = [numbers[image] for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image, text = self.images[index], self.texts[index]
        return {"image": image, "text": text, "index": index, "image_id": self.image_ids[index]}


class ColumnPairs(Dataset[Sample]):
    """The pairs in two columns of a `datasets.Dataset`."""

    def __init__(self, data: "datasets.Dataset", image_column: str, text_column: str) -> None:
        self.data, self.image_column, self.text_column = data, image_column, text_column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        row = self.data[index]
        return {"image": undecoded_image(row[self.image_column]), "text": row[self.text_column], "index": index}


class SkipUnreadable(Dataset[Sample]):
    """The same pairs, but the next readable pair takes the place of an unreadable one, which `skipped` counts."""

    def __init__(self, pairs: "FilePairs | ColumnPairs") -> None:
        self.pairs = pairs
        self._left_out = len(pairs.left_out) if isinstance(pairs, FilePairs) else 0
        self._log = SkipCounter()
        self._is_unreadable = torch.zeros(len(pairs), dtype=torch.bool).share_memory_()  # what each pass finds again

    @property
    def skipped(self) -> int:
        """The number of pairs left out at the start, and of those that this process and its workers have replaced."""
        return self._left_out + int(self._is_unreadable.sum())

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        for place in (*range(index, len(self)), *range(index)):
            sample = self.pairs[place]
            try:
                image, text = open_image(sample["image"]), check_caption(sample["text"])
            except UNREADABLE as error:
                if not self._is_unreadable[place]:
                    self._is_unreadable[place] = True
                    self._log(f"pair {place}: {error}")
            else:
                return {**sample, "image": image, "text": text, "index": index}
        raise ValueError(f"None of the {len(self)} pairs can be read.")


def _pairs_from_name(
    name: str, columns: Columns, split: str, streaming: bool, seed: int, repeat: bool, skip_corrupt: bool
) -> "FilePairs | ColumnPairs | Stream":
    path = Path(name)
    if name.endswith(TAR_SUFFIXES) or "{" in name or is_address(name):
        image_column, text_column = (column.requested for column in columns)
        return TarStream(name, image_column=image_column, text_column=text_column, seed=seed, repeat=repeat)
    if path.suffix.lower() in TABLE_DELIMITERS:
        return _pairs_from_table(path, columns, skip_corrupt)
    if path.is_dir():
        for table in ("metadata.jsonl", "metadata.csv"):
            if (path / table).is_file():
                return _pairs_from_table(path / table, columns, skip_corrupt)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _pairs_from_datasets(_import_datasets().load_from_disk(name), columns, split, seed, repeat)
        return _pairs_from_folder(path, skip_corrupt)
    if path.exists() or path.is_absolute() or name.startswith("."):
        raise FileNotFoundError(
            f"Expected a folder, a table ({', '.join(TABLE_DELIMITERS)}) or tars with image-caption pairs, got {name}, "
            f"which is {'none of them' if path.exists() else 'not there'}."
        )
    datasets = _import_datasets()
    unreachable = f"{name} is neither a file nor a folder here, nor a data set on the Hub within reach"
    cached = Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).exists()
    # load_dataset would retry for half a minute; without a network it finds only what is in its cache.
    if not (cached or constants.HF_HUB_OFFLINE or is_on_hub(name, "README.md", repo_type="dataset")):
        raise FileNotFoundError(f"{unreachable}.")
    try:
        data = datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # the network, the Hub and the data set raise anything
        raise FileNotFoundError(f"{unreachable}: {error}") from error
    return _pairs_from_datasets(data, columns, split, seed, repeat)


def _pairs_from_folder(folder: Path, skip_corrupt: bool) -> FilePairs:
    images, texts, uncaptioned = [], [], 0
    left_out: list[str] = []
    for file in sorted(folder.rglob("*")):
        if not is_image(file) or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if not (captions := file.with_suffix(".txt")).is_file():
            uncaptioned += 1
            continue
        try:
            lines = _read_captions(captions)
        except ValueError as error:
            if not skip_corrupt:
                raise
            left_out.append(str(error))
            continue
        images += [str(file)] * len(lines)
        texts += lines
    if not (images or left_out):
        given = f"{uncaptioned} images without captions" if uncaptioned else "neither"
        raise ValueError(
            f"Expected metadata.csv or metadata.jsonl in {folder}, or images each with a .txt beside it, got {given}."
        )
    if uncaptioned:
        logger.warning("Left out %d images of %s, which have no .txt beside them.", uncaptioned, folder)
    return FilePairs(images, texts, folder, left_out)


def _read_captions(file: Path) -> list[str]:
    if (size := file.stat().st_size) > MAX_LINE:
        raise ValueError(f"{file} has {size:,} bytes, expected captions.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} {describe_encoding(error)}") from error
    if not lines:
        raise ValueError(f"Expected a caption in {file}, which is empty.")
    return lines


def _pairs_from_table(file: Path, columns: Columns, skip_corrupt: bool) -> FilePairs:
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "is not there"
        raise FileNotFoundError(f"{file} {problem}, expected a table of image-caption pairs.")
    images, texts = [], []
    left_out: list[str] = []
    missing: list[str] = []
    for number, row in read_rows(file, columns):
        where = f"row {number} of {file}"
        try:
            image, text = _check_row(row, columns, where)
        except ValueError as error:
            if not skip_corrupt:
                raise
            left_out.append(str(error))
            continue
        image, is_file = locate_image(image, file)
        if is_file and not os.path.isfile(image):
            missing.append(f"{short_name(image)} ({where})")
            if skip_corrupt:
                left_out.append(f"{missing[-1]} is not there.")
                continue
        images.append(image)
        texts.append(text)
    if missing and not skip_corrupt:
        raise FileNotFoundError(f"{len(missing)} of {len(images)} images are not there, the first is {missing[0]}.")
    return FilePairs(images, texts, file, left_out)


def _check_row(row: Row, columns: Columns, where: str) -> tuple[str, Caption]:
    """Return the path of the image and the caption in a row. Raises ValueError with the row for anything else."""
    fields, (image_column, text_column) = read_fields(row, columns, where)
    try:
        check_no_surplus(fields)
        return check_image(fields[image_column]), check_caption(fields[text_column])
    except ValueError as error:
        raise ValueError(f"R{where[1:]}: {error}") from error  # "Row 3 of ..."


def _pairs_from_datasets(
    data: "DatasetOfDatasets", columns: Columns, split: str, seed: int, repeat: bool
) -> "ColumnPairs | Stream":
    datasets = _import_datasets()
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in data:
            raise ValueError(f"The data set has no split {split!r}, only {', '.join(data)}.")
        data = data[split]
    if not isinstance(data, datasets.Dataset | datasets.IterableDataset):
        raise TypeError(f"Expected a path, a name or a data set of `datasets`, got {type(data).__name__}.")
    streams = isinstance(data, datasets.IterableDataset)
    if not streams and not len(data):
        raise ValueError("Expected image-caption pairs, got an empty data set.")
    names = data.column_names or list(next(iter(data), {}))  # a stream may know neither names nor types
    image_column, text_column = choose_columns(names, columns, "the data set")
    if isinstance((data.features or {}).get(image_column), datasets.Image):
        # The collator decodes images in threads, and its errors name the sample.
        data = data.cast_column(image_column, datasets.Image(decode=False))
    if streams:
        return HubStream(data, image_column, text_column, seed=seed, repeat=repeat)
    return ColumnPairs(data, image_column, text_column)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"This source needs datasets ({error}): pip install '.[train]' in the checkout of twinlens."
        ) from error
    return datasets
