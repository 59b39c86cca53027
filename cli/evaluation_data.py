"""What `twinlens evaluate` measures on: labelled images from folders and tables, and images with captions."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..messages import quoted

if TYPE_CHECKING:  # commands import what needs PyTorch when they run
    from ..training.sources import PairDataset

Task = Literal["classes", "labels", "pairs"]
TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Part:
    """Images, each with the numbers of its classes."""

    images: list[str]  # paths and URLs
    labels: list[tuple[int, ...]]

    def take(self, places: Sequence[int]) -> "Part":
        """Return some of the images."""
        return Part([self.images[place] for place in places], [self.labels[place] for place in places])


@dataclass(frozen=True)
class Labelled:
    """Labelled images to test on, and perhaps others to learn from. `split` says in words how they were told apart."""

    classes: list[str]
    test: Part
    train: Part | None = None
    split: str | None = None

    @property
    def has_one_label_each(self) -> bool:
        """Whether every image has exactly one class."""
        return all(len(labels) == 1 for labels in self.test.labels)

    def divide(self, test_share: float, seed: int) -> "Labelled":
        """Return the same images in two parts, unless they are; each class is divided by the seed."""
        if self.train is not None:
            return self
        from ..evaluation import split_by_class

        train, test = split_by_class([labels[0] for labels in self.test.labels], test_share, seed)
        if not train:
            raise ValueError("Expected classes with at least two images, one to learn from and one to test on.")
        said = f"{test_share:.0%} of each class to test on, seed {seed}"
        return Labelled(self.classes, self.test.take(test), self.test.take(train), said)


def check_examples(labels: Sequence[tuple[int, ...]], classes: Sequence[str], shots: int) -> None:
    """Raise ValueError for a class of which fewer images are there to learn from."""
    counts = Counter(label for (label,) in labels)
    for number, name in enumerate(classes):
        if counts[number] < shots:
            raise ValueError(f"Expected {shots} images of each class to learn from, {name} has {counts[number]}.")


def find_task(data: str, image_column: str | None, text_column: str | None, label_column: str | None) -> Task:
    """Return what DATA looks like: pairs where there are captions, else classes, of which a table may have several."""
    from ..processing.image_files import is_image
    from ..training.labelled_tables import LABEL_COLUMNS
    from ..training.sources import IMAGE_COLUMNS, TEXT_COLUMNS
    from ..training.tables import TABLE_DELIMITERS, Column, has_columns

    path = Path(data)
    tables = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
    if tables or (path.suffix.lower() in TABLE_DELIMITERS and path.is_file()):
        table, images = (tables or [path])[0], Column("image", IMAGE_COLUMNS, image_column)
        if label_column is None and has_columns(table, [images, Column("text", TEXT_COLUMNS, text_column)]):
            return "pairs"
        if has_columns(table, [images, Column("label", LABEL_COLUMNS, label_column)]):
            return "labels"
        raise ValueError(
            f"Expected a column of images ({', '.join(IMAGE_COLUMNS[:3])}, ...) and one of captions "
            f"({', '.join(TEXT_COLUMNS[:3])}, ...) or of classes ({', '.join(LABEL_COLUMNS[:3])}, ...) in {table}: "
            "name them with --image-column, --text-column or --label-column."
        )
    if not path.is_dir() or any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "pairs"
    beside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in TABLE_DELIMITERS)
    if beside and not any(child.is_dir() for child in path.iterdir()):
        raise ValueError(
            f"Expected a folder with a folder for each class, or with metadata.jsonl: {data} has {beside[0]}, "
            "pass that file."
        )
    first = next((file for file in path.rglob("*") if is_image(file)), None)
    return "classes" if first is None or not first.with_suffix(".txt").is_file() else "pairs"


def read_labelled(data: str, image_column: str | None, label_column: str | None, labels_file: Path | None) -> Labelled:
    """Return the labelled images in a folder or a table. Raises OSError or ValueError for what is neither."""
    path = Path(data)
    if path.is_dir() and not any((path / name).is_file() for name in ("metadata.jsonl", "metadata.csv")):
        labelled = _read_folders(path)
    else:
        labelled = _read_table(path, image_column, label_column)
    if labels_file is None:
        return labelled
    names = read_names(labels_file, labelled.classes)
    return Labelled(names, labelled.test, labelled.train, labelled.split)


def _read_folders(path: Path) -> Labelled:
    tests = [path / name for name in TEST_FOLDERS if (path / name).is_dir()]
    if not tests or not (path / "train").is_dir():
        part, classes = _read_folder(path)
        return Labelled(classes, part)
    (train, classes), (test, test_classes) = _read_folder(path / "train"), _read_folder(tests[0])
    if differing := sorted({*classes} ^ {*test_classes}):
        some = " and ".join(map(repr, differing[:2]))
        raise ValueError(f"Expected the same classes in {path}/train and {tests[0]}, got {some} in one of them only.")
    return Labelled(classes, test, train, f"folders train and {tests[0].name}")


def _read_folder(path: Path) -> tuple[Part, list[str]]:
    from ..training import image_classes

    images, classes = image_classes(path)
    return Part(images.files, [(label,) for label in images.labels]), classes


def _read_table(path: Path, image_column: str | None, label_column: str | None) -> Labelled:
    from ..training import load_labels

    if path.is_dir():
        path = next(path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file())
    table = load_labels(path, image_column=image_column, label_column=label_column)
    classes = sorted({label for labels in table.labels for label in labels})
    number = {label: place for place, label in enumerate(classes)}
    return Labelled(classes, Part(table.images, [tuple(number[label] for label in labels) for labels in table.labels]))


def read_names(file: Path, classes: list[str]) -> list[str]:
    """Return the names of classes in a file: a .json object, lines of class, tab, name, or a name on each line.

    Raises ValueError for a class without a name, for a name of two classes, and for as many names alone as there are
    not classes.
    """
    from ..formats import parse_json, read_small
    from ..inference import check_labels, read_labels

    if file.suffix.lower() == ".json":
        table = parse_json(read_small(file), file)
    else:
        lines = read_labels(f"@{file}")
        if any("\t" not in line for line in lines):
            if len(lines) != len(classes):
                raise ValueError(
                    f"Expected a name for each of {len(classes)} classes in {file}, got {len(lines)} lines: "
                    "write class, tab, name."
                )
            table = dict(zip(classes, lines, strict=True))
        else:
            table = dict(line.split("\t", 1) for line in lines)
    table = {key.strip().replace("_", " "): name for key, name in table.items()}  # as folders are read
    if missing := [name for name in classes if name.replace("_", " ") not in table]:
        raise ValueError(
            f"{file} has no name for {len(missing)} of {len(classes)} classes, such as {quoted(missing[0])}."
        )
    names = [name.strip() for name in check_labels(table[name.replace("_", " ")] for name in classes)]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Expected another name for each class in {file}, got {quoted(repeated[0])} more than once.")
    return names


class CaptionedImages:
    """The images of pairs, each of them once, and their captions, in one pass: iterate first, and read them then.

    The caption `texts[i]` belongs to the image `image_of_text[i]`, in the order in which images are yielded.
    """

    def __init__(self, pairs: "PairDataset") -> None:
        from ..training.sources import SkipUnreadable

        # It would put the next pair in the place of a damaged one, and so measure that pair twice.
        self.pairs = pairs.pairs if isinstance(pairs, SkipUnreadable) else pairs
        self.texts: list[str] = []
        self.image_of_text: list[int] = []
        self._damaged: list[str] = []

    @classmethod
    def read(cls, data: str, image_column: str | None, text_column: str | None, split: str) -> "CaptionedImages":
        """Find the pairs of DATA, in any form that `twinlens train` takes."""
        from ..training import load_pairs

        return cls(
            load_pairs(
                data, image_column=image_column, text_column=text_column, split=split, repeat=False, skip_corrupt=True
            )
        )

    @property
    def count(self) -> int | None:
        """The number of pairs, where it is known before they are read."""
        from ..training.streams import Stream

        return None if isinstance(self.pairs, Stream) else len(self.pairs)

    @property
    def left_out(self) -> list[str]:
        """Why pairs were left out, of which not even an image was yielded."""
        from ..training.sources import FilePairs
        from ..training.streams import Stream

        if isinstance(self.pairs, Stream):
            reasons = self.pairs.skip.reasons
            unnamed = self.pairs.skipped - len(reasons)
            return [*reasons, *([f"{unnamed:,} more of {self.pairs}"] if unnamed else []), *self._damaged]
        return [*(self.pairs.left_out if isinstance(self.pairs, FilePairs) else ()), *self._damaged]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        from ..processing.image_input import short_name
        from ..training.streams import UNREADABLE, check_caption

        numbers: dict[Hashable, int] = {}
        for sample in self._samples():
            try:
                captions = check_caption(sample["text"])
            except UNREADABLE as error:
                self._damaged.append(f"pair {sample['index']}: {error}")
                continue
            image = sample["image"]
            is_new = (key := _identity(sample)) not in numbers
            number = numbers.setdefault(key, len(numbers))
            captions = [captions] if isinstance(captions, str) else captions
            self.texts += captions
            self.image_of_text += [number] * len(captions)
            if is_new:
                yield short_name(image) if isinstance(image, str) else f"the image of pair {sample['index']}", image

    def _samples(self) -> Iterator[Any]:
        return iter(self.pairs) if self.count is None else (self.pairs[place] for place in range(self.count))


def _identity(sample: Any) -> Hashable:
    """Return what equal images have in common: a path, the content of a file, or the number of the pair."""
    image = sample["image"]
    return image if isinstance(image, str | bytes) else ("pair", sample["index"])
