"""The job behind `twinlens embed`: it can be killed at any moment, and goes on where it was when it is started again.

A job is cut into shards. A shard is written whole or not at all, and which images are in it, and which of them are
computed together, depends on the settings alone. So a job that was interrupted, or that several processes share, writes
the same bytes as one that was not. `job.json` has the settings, and another job is refused in the same folder.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..inference import Embedder, load_exact_model, load_processor
from .embedding import EmbeddedBatch, embed_batches, one_core_each, usable_cores
from .layout import (
    INDEX_FILE,
    JOB_FILE,
    SKIPPED_FILE,
    ShardContent,
    embeddings_file,
    import_pyarrow,
    number_rows,
    table_file,
    write_index,
    write_json,
    write_shard,
    write_whole,
)
from .sources import Batches, Source, open_source
from .weights import weights_fingerprint

Dtype = Literal["float32", "bfloat16"]
VectorDtype = Literal["float32", "float16"]
Engine = Literal["local", "ray"]

# On the CPU a shard takes about a minute, which is what a kill can cost; an accelerator would drown in small files.
SHARD_SIZES = {"cpu": 1024, "accelerator": 16_384}
BATCH_SIZES = {"cpu": 32, "accelerator": 256}
NOT_COMPARED = ("model", "dim", "optimization")  # in job.json: what the same weights have in common, or what was chosen
LOCK_FILE = ".lock"
WAIT_SECONDS = 0.5  # between two looks at what other processes have written


@dataclass(frozen=True)
class EmbedPlan:
    """What to embed, how, and where to. Raises ValueError for a setting that cannot be."""

    model: str
    sources: Sequence[str]
    out: str | os.PathLike[str]
    dtype: Dtype = "float32"  # of the model
    vectors: VectorDtype = "float32"  # in the index
    batch_size: int | None = None  # images; None chooses
    shard_size: int | None = None  # images; None chooses
    device: str | None = None  # None is the accelerator, or the CPU where there is none
    workers: int | None = None  # threads, or actors of Ray; None chooses
    engine: Engine = "local"

    def __post_init__(self) -> None:
        for name, choices in {"dtype": Dtype, "vectors": VectorDtype, "engine": Engine}.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        for name in ("batch_size", "shard_size", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


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
        with one_core_each():  # as the batches are computed, so that this is what is measured
            embedder, settings = _load(plan, source, folder, rank)
        has_shard = lambda shard: embeddings_file(folder, shard).exists()  # noqa: E731
        batches = Batches(
            source,
            settings["shard_size"],
            settings["batch_size"],
            lambda shard: shard % processes == rank and not has_shard(shard),
        )
        if (folder / INDEX_FILE).exists():
            _remove_parts(folder)
            metadata = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            return EmbedResult(folder, metadata["rows"], metadata["skipped"], 0, 0.0, metadata)
        threads = plan.workers or (torch.get_num_threads() if settings["device"] == "cpu" else usable_cores())
        begin, images = time.perf_counter(), 0
        embedded = embed_batches(embedder, batches, threads)
        for batch in write_shards(embedded, folder, settings):
            images += batch.images
            report(Progress(images, time.perf_counter() - begin, batch.share, batches.first_share))
        seconds = time.perf_counter() - begin
        if rank:
            return EmbedResult(folder, 0, 0, images, seconds)
        while not all(map(has_shard, range(batches.shards))):
            time.sleep(WAIT_SECONDS)
        metadata = _complete(folder, batches.shards, settings)
        return EmbedResult(folder, metadata["rows"], metadata["skipped"], images, seconds, metadata)


def write_shards(
    batches: Iterable[EmbeddedBatch], folder: Path, settings: Mapping[str, Any]
) -> Iterator[EmbeddedBatch]:
    """Pass embedded batches on, and write the shards that they are, all of a shard one after the other."""
    parts: list[EmbeddedBatch] = []
    for part in batches:
        if parts and parts[0].shard != part.shard:
            _write_shard(parts, folder, settings)
            parts = []
        parts.append(part)
        yield part
    if parts:
        _write_shard(parts, folder, settings)


def _write_shard(parts: Sequence[EmbeddedBatch], folder: Path, settings: Mapping[str, Any]) -> None:
    shard = parts[0].shard
    skipped = [entry for part in parts for entry in part.skipped]
    if skipped:
        lines = [json.dumps({"path": entry.path, "reason": entry.reason}) for entry in skipped]
        write_whole(_skipped_file(folder, shard), lambda partial: Path(partial).write_text("\n".join(lines) + "\n"))
    origins = [origin for part in parts for origin in part.origins]
    paths, hashes, sizes = zip(*origins, strict=True) if origins else ((), (), ())
    embeddings = np.concatenate([part.embeddings for part in parts]).astype(settings["vectors"])
    # Numbered as if nothing had been left out before; `number_rows` knows better at the end.
    write_shard(folder, shard, ShardContent(embeddings, paths, hashes, sizes), shard * settings["shard_size"])


def _skipped_file(folder: Path, shard: int) -> Path:
    return folder / f"skipped-{shard:05}.jsonl"


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


def _load(plan: EmbedPlan, source: Source[Any], folder: Path, rank: int) -> tuple[Embedder, dict[str, Any]]:
    """Load the model, and compare the settings with those of the job in the folder, or write them there."""
    device = _device(plan.device)
    kind = "cpu" if device.type == "cpu" else "accelerator"
    model = load_exact_model(plan.model)
    processor = load_processor(plan.model, reads_texts=False)
    settings = {
        "model": os.path.abspath(plan.model) if os.path.exists(plan.model) else plan.model,
        "weights": weights_fingerprint(model),
        "image_processor": json.loads(json.dumps(processor.image_processor.to_dict(), default=str)),
        "source": source.describe(),
        "dtype": plan.dtype,
        "vectors": plan.vectors,
        "device": device.type,
        "batch_size": plan.batch_size or BATCH_SIZES[kind],
        "shard_size": plan.shard_size or SHARD_SIZES[kind],
    }
    model = model.to(device, getattr(torch, plan.dtype)).eval()
    file = folder / JOB_FILE
    if rank == 0 and not file.exists():
        settings["dim"] = model.encode([], processor, kind="image").shape[1]
        model.optimize_for_inference()
        # The faster way is found by a measurement, which may have another result the next time.
        settings["optimization"] = model.optimization.choices.get("vision_model", {})
        write_json(file, settings)
    while not file.exists():
        time.sleep(WAIT_SECONDS)
    settings = _agreed(json.loads(file.read_text(encoding="utf-8")), settings, folder)
    model.optimize_for_inference(**settings["optimization"])
    return Embedder(model, processor, batch_size=settings["batch_size"]), settings


def _device(name: str | None) -> torch.device:
    """Return a device by its name. Raises ValueError for one that is not there."""
    present = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cpu") if present is None else torch.device(present.type, rank)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1 or the like, got {name!r}.") from error
    if device.type != "cpu" and (present is None or device.type != present.type):
        raise ValueError(f"device must be one of this machine, {present or 'cpu'}, got {name!r}.")
    return device


def _agreed(former: dict[str, Any], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of the job in the folder. Raises ValueError that has both values where they are others."""
    known, given = (
        _flat({name: value for name, value in each.items() if name not in NOT_COMPARED}) for each in (former, settings)
    )
    if former["weights"] != settings["weights"]:  # then the model is another one, whose processor tells nothing more
        known["model"], given["model"] = former["model"], settings["model"]
        known, given = ({k: v for k, v in each.items() if k[:15] != "image_processor"} for each in (known, given))
    names = sorted({*known, *given})
    if different := [name for name in names if known.get(name) != given.get(name)]:
        words = "; ".join(f"{name} was {known.get(name)} and is {given.get(name)}" for name in different)
        raise ValueError(
            f"{folder} has another job: {words}. Start it again with the same settings, or embed into another folder."
        )
    return former


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary, with names like `source.sha256`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _complete(folder: Path, shards: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Number the rows, join the lists of what was skipped, and write index.json. Raises ValueError without any row."""
    rows = number_rows(folder, shards)
    parts = [file for shard in range(shards) if (file := _skipped_file(folder, shard)).exists()]
    if parts:
        write_whole(folder / SKIPPED_FILE, lambda partial: _join(parts, Path(partial)))
    else:
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # of an earlier job that could read nothing
    skipped = sum(file.read_bytes().count(b"\n") for file in parts)
    if not rows:
        _forget(folder, shards)
        with open(folder / SKIPPED_FILE, encoding="utf-8") as lines:
            first = json.loads(next(lines))
        raise ValueError(
            f"None of {skipped} images could be read ({folder / SKIPPED_FILE} has all reasons), the first is "
            f"{first['path']}: {first['reason']}"
        )
    metadata = {
        **{name: settings[name] for name in ("model", "weights", "dim")},
        "dtype": settings["vectors"],
        "rows": rows,
        "shards": shards,
        "skipped": skipped,
        "job": {name: settings[name] for name in ("source", "dtype", "device", "batch_size", "shard_size")},
    }
    write_index(folder, metadata)
    _remove_parts(folder)
    return metadata


def _join(parts: Iterable[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())


def _remove_parts(folder: Path) -> None:
    for file in folder.glob("skipped-*.jsonl"):
        file.unlink()


def _forget(folder: Path, shards: int) -> None:
    """Remove what a job wrote that could read nothing: the disk of the images may be there the next time."""
    for shard in range(shards):
        for file in (embeddings_file(folder, shard), table_file(folder, shard), _skipped_file(folder, shard)):
            file.unlink(missing_ok=True)
    (folder / JOB_FILE).unlink()
