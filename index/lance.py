"""An index in LanceDB: answers from millions of images without comparing them all, and conditions on what is found.

The table lies in the folder `lance` of the index, a second copy of its vectors, and is made when it is first asked.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import read_json
from .exact_search import Found, check_queries, exact_scores
from .layout import Index, embeddings_file
from .tables import import_pyarrow

FOLDER = "lance"
COLUMNS = ("row", "path", "hash", "size")

_TABLE, _VECTOR, _ORIGIN = "images", "vector", "origin.json"
_ROWS_AT_ONCE = 2**14
_FEWEST_FOR_AN_INDEX = 10_000  # rows: fewer are compared as fast without one
_DIM_FACTOR = 8  # of which the length of vectors has to be a multiple for codes of one bit a number
# Of the nearest by their codes of one bit a number, so many times `top` are compared again by their vectors.
_REFINE_FACTOR = 10


def search_table(index: Index, query_embed: Any, top: int = 20, *, where: str = "", approximate: bool = True) -> Found:
    """Return the most similar rows for one query (dim,) as `search` does, at most `top`, of those that fulfil `where`.

    `where` is a condition in SQL on the columns row, path, hash and size: "path LIKE '%/2024/%' AND size > 100000".
    With `approximate`, LanceDB's own index chooses which rows are compared, and may miss some. Raises ImportError
    without lancedb, and ValueError for a condition that is none.
    """
    query = check_queries(query_embed, index.dim)
    if len(query) != 1:
        raise ValueError(f"Expected one query, got {len(query)}.")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    if not index.rows:
        return Found(np.empty((1, 0), np.int64), np.empty((1, 0), np.float32))
    asked = open_table(index).search(query[0], vector_column_name=_VECTOR).distance_type("dot").limit(top)
    asked = asked.select(["row", "_distance"])
    asked = asked.refine_factor(_REFINE_FACTOR) if approximate else asked.bypass_vector_index()
    try:
        answer = (asked.where(where, prefilter=True) if where else asked).to_arrow()
    except (ValueError, RuntimeError, OSError) as error:
        if not where:
            raise
        reason = str(error).splitlines()[0][:300]
        raise ValueError(f"Expected a condition on {', '.join(COLUMNS)} in SQL, got {where!r}: {reason}") from error
    rows = np.asarray(answer["row"].to_numpy(), np.int64)
    scores = exact_scores(index, rows, query[0])
    order = np.lexsort((rows, -scores))
    return Found(rows[order][None], scores[order][None].astype(np.float32))


def open_table(index: Index, report: Callable[[str], object] = lambda step: None) -> Any:
    """Return the table of an index, which is made if there is none of these embeddings yet: of a million in minutes.

    `report` is called with each step in words.
    """
    database = import_lancedb()
    folder = index.folder / FOLDER
    if _read_origin(folder) != _origin(index):
        report(f"copying {index.rows} vectors")
        partial = index.folder / f".{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _make_table(index, database.connect(partial), report)
            (partial / _ORIGIN).write_text(json.dumps(_origin(index)))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return database.connect(folder).open_table(_TABLE)


def import_lancedb() -> Any:
    """Return lancedb. Raises ImportError that names the extra."""
    try:
        import lancedb
    except ImportError as error:
        raise ImportError(
            f"Conditions and approximate search need lancedb ({error}): pip install '.[search]' in the checkout of "
            "twinlens."
        ) from error
    return lancedb


def _make_table(index: Index, database: Any, report: Callable[[str], object]) -> None:
    arrow = import_pyarrow()
    vector = arrow.list_(arrow.float16() if index.metadata["dtype"] == "float16" else arrow.float32(), index.dim)
    fields = {"row": arrow.int64(), "path": arrow.string(), "hash": arrow.string(), "size": arrow.int64()}
    schema = arrow.schema([*fields.items(), (_VECTOR, vector)])

    def batches() -> Iterator[Any]:
        for number, shard in enumerate(index.shards):
            table = index.read_table(number, COLUMNS).combine_chunks()
            for start in range(0, len(shard), _ROWS_AT_ONCE):
                strip = np.asarray(shard[start : start + _ROWS_AT_ONCE])
                columns = table.slice(start, len(strip)).combine_chunks().columns
                numbers = arrow.array(strip.reshape(-1))
                vectors = arrow.FixedSizeListArray.from_arrays(numbers, index.dim)
                arrays = [*(column.combine_chunks() for column in columns), vectors]
                yield arrow.record_batch(arrays, schema=schema)

    table = database.create_table(_TABLE, batches(), schema=schema)
    if index.rows >= _FEWEST_FOR_AN_INDEX and index.dim % _DIM_FACTOR == 0:
        from lancedb.index import IvfRq

        report("making LanceDB's index")
        table.create_index(_VECTOR, config=IvfRq(distance_type="dot"))


def _origin(index: Index) -> dict[str, Any]:
    """Return what tells the embeddings of a table from others: the files that it is a copy of."""
    files = [embeddings_file(index.folder, shard).stat() for shard in range(len(index.shards))]
    return {"index": dict(index.metadata), "files": [[file.st_size, file.st_mtime_ns] for file in files]}


def _read_origin(folder: Path) -> Any:
    try:
        return read_json(folder / _ORIGIN)
    except (OSError, ValueError):
        return None
