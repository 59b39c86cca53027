"""The warning of weights that hold NaN or infinity, of a model that was loaded."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..messages import listed
from .finite import is_finite
from .reader import IN_SAFETENSORS, weight_files
from .safetensors_file import read_runs

logger = logging.getLogger(__name__)

_RUN = 1 << 26  # bytes that are looked at between two questions of whether it is time to end

Loaded = TypeVar("Loaded")

OTHER_WEIGHTS = ("variant", "gguf_file", "state_dict")  # arguments with which transformers reads other weights


@contextmanager
def checked_ahead(source: object, options: Mapping[str, Any]) -> Iterator[dict[str, torch.dtype]]:
    """Yield the dtypes of weights that a thread finds finite in their file, while transformers loads from there.

    `source` and `options` are those of `from_pretrained`. What the thread has not reached at the end of the block is
    left out, and everything of a source whose files are not of safetensors, or not here yet.
    """
    finite: dict[str, torch.dtype] = {}
    end = Event()

    def check() -> None:
        with suppress(BaseException):  # what is wrong with the files transformers says
            for file in _weight_files(source, options):
                for names, values in read_runs(file, _RUN):
                    if end.is_set():
                        return
                    if _has_finite_sum(values):
                        finite.update(dict.fromkeys(names, values.dtype))

    thread = Thread(target=check, daemon=True)
    thread.start()
    try:
        yield finite
    finally:
        end.set()
        thread.join()


def warn_of_bad_weights(source: object, loaded: Loaded, finite: Mapping[str, torch.dtype] | None = None) -> Loaded:
    """Return a model that was loaded, alone or beside its loading info; log the names of weights that are not finite.

    Nothing is done without a source, since the readers of official files have refused such weights already. `finite`
    holds what `checked_ahead` found, which needs no second look in the same dtype.
    """
    model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
    if source is None:
        return loaded
    known = finite or {}
    unknown = ((name, value) for name, value in model.state_dict().items() if known.get(name) != value.dtype)
    if names := [name for name, value in unknown if _is_bad(value)]:
        logger.warning(
            "%s: %s hold NaN or infinity, and so will embeddings. Take another copy of the weights.",
            source,
            listed(names),
        )
    return loaded


def _has_finite_sum(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite; it may return False where only the sum is not finite.

    NumPy takes one thread, and leaves the other cores to those who load.
    """
    if values.dtype not in (torch.float32, torch.float64):
        return math.isfinite(values.sum().item())
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.numpy().sum()))


def _weight_files(source: object, options: Mapping[str, Any]) -> list[Path]:
    """Return the files of safetensors that `from_pretrained` loads; none where that is not clear."""
    if source is None or any(map(options.get, OTHER_WEIGHTS)) or options.get("use_safetensors") is False:
        return []
    subfolder = options.get("subfolder") or ""
    folder = Path(str(source), subfolder)
    if not folder.is_dir():
        places = {"cache_dir": options.get("cache_dir"), "revision": options.get("revision")}
        names = (str(Path(subfolder, name)) for name in IN_SAFETENSORS)
        cached = (try_to_load_from_cache(str(source), name, **places) for name in names)
        folder = next(Path(path).parent for path in cached if isinstance(path, str))
    return weight_files(folder, IN_SAFETENSORS)


def _is_bad(value: Tensor) -> bool:
    """Return whether a weight is a plain tensor, in memory, with NaN or infinity."""
    is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
    if not is_plain or not value.is_floating_point():
        return False
    return not is_finite(value if value.itemsize > 1 else value.float())  # float8 has no order in PyTorch
