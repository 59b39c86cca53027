"""Exact search: the rows of an index that are most similar to a vector, found by comparing it with all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .layout import Embeddings, Index

STRIP_BYTES = 2**24  # of vectors in float32, which are compared at a time
QUERIES_AT_ONCE = 256  # more would only make the scores of a strip larger
_RESCORED_AT_ONCE = 2**20  # numbers

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """The best rows (queries, top) of each query, the best first, and their cosines (queries, top) in float32."""

    rows: Rows
    scores: Scores


def search(index: Index, query_embeds: Any, top: int = 20) -> Found:
    """Return the `top` most similar rows for each query, all rows where the index has fewer; equal scores by row.

    `query_embeds` are unit vectors (queries, dim) or one of them (dim,), a tensor or an array. All rows are compared in
    float32, and those that may be among the best once more in float64: the answer is that of float64, and rows with
    equal vectors have equal scores. Raises ValueError for vectors of another length or with values that are not finite.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    queries = check_queries(query_embeds, index.dim)
    parts = [_search(index, part, min(top, index.rows)) for part in torch.from_numpy(queries).split(QUERIES_AT_ONCE)]
    return Found(np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts]))


def check_queries(query_embeds: Any, dim: int) -> npt.NDArray[np.float32]:
    """Return queries as an array (queries, dim). Raises ValueError for others than `search` takes."""
    if isinstance(query_embeds, Tensor):
        query_embeds = query_embeds.detach().cpu().float().numpy()
    queries = np.atleast_2d(np.ascontiguousarray(query_embeds, np.float32))
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"Expected queries of shape (queries, {dim}) as the index has, got {queries.shape}.")
    if not np.isfinite(queries).all():
        raise ValueError("Expected queries of finite numbers, got NaN or infinity.")
    return queries


def _search(index: Index, queries: Tensor, top: int) -> Found:
    best = [_Best(query, top) for query in queries.numpy()]
    for first, strip in _strips(index):
        vectors = torch.from_numpy(strip).float()  # (rows of the strip, dim), without a copy if they are of float32
        scores = torch.mv(vectors, queries[0])[None] if len(queries) == 1 else queries @ vectors.T  # (queries, rows)
        for one, row_scores in zip(best, scores.numpy(), strict=True):
            one.add(first, strip, row_scores)
    if any(len(one.rows) < top for one in best):
        raise ValueError(f"{index.folder} has vectors with NaN, which cannot be compared: embed the images again.")
    return Found(np.stack([one.rows for one in best]), np.stack([one.scores for one in best]).astype(np.float32))


def _strips(index: Index) -> Iterator[tuple[int, Embeddings]]:
    """Yield the first row of each strip and its vectors, which are read from the file when they are used."""
    length = max(1, STRIP_BYTES // (4 * max(1, index.dim)))
    first = 0
    for shard in index.shards:
        vectors = np.asarray(_Mapped(shard))
        for start in range(0, len(vectors), length):
            yield first + start, vectors[start : start + length]
        first += len(vectors)


class _Mapped:
    """Vectors in a file that is mapped for reading, as an array that PyTorch takes without a warning: it may not be
    written to, and nothing here does.
    """

    def __init__(self, vectors: Embeddings) -> None:
        self.vectors = vectors  # which the array keeps, and so the map
        interface = vectors.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def exact_scores(index: Index, rows: Rows, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the scores (rows,) of some rows for a query (dim,) in float64, as `search` decides by."""
    ends = np.cumsum([len(shard) for shard in index.shards])
    scores = np.empty(len(rows), np.float64)
    for number, shard in enumerate(index.shards):
        inside = np.flatnonzero(np.searchsorted(ends, rows, side="right") == number)
        if len(inside):
            places = rows[inside] - (ends[number] - len(shard))
            scores[inside] = _dot_each(shard.view(np.ndarray), places, query.astype(np.float64))
    return scores


def _dot_each(vectors: Embeddings, places: Rows, query: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the products of some vectors with a query, each summed by itself in the same order as any other."""
    count = max(1, _RESCORED_AT_ONCE // max(1, vectors.shape[1]))
    parts = [
        (vectors[places[start : start + count]].astype(np.float64) * query).sum(axis=1)
        for start in range(0, len(places), count)
    ]
    return np.concatenate(parts)


class _Best:
    """The best rows so far for one query.

    A product in float32 rounds, by how much depends on the place of a row in the strip, and so two equal vectors can
    have scores that differ. What may be among the best in spite of rounding is therefore computed again in float64.
    """

    def __init__(self, query: npt.NDArray[np.float32], top: int) -> None:
        self.top = top
        self.rows = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float64)
        self._query = query.astype(np.float64)
        # The bound of a sum of float32 products (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), twice
        # for vectors that are a little longer than 1.
        self._rounding = 2 * len(query) * 2.0**-24 * float(np.linalg.norm(self._query))

    def add(self, first: int, strip: Embeddings, scores: Scores) -> None:
        """Take the rows of a strip that are better, with its float32 `scores`; its rows begin with `first`."""
        least = float(self.scores[-1]) - self._rounding if len(self.rows) == self.top else -np.inf
        places = np.flatnonzero(scores > least)
        if len(places) > self.top:
            among = scores[places]
            kth = float(np.partition(among, -self.top)[-self.top])
            places = places[among >= kth - 2 * self._rounding]
        if len(places):
            exact = _dot_each(strip, places, self._query)
            if (error := float(np.abs(exact - scores[places]).max())) > self._rounding:
                raise RuntimeError(
                    f"Scores differ by {error:.1e} from those of float64, more than float32 explains: PyTorch computes "
                    'products in a lower precision. Call torch.set_float32_matmul_precision("highest").'
                )
            self._merge(places + first, exact)

    def _merge(self, rows: Rows, scores: npt.NDArray[np.float64]) -> None:
        rows, scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        order = np.lexsort((rows, -scores))[: self.top]
        self.rows, self.scores = rows[order], scores[order]
