"""A model and its processor from one source, as commands load them: exactly its weights, errors in one line."""

from collections.abc import Collection
from pathlib import Path

import torch

from ..formats import readable_errors
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor


def load_exact_model(source: str | Path, dtype: torch.dtype | None = None) -> DualEncoderModel:
    """Load a model that has exactly the weights of `source`, in its dtype or in another.

    Raises ValueError for a missing or unexpected weight or one of another shape, which `from_pretrained` only reports,
    and for a source that cannot be read.
    """
    chosen = {} if dtype is None else {"dtype": dtype}
    with readable_errors(source):
        model, info = DualEncoderModel.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **chosen
        )
    if problems := [_describe_keys(name, info[name]) for name in info if info[name]]:
        raise ValueError(f"{source} has not the weights of a {type(model).__name__}: {'; '.join(problems)}.")
    return model


def _describe_keys(problem: str, keys: Collection[object]) -> str:
    """Return the names of some weights with what is wrong with them: "12 missing keys (a, b, c, ...)"."""
    some = ", ".join(sorted(map(str, keys))[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {problem.replace('_', ' ')} ({some})"


def load_processor(
    source: str | Path, tokenizer: str | Path | None = None, *, reads_texts: bool = True
) -> DualEncoderProcessor:
    """Load the processor of a model; `tokenizer` is for a source without a vocabulary.

    Raises ValueError for a source that cannot be read, or that has no vocabulary where texts are to be read.
    """
    with readable_errors(source if tokenizer is None else tokenizer):
        processor = DualEncoderProcessor.from_pretrained(source, tokenizer=tokenizer)
    if reads_texts and processor.tokenizer is None:
        raise ValueError(f"{source} has no vocabulary, so texts cannot be read: pass one with --tokenizer.")
    return processor
