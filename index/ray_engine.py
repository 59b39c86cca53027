"""The job on a cluster of Ray: Ray Data shares the shards out to actors, which embed and write them.

An actor that dies is replaced, and its shard is done again: that is Ray's work. The images, the model and the folder of
the index have to be where every machine of the cluster finds them, under the same paths.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..inference import Embedder
from .embedding import embed_batches
from .layout import write_whole
from .shards import write_shards
from .sources import Batch, Batches, Item
from .tables import import_pyarrow

LIST_FILE = ".shards.parquet"  # the images of each shard that is to be done, a row group each
COLUMNS = ("path", "file", "start", "size", "problem")  # of an image: the fields of `Item` that a place in a file has


def import_ray() -> Any:
    """Return Ray with its data sets. Raises ImportError that names the extra."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            f"The engine ray needs Ray ({error}): pip install '.[ray]' in the checkout of twinlens."
        ) from error
    return ray


@dataclass(frozen=True)
class Cluster:
    """How many actors embed, each on how many cores of the CPU or with a GPU."""

    actors: int
    cores: int
    device: str

    @classmethod
    def connect(cls, device: str | None, actors: int | None) -> "Cluster":
        """Connect to the cluster at RAY_ADDRESS, or start one here. `device` and `actors` that are None are chosen."""
        ray = import_ray()
        if not ray.is_initialized():
            # Without an address Ray would look for a cluster that was here before, for minutes.
            address = os.environ.get("RAY_ADDRESS", "local")
            ray.init(address, logging_level="error", log_to_driver=False)
        resources = ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        number = actors or (cores if device == "cpu" else gpus) or 1
        return cls(number, 1 if device == "cpu" else max(1, cores // number), device)

    def run(self, batches: Batches, folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """Embed and write all shards of the batches; yield the images of each, and the share of them that is done."""
        ray, arrow = import_ray(), import_pyarrow()
        file = folder / LIST_FILE
        shards = _write_list(batches, file)
        embedder = Embedder(
            settings["model"],
            batch_size=settings["batch_size"],
            device=self.device,
            dtype=getattr(torch, settings["dtype"]),
            optimization=settings["optimization"],
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        # A block for each shard: it is what Ray gives to an actor, and gives again if that dies.
        tables = [arrow.table({"shard": [shard], "group": [group]}) for group, shard in enumerate(shards)]
        done = ray.data.from_arrow(tables).map_batches(
            ShardEmbedder,
            fn_constructor_args=(embedder, file, settings, self.cores),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(self.actors, len(tables))),
            num_cpus=self.cores,
            num_gpus=0 if self.device == "cpu" else 1,
        )
        try:
            for number, row in enumerate(done.iter_rows() if tables else (), 1):
                yield row["images"], number / len(tables)
        except ray.exceptions.RayError as error:
            raise OSError(f"A worker of Ray failed: {str(error).strip().splitlines()[-1]}") from error
        file.unlink(missing_ok=True)


class ShardEmbedder:
    """An actor: it embeds the images of a shard and writes them."""

    def __init__(self, embedder: Embedder, file: Path, settings: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.embedder, self.file, self.settings, self.threads = embedder, file, settings, threads

    def __call__(self, table: Any) -> dict[str, list[int]]:
        """Write the shards that a table of pyarrow names, and return how many images each of them has."""
        images = []
        for row in table.to_pylist():
            embedded = embed_batches(self.embedder, self._batches(row["shard"], row["group"]), self.threads)
            images.append(sum(part.images for part in write_shards(embedded, self.file.parent, self.settings)))
        return {"images": images}

    def _batches(self, shard: int, group: int) -> Iterator[Batch]:
        rows = import_pyarrow().parquet.ParquetFile(self.file).read_row_group(group).to_pylist()
        items = [Item(**row) for row in rows]
        size = self.settings["batch_size"]
        for start in range(0, len(items), size):
            yield Batch(shard, items[start : start + size], 0.0)


def _write_list(batches: Batches, file: Path) -> list[int]:
    """Write the images of all shards, and return the numbers of these."""
    arrow = import_pyarrow()
    integers = ("start", "size")
    schema = arrow.schema([(name, arrow.int64() if name in integers else arrow.string()) for name in COLUMNS])
    shards = []

    def write(partial: str) -> None:
        with arrow.parquet.ParquetWriter(partial, schema) as writer:
            for shard, parts in groupby(batches, key=lambda batch: batch.shard):
                items = [item for part in parts for item in part.items]
                columns = {name: [getattr(item, name) for item in items] for name in COLUMNS}
                writer.write_table(arrow.table(columns, schema), row_group_size=len(items))
                shards.append(shard)

    write_whole(file, write)
    return shards
