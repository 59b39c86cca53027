"""The shards of a job: written as their batches come in, and made into one index at the end."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .embedding import EmbeddedBatch
from .layout import (
    JOB_FILE,
    SKIPPED_FILE,
    ShardContent,
    embeddings_file,
    number_rows,
    table_file,
    write_index,
    write_shard,
    write_whole,
)


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
        write_whole(skipped_file(folder, shard), lambda partial: Path(partial).write_text("\n".join(lines) + "\n"))
    origins = [origin for part in parts for origin in part.origins]
    paths, hashes, sizes = zip(*origins, strict=True) if origins else ((), (), ())
    embeddings = np.concatenate([part.embeddings for part in parts]).astype(settings["vectors"])
    # Numbered as if nothing had been left out before; `number_rows` knows better at the end.
    write_shard(folder, shard, ShardContent(embeddings, paths, hashes, sizes), shard * settings["shard_size"])


def skipped_file(folder: Path, shard: int) -> Path:
    """Return the file with what could not be read of a shard, while the job runs."""
    return folder / f"skipped-{shard:05}.jsonl"


def complete(folder: Path, shards: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Number the rows, join the lists of what was skipped, and write index.json. Raises ValueError without any row."""
    rows = number_rows(folder, shards)
    parts = [file for shard in range(shards) if (file := skipped_file(folder, shard)).exists()]
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
    remove_parts(folder)
    return metadata


def _join(parts: Iterable[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())


def remove_parts(folder: Path) -> None:
    """Remove what only a job that runs needs."""
    for file in folder.glob("skipped-*.jsonl"):
        file.unlink()


def _forget(folder: Path, shards: int) -> None:
    """Remove what a job wrote that could read nothing: the disk of the images may be there the next time."""
    for shard in range(shards):
        for file in (embeddings_file(folder, shard), table_file(folder, shard), skipped_file(folder, shard)):
            file.unlink(missing_ok=True)
    (folder / JOB_FILE).unlink()
