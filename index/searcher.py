"""Answers from an index to texts and images, by the model that embedded it."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference import load_exact_model, load_processor
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .exact_search import Found, search
from .lance import search_table
from .layout import Index
from .originals import read_originals
from .weights import weights_fingerprint

# Images of the index that a model with other weights embeds again, and the cosine that all of them need. Weights
# rounded to bfloat16 give 0.999 and more; of another model, even of the same architecture, the vectors lie anywhere.
_IMAGES_COMPARED, _IMAGES_TRIED = 3, 30
_LEAST_COSINE = 0.99


@dataclass(frozen=True)
class SearchResult:
    """An image of an index, and its cosine with the query."""

    row: int
    path: str
    score: float


class Searcher:
    """An index with a model and its processor: embeds a text or an image, and finds the images nearest to it."""

    def __init__(self, index: Index, model: DualEncoderModel, processor: DualEncoderProcessor) -> None:
        """Take a model that embedded the index; `open` loads one and checks that it did."""
        self.index, self.model, self.processor = index, model, processor
        self._paths = index.paths  # which keeps what it has read

    @classmethod
    def open(
        cls,
        index: Index | str | os.PathLike[str],
        model: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        reads_texts: bool = True,
    ) -> "Searcher":
        """Open an index, by its folder, with the model that it names or with another source of the weights.

        Raises ValueError for a model with other weights, unless it embeds images of the index as the index has them:
        weights in another dtype do.
        """
        index = index if isinstance(index, Index) else Index.open(index)
        source = str(model or index.metadata["model"])
        loaded = load_exact_model(source).eval()
        with ThreadPoolExecutor(1) as pool:  # the hash takes as long as reading a file, outside Python's lock
            fingerprint = pool.submit(weights_fingerprint, loaded)
            processor = load_processor(source, None if tokenizer is None else str(tokenizer), reads_texts=reads_texts)
        check_weights(index, loaded, processor, source, fingerprint.result())
        return cls(index, loaded, processor)

    def embed_text(self, text: str) -> Tensor:
        """Return the unit vector (dim,) of a text. Raises ValueError for a text without words."""
        if not text.strip():
            raise ValueError("Expected a text to search for, got one without words.")
        return self.model.encode([text], self.processor, kind="text")[0]

    def embed_image(self, image: Any) -> Tensor:
        """Return the unit vector (dim,) of an image."""
        return self.model.encode([image], self.processor, kind="image")[0]

    def nearest(
        self, query_embed: Tensor, top: int = 20, *, where: str = "", approximate: bool = False
    ) -> list[SearchResult]:
        """Return the images whose vectors are nearest to one (dim,); `where` and `approximate` are LanceDB's.

        See `search_table` for them. Without either, all vectors of the index are compared.
        """
        if where or approximate:
            return self.results(search_table(self.index, query_embed, top, where=where, approximate=approximate))
        return self.results(search(self.index, query_embed, top))

    def results(self, found: Found, query: int = 0) -> list[SearchResult]:
        """Return what was found for one of the queries, with paths."""
        rows, scores = found.rows[query].tolist(), found.scores[query].tolist()
        paths = {row: self._paths[row] for row in sorted(rows)}  # shard by shard
        return [SearchResult(row, paths[row], score) for row, score in zip(rows, scores, strict=True)]


def check_weights(
    index: Index, model: DualEncoderModel, processor: DualEncoderProcessor, source: str | Path, fingerprint: str
) -> None:
    """Raise ValueError unless the vectors of a model, which has this fingerprint, are comparable to those of an index.

    They are with the weights of the index, and with others that give the first images of the index the same vectors.
    """
    theirs = index.metadata["weights"]
    if fingerprint != theirs and (problem := _difference(index, model, processor)):
        raise ValueError(
            f"{index.folder} was embedded by {index.metadata['model']} with the weights {theirs[:12]}, and {source} "
            f"has the weights {fingerprint[:12]}; {problem}: pass the model that embedded it with --model, or embed "
            "the images again."
        )


def _difference(index: Index, model: DualEncoderModel, processor: DualEncoderProcessor) -> str:
    """Return in words how a model embeds images of the index otherwise, "" if it does not.

    They are the first images that are what they were when they were embedded.
    """
    cosines: list[float] = []
    for content, expected in _unchanged_images(index):
        embeds = model.encode([content], processor, kind="image")[0]
        if len(embeds) != index.dim:
            return f"its vectors have {len(embeds)} numbers in place of {index.dim}"
        cosines.append(float(embeds @ expected))
    if not cosines:
        return "no image of the index is there to compare their vectors"
    return "" if min(cosines) >= _LEAST_COSINE else f"they embed an image differently (cosine {min(cosines):.3f})"


def _unchanged_images(index: Index) -> Iterator[tuple[bytes, Tensor]]:
    """Yield the content and the vector (dim,) of the first images that are still what was embedded."""
    number = next((number for number, shard in enumerate(index.shards) if len(shard)), None)
    if number is None:
        return
    table = index.read_table(number, ["path", "hash"]).slice(0, _IMAGES_TRIED).to_pydict()
    found = 0
    for row, (path, digest) in enumerate(zip(table["path"], table["hash"], strict=True)):
        ((_, content),) = read_originals([path])
        if isinstance(content, bytes) and hashlib.sha256(content).hexdigest() == digest:
            yield content, torch.from_numpy(index.shards[number][row].astype("float32"))
            found += 1
        if found == _IMAGES_COMPARED:
            return
