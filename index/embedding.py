"""From the files of a batch to its embeddings, several batches at a time."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..inference import Embedder
from ..processing.image_input import READ_ERRORS
from ..runtime import check_finite_rows
from .sources import Batch, Item

AHEAD = 2  # batches in memory for each thread: one in work, and one that waits

Value = TypeVar("Value")
Result = TypeVar("Result")


class Origin(NamedTuple):
    """Where an embedding comes from."""

    path: str
    hash: str  # SHA-256 of the file, 64 hexadecimal digits
    size: int  # bytes


class Skipped(NamedTuple):
    """An image that cannot be read."""

    path: str
    reason: str


class EmbeddedBatch(NamedTuple):
    """The embeddings (images, dim) of those images of a batch that can be read, where they are from, and the others."""

    shard: int
    share: float  # of the source, up to the last image
    embeddings: npt.NDArray[np.float32]
    origins: list[Origin]
    skipped: list[Skipped]

    @property
    def images(self) -> int:
        """The number of all images of the batch."""
        return len(self.origins) + len(self.skipped)


class _Step(NamedTuple):
    """A batch on its way: `values` are the inputs of the image tower, None for no image, and then the embeddings."""

    batch: Batch
    values: Any
    origins: list[Origin]
    skipped: list[Skipped]


def embed_batches(embedder: Embedder, batches: Iterable[Batch], threads: int) -> Iterator[EmbeddedBatch]:
    """Yield the embeddings of batches, in their order.

    On the CPU each thread decodes a batch and computes it on its own core: while one of them decodes, another computes,
    none waits for another, and the numbers do not depend on how many they are. An accelerator computes one batch after
    the other, and all threads decode.
    """
    model, processor = embedder.load()
    dim = model.encode([], processor, kind="image").shape[1]

    @torch.inference_mode()
    def compute(inputs: Any) -> torch.Tensor:
        if inputs is None:
            return torch.empty(0, dim)
        return model.encode_image(**inputs.to(model.device), check_finite=False)

    def decode(batch: Batch) -> _Step:
        inputs, origins, skipped = decode_images(batch.items, processor)
        return _Step(batch, inputs, origins, skipped)

    def begin(step: _Step) -> _Step:
        return step._replace(values=compute(step.values))

    def end(step: _Step) -> EmbeddedBatch:
        batch, embeds, origins, skipped = step
        embeds = check_finite_rows(embeds.cpu(), "embeddings of images", [origin.path for origin in origins])
        return EmbeddedBatch(batch.shard, batch.share, embeds.numpy(), origins, skipped)

    with one_core_each():
        if model.device.type == "cpu":
            yield from map_ahead(lambda batch: end(begin(decode(batch))), batches, threads)
        else:  # a batch is waited for when the accelerator has the next one to compute
            yield from map(end, one_behind(map(begin, map_ahead(decode, batches, threads))))


def decode_images(items: list[Item], processor: Any) -> tuple[Any, list[Origin], list[Skipped]]:
    """Return the inputs of the image tower, or None without any, where they are from, and what cannot be read."""
    files: dict[int, bytes] = {}  # by place
    reasons: dict[int, str] = {}
    for place, item in enumerate(items):
        try:
            item.path.encode()
            files[place] = item.read()
        except (OSError, UnicodeEncodeError) as error:
            reasons[place] = _reason(error)
    try:
        inputs = processor(images=[*files.values()]) if files else None
    except READ_ERRORS:  # each alone says whether it is to blame
        for place, data in [*files.items()]:
            try:
                processor(images=[data])
            except READ_ERRORS as error:
                reasons[place] = _reason(error)
                del files[place]
        inputs = processor(images=[*files.values()]) if files else None
    origins = [Origin(items[place].path, hashlib.sha256(data).hexdigest(), len(data)) for place, data in files.items()]
    return inputs, origins, [Skipped(items[place].path, reason) for place, reason in sorted(reasons.items())]


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "Its name is not UTF-8."
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def map_ahead(function: Callable[[Value], Result], values: Iterable[Value], threads: int) -> Iterator[Result]:
    """Yield what a function returns for each value, in order, computed in threads a few values ahead."""
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) == AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def one_behind(values: Iterator[Value]) -> Iterator[Value]:
    """Yield each value when the next one has been made."""
    for last in values:
        for value in values:
            yield last
            last = value
        yield last


@contextmanager
def one_core_each() -> Iterator[None]:
    """Let PyTorch use one core in every thread that calls it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
