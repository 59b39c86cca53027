"""Streams of pairs from tars or from `datasets`: without an end, and each process and worker reads its own part."""

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from ..catalogue.addresses import is_address
from ..formats import parse_json
from ..messages import quoted, shown
from ..processing.image_input import READ_ERRORS, open_image
from .shards import expand_braces, open_shard, read_tar, shown_shard

T = TypeVar("T")
Caption: TypeAlias = str | Sequence[str]  # several captions are alternatives, of which the collator draws one


class _OptionalKeys(TypedDict, total=False):
    image_id: int  # equal for equal images, in a source whose images can have several captions


class Sample(_OptionalKeys):
    """An image with its caption."""

    image: Any  # anything that an image processor takes
    text: Caption
    index: int  # its number in an epoch, on which its random crop depends


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Every error that an unreadable image or caption can raise.
UNREADABLE = (*READ_ERRORS, KeyError, RecursionError)
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
TEXT_KINDS = ("txt", "caption", "text")
SHUFFLE_BUFFER_SAMPLES = 1000  # the next sample of a stream is drawn from so many
MAX_WORKERS = 256
REASONS_KEPT = 100
_META = re.compile(r"__[^/]*__(/|$)")  # files of webdataset about a tar


class SkipCounter:
    """Counts the unreadable samples that this process and the workers of its DataLoader leave out.

    `reasons` says why, of the first `REASONS_KEPT` in this process.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._counts = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # one place for each worker

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    def __call__(self, reason: object) -> bool:
        """Count one sample. Returns True, which tells webdataset to go on."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        self._counts[worker] += 1
        if len(self.reasons) < REASONS_KEPT:
            self.reasons.append(str(reason))
        count = int(self._counts[worker])
        if count & (count - 1) == 0:  # log the 1st, 2nd, 4th, 8th ...: a bad source would fill the log
            logger.warning("Left out a damaged sample, number %d in this process: %s", count, reason)
        return True


class Stream(IterableDataset[Sample]):
    """Pairs that are read one after another: without an end, or once and in order with `repeat=False`.

    Without an end, each of several processes reads its own part. With `repeat=False` every process reads all pairs. The
    workers of a DataLoader share the part of their process. Unreadable pairs are left out and counted in `skipped`.
    """

    def __init__(self, *, seed: int, repeat: bool) -> None:
        self.seed, self.repeat = seed, repeat
        self.skip = SkipCounter()

    @property
    def skipped(self) -> int:
        """The number of unreadable samples that this process and its workers have left out so far."""
        return self.skip.total

    @property
    def max_parts(self) -> int:
        """The largest number of processes times workers that can read at the same time."""
        raise NotImplementedError

    def read(self, epoch: int) -> Iterator[tuple[Image.Image, Caption]]:
        """Yield the images and captions of one pass over the part of this process and worker."""
        raise NotImplementedError

    def rank_and_world_size(self) -> tuple[int, int]:
        """Return the number of this process and their count; a spawned worker reads them from the environment."""
        if not self.repeat:
            return 0, 1
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def part_and_count(self) -> tuple[int, int]:
        """Return the number of the part that this process and worker reads, and how many parts there are."""
        rank, ranks = self.rank_and_world_size()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        return rank * workers + worker, ranks * workers

    def check_parts(self, parts: int) -> None:
        """Raise ValueError where more processes and workers are to read at the same time than can."""
        if self.repeat and parts > self.max_parts:
            raise ValueError(
                f"At most {self.max_parts} can read {self} side by side, got {parts} processes and workers: "
                "use fewer workers, or more shards."
            )

    def __iter__(self) -> Iterator[Sample]:
        number, parts = self.part_and_count()
        self.check_parts(parts)
        epoch = count = 0
        while True:
            before = count
            for image, text in self.read(epoch):
                yield {"image": image, "text": text, "index": count * parts + number}
                count += 1
            if count == before and number < self.max_parts:
                raise ValueError(f"No pair of {self} can be read; {self.skipped} are damaged.")
            if not self.repeat:
                return
            epoch += 1


