"""Pairs that stream from tars or from `datasets`: without an end, each process and worker its own part of them."""

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from ..processing.image_input import open_image

Sample = dict[str, Any]

logger = logging.getLogger(__name__)

DAMAGE = (TypeError, ValueError, KeyError, OSError, Image.DecompressionBombError)  # what reading a sample can raise
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
TEXT_KINDS = ("txt", "caption", "text")
BUFFER = 1000  # samples of a stream from which the next one is drawn
MAX_WORKERS = 256
_REMOTE = ("http://", "https://", "s3://", "gs://", "hf://")  # and not "pipe:", which would run what it names


class SkipCount:
    """Counts the damaged samples that this process and its DataLoader's workers leave out."""

    def __init__(self) -> None:
        self._counts = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # a place for each: no two write one

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    def __call__(self, reason: object) -> bool:
        """Count one; True, with which webdataset's handlers say that it goes on."""
        info = get_worker_info()
        place = 0 if info is None else info.id
        self._counts[place] += 1
        count = int(self._counts[place])
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th and so on, or a bad source would fill the log
            logger.warning("left out a damaged sample, the %dth here: %s", count, reason)
        return True


class Stream(IterableDataset[Sample]):
    """Pairs without an end, or once and in order with `repeat=False`, then whole in every process.

    Without an end each of several processes reads its own part, so that none runs out before another. Workers of a
    DataLoader share out the part of their process. Damaged pairs are left out and counted in `skipped`.
    """

    def __init__(self, *, seed: int, repeat: bool) -> None:
        self.seed, self.repeat = seed, repeat
        self.skip = SkipCount()

    @property
    def skipped(self) -> int:
        """How many damaged samples this process and its workers have left out so far."""
        return self.skip.total

    @property
    def max_parts(self) -> int:
        """How many processes and workers can read side by side."""
        raise NotImplementedError

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Images and captions of one pass over this process's and worker's part."""
        raise NotImplementedError

    def process(self) -> tuple[int, int]:
        """Which of how many processes this is; workers that were spawned know it from the environment."""
        if not self.repeat:
            return 0, 1
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def part(self) -> tuple[int, int]:
        """Which part of how many this process and worker reads."""
        rank, ranks = self.process()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        return rank * workers + worker, ranks * workers

    def __iter__(self) -> Iterator[Sample]:
        number, parts = self.part()
        if self.repeat and parts > self.max_parts:
            raise ValueError(
                f"At most {self.max_parts} can read {self} side by side, got {parts} processes and workers: "
                "use fewer workers, or more shards."
            )
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


class TarPairs(Stream):
    """WebDataset tars: the files of a sample lie together and share their name up to the first dot.

    The image is the first of .jpg, .jpeg, .png and .webp, or `image_column`; the caption all of .txt, or a field of
    .json named `caption` or `text`, or `text_column`.
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
            from braceexpand import braceexpand
        except ImportError as error:
            raise ImportError(
                f"Tars need webdataset ({error}): pip install '.[train]' in the checkout of twinlens."
            ) from error
        self.image_kinds = (image_column,) if image_column else IMAGE_KINDS
        self.text_kinds = (text_column,) if text_column else TEXT_KINDS
        self.shards = list(braceexpand(shards))
        if missing := [shard for shard in self.shards if not shard.startswith(_REMOTE) and not Path(shard).is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.shards)} tars are not there: {', '.join(missing[:3])}."
            )

    def __repr__(self) -> str:
        return f"{self.shards[0]}{f' and {len(self.shards) - 1} more' if len(self.shards) > 1 else ''}"

    @property
    def max_parts(self) -> int:
        return len(self.shards)

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        number, parts = self.part()
        order = Random(f"{self.seed} {epoch}")  # the same in every process and worker, of which each takes its part
        shards = order.sample(self.shards, len(self.shards)) if self.repeat else self.shards
        samples: Iterator[Any] = itertools.chain.from_iterable(map(self._samples, shards[number::parts]))
        if self.repeat:
            samples = _shuffled(samples, Random(f"{self.seed} {epoch} {number}"))
        for sample in samples:
            try:
                yield self._image(sample), self._text(sample)
            except DAMAGE as error:
                self.skip(f"{sample['__key__']} in {sample['__url__']}: {error}")

    def _samples(self, shard: str) -> Iterator[dict[str, Any]]:
        """The files of each sample, by their kinds."""
        from webdataset.tariterators import group_by_keys

        yield from group_by_keys(self._files(shard), handler=self.skip)

    def _files(self, shard: str) -> Iterator[dict[str, Any]]:
        """The files of a tar. From where it cannot be read on, it counts as one sample."""
        from webdataset.gopen import gopen
        from webdataset.tariterators import tar_file_expander

        try:
            with gopen(shard) as stream:  # webdataset itself would leave it open
                yield from tar_file_expander([{"url": shard, "stream": stream}], handler=_reraise)
        except Exception as error:  # of the tar, its compression, or what carries it here
            self.skip(f"the rest of {shard}: {next((item for item in error.args if isinstance(item, str)), error)}")

    def _image(self, sample: Mapping[str, Any]) -> Image.Image:
        for kind in self.image_kinds:
            if kind in sample:
                return open_image(sample[kind])
        raise ValueError(f"no image ({', '.join(self.image_kinds)})")

    def _text(self, sample: Mapping[str, Any]) -> Any:
        for kind in self.text_kinds:
            if kind in sample:
                return checked_text(sample[kind].decode("utf-8").strip())
        fields = json.loads(sample.get("json", "{}"))
        for kind in self.text_kinds:
            if kind in fields:
                return checked_text(fields[kind])
        raise ValueError(f"no caption ({', '.join(self.text_kinds)})")


class HubStream(Stream):
    """A `datasets.IterableDataset`, whose columns are called `image_column` and `text_column`."""

    def __init__(self, data: Any, image_column: str, text_column: str, *, seed: int = 0, repeat: bool = True) -> None:
        super().__init__(seed=seed, repeat=repeat)
        self.data, self.image_column, self.text_column = data, image_column, text_column

    def __repr__(self) -> str:
        return f"the data set {self.data.info.dataset_name or ''}".strip()

    @property
    def max_parts(self) -> int:
        ranks, shards = self.process()[1], self.data.num_shards
        return shards if shards % ranks == 0 else shards * ranks  # then every process reads all and keeps its share

    def read(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        from datasets.distributed import split_dataset_by_node

        data = self.data
        if self.repeat:
            rank, ranks = self.process()
            data = split_dataset_by_node(data.shuffle(seed=self.seed, buffer_size=BUFFER), rank, ranks)
            data.set_epoch(epoch)
        for row in data:  # in a worker its own shards
            try:
                yield open_image(stored_image(row[self.image_column])), checked_text(row[self.text_column])
            except DAMAGE as error:
                self.skip(error)


def stored_image(value: Any) -> Any:
    """What a processor takes, of what `datasets` gives for an image that it has not decoded."""
    return (value["bytes"] or value["path"]) if isinstance(value, dict) else value


def checked_text(text: Any) -> Any:
    """Give a caption, or several of which the collator draws one; ValueError for anything else."""
    texts = text if isinstance(text, list | tuple) else [text]
    if not texts or not all(isinstance(item, str) and item.strip() for item in texts):
        raise ValueError(f"expected a caption or a list of captions, got {text!r}")
    return text


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


def _reraise(error: Exception) -> bool:
    raise error
