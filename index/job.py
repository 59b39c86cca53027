"""The job behind `twinlens embed`: it can be killed at any moment, and goes on where it was when it is started again.

A job is cut into shards. A shard is written whole or not at all, and which images are in it, and which of them are
computed together, depends on the settings alone. So a job that was interrupted, or that several processes share, writes
the same bytes as one that was not. `job.json` has the settings, and another job is refused in the same folder.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..formats import read_json
from ..runtime import device_named
from .embedding import embed_batches, one_core_each, usable_cores
from .layout import INDEX_FILE, JOB_FILE, SKIPPED_FILE, embeddings_file
from .settings import WAIT_SECONDS, EmbedPlan, agree
from .shards import complete, remove_parts, write_shards
from .sources import Batches, Source, TarSource, open_source
from .tables import import_pyarrow

LOCK_FILE = ".lock"

Run = Iterator[tuple[int, float]]  # of each batch or shard: its images, and the share of the source up to it


@dataclass(frozen=True)
class Progress:
    """How far a job is, as one process sees it."""

    images: int  # that this process has embedded or skipped
    seconds: float  # since it began
    share: float  # of the source that has been read
    first_share: float  # of the source that had been read before its first batch

    @property
    def images_per_second(self) -> float:
        """How fast it is."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """How long the rest will take at the rate so far."""
        done = self.share - self.first_share
        return (1 - self.share) * self.seconds / done if done > 0 else float("inf")


@dataclass(frozen=True)
class EmbedResult:
    """What a job has done."""

    folder: Path
    rows: int
    skipped: int
    embedded: int  # images of this run, in this process
    seconds: float  # for them
    metadata: Mapping[str, Any] = field(repr=False, default_factory=dict)


def embed(plan: EmbedPlan, report: Callable[[Progress], object] = lambda progress: None) -> EmbedResult:
    """Embed the images of a plan into an index, or go on where this was interrupted.

    `report` is called after every batch. One of several processes (`RANK` of `WORLD_SIZE`) embeds every n-th shard; the
    first of them completes the index. Raises ImportError without pyarrow, OSError for files that are not there, and
    ValueError for a folder with another job or other files, and where no image could be read.
    """
    import_pyarrow()
    source = open_source(plan.sources)
    folder = Path(plan.out)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    _make_folder(folder)
    with _alone(folder, rank):
        job = _on_ray(plan, source, folder) if plan.engine == "ray" else _here(plan, source, folder, rank)
        settings = job.settings
        if (folder / INDEX_FILE).exists():
            remove_parts(folder)
            metadata = read_json(folder / INDEX_FILE)
            return EmbedResult(folder, metadata["rows"], metadata["skipped"], 0, 0.0, metadata)
        has_shard = lambda shard: embeddings_file(folder, shard).exists()  # noqa: E731
        batches = Batches(
            source,
            settings["shard_size"],
            settings["batch_size"],
            lambda shard: shard % processes == rank and not has_shard(shard),
        )
        begin, images = time.perf_counter(), 0
        for count, share in job.run(batches):
            images += count
            report(Progress(images, time.perf_counter() - begin, share, batches.first_share))
        seconds = time.perf_counter() - begin
        if rank:
            return EmbedResult(folder, 0, 0, images, seconds)
        while not all(map(has_shard, range(batches.shards))):
            time.sleep(WAIT_SECONDS)
        metadata = complete(folder, batches.shards, settings)
        return EmbedResult(folder, metadata["rows"], metadata["skipped"], images, seconds, metadata)


@dataclass(frozen=True)
class _Job:
    """Settings on which all runs agree, and what embeds batches and writes their shards."""

    settings: Mapping[str, Any]
    run: Callable[[Batches], Run]


def _here(plan: EmbedPlan, source: Source[Any], folder: Path, rank: int) -> _Job:
    """Return the job in the threads of this process."""
    device = device_named(plan.device)
    with one_core_each():  # as the batches are computed, so that this is what is measured
        embedder, settings = agree(plan, source, folder, device, rank=rank)
    threads = plan.workers or (torch.get_num_threads() if device.type == "cpu" else usable_cores())

    def run(batches: Batches) -> Run:
        for part in write_shards(embed_batches(embedder, batches, threads), folder, settings):
            yield part.images, part.share

    return _Job(settings, run)


def _on_ray(plan: EmbedPlan, source: Source[Any], folder: Path) -> _Job:
    """Return the job on a cluster of Ray. Raises ValueError for a compressed tar, and for one of several processes."""
    from . import ray_engine

    ray_engine.import_ray()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("The engine ray starts processes itself: run it without a launcher.")
    if isinstance(source, TarSource) and source.is_compressed:
        raise ValueError("The engine ray cannot read compressed tars: decompress them, or use the engine local.")
    cluster = ray_engine.Cluster.connect(plan.device, plan.workers)
    _, settings = agree(plan, source, folder, torch.device(cluster.device), computes=False)
    return _Job(settings, lambda batches: cluster.run(batches, folder.absolute(), settings))


def _make_folder(folder: Path) -> None:
    """Make the folder of an index. Raises ValueError for one with other files."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"Expected a folder for the index, got {folder}, which is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / JOB_FILE).exists():
        return
    if other := sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name != SKIPPED_FILE):
        raise ValueError(
            f"Expected a new folder, or one in which this job was interrupted, got {folder}, which has "
            f"{', '.join(other[:3])}{' and more' if len(other) > 3 else ''}."
        )


@contextlib.contextmanager
def _alone(folder: Path, rank: int) -> Iterator[None]:
    """Keep a second job out of the folder: two would write into the same files."""
    if rank:
        yield
        return
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another process is at work in {folder}.") from error
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing has come of it