class TarStream(Stream):
    """The pairs in WebDataset tars: consecutive files whose names are equal up to the first dot are one sample.

    The image is the first of the files .jpg, .jpeg, .png and .webp; `image_column` names another. The caption is the
    content of .txt, or the field `caption` or `text` of .json; `text_column` names another.
    """

    def __init__(
        self,
        shards: str,
        *,
        image_column: str | None = None,
        text_column: str | None = None,
        seed: int = 0,
        repeat: bool = True,
    ) -> None:
        super().__init__(seed=seed, repeat=repeat)
        try:
            import webdataset  # noqa: F401  (before a worker needs it)
        except ImportError as error:
            raise ImportError(
                f"Tars need webdataset ({error}): pip install '.[train]' in the checkout of twinlens."
            ) from error
        self.image_kinds = (image_column,) if image_column else IMAGE_KINDS
        self.text_kinds = (text_column,) if text_column else TEXT_KINDS
        self.shards = expand_braces(shards)
        local = [shard for shard in self.shards if not is_address(shard)]
        if programs := [shard for shard in local if "://" in shard or shard.startswith("pipe:")]:
            raise ValueError(f"Tars are files, or at http and https addresses, got {quoted(programs[0])}.")
        if missing := [shard for shard in local if not Path(shard).is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.shards)} tars are not there: {', '.join(missing[:3])}."
            )

    def __repr__(self) -> str:
        return f"{shown_shard(self.shards[0])}{f' and {len(self.shards) - 1} more' if len(self.shards) > 1 else ''}"

    @property
    def max_parts(self) -> int:
        return len(self.shards)

    def read(self, epoch: int) -> Iterator[tuple[Image.Image, Caption]]:
        number, parts = self.part_and_count()
        order = Random(f"{self.seed} {epoch}")  # the same in every process and worker, of which each takes its part
        shards = order.sample(self.shards, len(self.shards)) if self.repeat else self.shards
        samples: Iterator[dict[str, Any]] = itertools.chain.from_iterable(map(self._samples, shards[number::parts]))
        if self.repeat:
            samples = _shuffle(samples, Random(f"{self.seed} {epoch} {number}"))
        for sample in samples:
            try:
                yield self._image(sample), self._text(sample)
            except UNREADABLE as error:
                self.skip(f"{shown(sample['__key__'])} in {sample['__url__']}: {error}")

    def _samples(self, shard: str) -> Iterator[dict[str, Any]]:
        """Yield each sample of a tar: its files by their kinds."""
        from webdataset.tariterators import group_by_keys

        yield from group_by_keys(self._files(shard), handler=self.skip)

    def _files(self, shard: str) -> Iterator[dict[str, Any]]:
        """Yield the files of a tar. Everything after a place where it cannot be read counts as one skipped sample."""
        kinds = {*self.image_kinds, *self.text_kinds, "json"}
        try:
            with open_shard(shard) as stream:
                for name, content in read_tar(stream, kinds):
                    if not _META.match(name):
                        yield {"fname": name, "data": content, "__url__": shown_shard(shard)}
        except Exception as error:  # the tar, its compression and the network raise anything
            reason = next((item for item in error.args if isinstance(item, str)), error)
            self.skip(f"the rest of {shown_shard(shard)}: {reason}")

    def _image(self, sample: Mapping[str, Any]) -> Image.Image:
        for kind in self.image_kinds:
            if kind in sample:
                return open_image(sample[kind])
        raise ValueError(f"no image ({', '.join(self.image_kinds)})")

    def _text(self, sample: Mapping[str, Any]) -> Caption:
        for kind in self.text_kinds:
            if kind in sample:
                return check_caption(sample[kind].decode("utf-8").strip())
        fields = parse_json(sample.get("json", "{}"), "its .json")
        for kind in self.text_kinds:
            if kind in fields:
                return check_caption(fields[kind])
        raise ValueError(f"no caption ({', '.join(self.text_kinds)})")


class HubStream(Stream):
    """The pairs in two columns of a `datasets.IterableDataset`."""

    def __init__(
        self,
        data: "datasets.IterableDataset",
        image_column: str,
        text_column: str,
        *,
        seed: int = 0,
        repeat: bool = True,
    ) -> None:
        super().__init__(seed=seed, repeat=repeat)
        self.data, self.image_column, self.text_column = data, image_column, text_column

    def __repr__(self) -> str:
        return f"the data set {self.data.info.dataset_name or ''}".strip()

    @property
    def max_parts(self) -> int:
        ranks, shards = self.rank_and_world_size()[1], self.data.num_shards
        return shards if shards % ranks == 0 else shards * ranks  # every process reads all and keeps its share

    def read(self, epoch: int) -> Iterator[tuple[Image.Image, Caption]]:
        from datasets.distributed import split_dataset_by_node

        data = self.data
        if self.repeat:
            rank, ranks = self.rank_and_world_size()
            data = split_dataset_by_node(data.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER_SAMPLES), rank, ranks)
            data.set_epoch(epoch)
        for row in data:  # a worker gets its own shards
            try:
                yield open_image(undecoded_image(row[self.image_column])), check_caption(row[self.text_column])
            except UNREADABLE as error:
                self.skip(error)


def undecoded_image(value: Any) -> Any:
    """Return the bytes or the path of an image that `datasets` has not decoded, and any other value as it is."""
    return (value["bytes"] or value["path"]) if isinstance(value, dict) else value


def check_caption(text: Any) -> Caption:
    """Return a caption, or a list of alternative captions, unchanged. Raises ValueError for anything else."""
    texts = text if isinstance(text, list | tuple) else [text]
    if not texts or not all(isinstance(item, str) and item.strip() for item in texts):
        raise ValueError(f"Expected a caption or a list of captions, got {quoted(text)}.")
    return text


def _shuffle(samples: Iterator[T], random: Random) -> Iterator[T]:
    """Yield all samples, each drawn at random from a buffer of the next ones."""
    buffer = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) > SHUFFLE_BUFFER_SAMPLES:
            place = random.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    random.shuffle(buffer)
    yield from buffer
