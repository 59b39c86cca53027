"""The embeddings of a data set, batch by batch: a callable for its workers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..runtime.inputs import Kind
from .sources import load_exact_model, load_processor


class Embedder:
    """Embeds the columns of batches: for `Dataset.map(batched=True)`, `DataLoader`, Ray's `map_batches`.

    Made from a Hub id, a folder or an official file, it loads the model when it is first called, in each process anew;
    its pickle holds the source alone, and of files here their sizes and times. `processor` is for a source without one.
    Made from a model, it needs a processor, and its pickle holds both.
    """

    def __init__(
        self,
        model: DualEncoderModel | str | os.PathLike[str],
        processor: DualEncoderProcessor | None = None,
        *,
        image_column: str | None = "image",
        text_column: str | None = "text",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        optimization: Mapping[str, str] | None = None,
    ) -> None:
        """Take the names of columns; one that is None, or that a batch has not, is left out.

        `device` and `dtype` are those of a model that is loaded, and `optimization` the options with which it calls
        `optimize_for_inference`: fixed ones make workers equal. Raises ValueError for a model without a processor, or
        with one of these three, and for no column.
        """
        if image_column is None and text_column is None:
            raise ValueError("An Embedder needs image_column or text_column, got None for both.")
        self.source: str | None = None
        self._loaded: tuple[DualEncoderModel, DualEncoderProcessor] | None = None
        if isinstance(model, str | os.PathLike):
            # A worker may run in another folder.
            self.source = str(Path(model).absolute()) if os.path.exists(model) else str(model)
        elif processor is None or any(option is not None for option in (device, dtype, optimization)):
            raise ValueError(
                "An Embedder of a model needs its processor, and takes neither device nor dtype nor optimization: move "
                "and optimise the model itself, or pass the source of both."
            )
        else:
            self._loaded = model, processor
        self.processor = processor
        columns: dict[Kind, str | None] = {"image": image_column, "text": text_column}
        self.columns = {kind: name for kind, name in columns.items() if name is not None}
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self.optimization = dict(optimization or {})
        self._files = _files_of(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.source is None else {**self.__dict__, "_loaded": None}

    def __call__(self, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Return `image_embeds` and `text_embeds`, unit vectors (rows, dim) each, of the columns that are there.

        `batch` has columns, or it is a list of samples, as a `DataLoader` gives them to `collate_fn`. Strings in the
        column of images are paths or URLs. Raises ValueError for a batch without any of the columns.
        """
        if isinstance(batch, Sequence):
            batch = _columns_of(batch)
        found = {kind: batch[name] for kind, name in self.columns.items() if name in batch}
        if not found:
            names = " or ".join(map(repr, self.columns.values()))
            raise ValueError(f"Expected a batch with a column {names}, got {', '.join(map(str, batch)) or 'none'}.")
        model, processor = self.load()
        options: Any = {"batch_size": self.batch_size, "convert_to_numpy": True}
        return {
            f"{kind}_embeds": model.encode(column, processor, kind=kind, **options) for kind, column in found.items()
        }

    def load(self) -> tuple[DualEncoderModel, DualEncoderProcessor]:
        """Return the model and its processor, which are loaded when they are first asked for."""
        if self._loaded is None:
            source = str(self.source)
            model = load_exact_model(source, self.dtype).to(self.device).optimize_for_inference(**self.optimization)
            self._loaded = model, self.processor or load_processor(source, reads_texts=False)
        return self._loaded


def _columns_of(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns that the first sample has. Raises ValueError for another sample without one of them."""
    names = list(samples[0]) if samples else []
    for place, sample in enumerate(samples):
        if missing := [name for name in names if name not in sample]:
            raise ValueError(f"Sample {place} of {len(samples)} has no {missing[0]!r}, which the first one has.")
    return {name: [sample[name] for sample in samples] for name in names}


def _files_of(source: str | None) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of the files of a source here: other weights in a folder are another Embedder.

    `datasets` would otherwise return the embeddings of the former weights, by the hash of the pickle.
    """
    path = Path(source or "")
    if source is None or not path.exists():
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
