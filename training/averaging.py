"""Averages of the weights of models that began as one: a fine-tuned model with its start, or several fine-tuned ones.

With its start (WiSE-FT, arXiv:2109.01903), what the model could do before comes back, at little cost of what it has
learnt. Several runs of one start (model soups, arXiv:2203.05482) are often better together than the best of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from ..configuration import title_of
from ..formats import code_span
from ..formats.atomic import complete_or_absent
from ..formats.nested import flattened
from ..inference import load_exact_model, load_processor
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.sentence_transformers import save_sentence_transformers_files

# Of a file, and nothing of what is computed: ids of a whole model are the tokenizer's, which some trainers note there.
_OF_A_FILE = ("_name_or_path", "dtype", "transformers_version", "architectures")
_OF_A_TOKENIZER = {"pad_token_id", "bos_token_id", "eos_token_id"}

_CARD = """\
---
{metadata}
---

# An average of {count} {title} models

{shares}

It was made by `twinlens average`, which averages every weight.

```python
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
```
"""


def average(
    models: Sequence[str | Path], output: str | Path, weights: Sequence[float] | None = None, *, overwrite: bool = False
) -> Path:
    """Write a Hub folder with the averages of the weights of models, and return its path.

    `weights` has the share of each model, of any sign and 1 together; without it all have the same. They are averaged
    in float64 and saved in the dtype of the first model, whose processor is saved too. Raises ValueError for models of
    different architectures, texts or images, FileExistsError for a folder that holds something.
    """
    shares = check_shares(models, weights)
    folder = Path(output)
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "is not empty: choose another folder, or pass --overwrite." if folder.is_dir() else "is a file."
        raise FileExistsError(f"Expected an empty or a new folder, {folder} {problem}")
    first, processor = load_exact_model(models[0]), load_processor(models[0], reads_texts=False)
    means = {name: share * shares[0] for name, share in _float64(first).items()}
    for source, share in zip(models[1:], shares[1:], strict=True):
        other = load_exact_model(source)
        _check_alike(first, other, models[0], source)
        _check_processors_alike(processor, load_processor(source, reads_texts=False), models[0], source)
        for name, values in _float64(other).items():
            means[name] += share * values
    first.load_state_dict(means)  # in the model's own dtype
    with complete_or_absent(folder, overwrite=overwrite) as (partial,):
        first.save_pretrained(partial)
        processor.save_pretrained(partial)
        save_sentence_transformers_files(first.config, processor, partial)
        (partial / "README.md").write_text(_card(first, models, shares), encoding="utf-8")
    return folder


def check_shares(models: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    """Return the share of each model. Raises ValueError unless there is one for each, and 1 together."""
    if len(models) < 2:
        raise ValueError(f"An average needs at least 2 models, got {len(models)}.")
    if weights is None:
        return [1 / len(models)] * len(models)
    if len(weights) != len(models):
        raise ValueError(f"Expected a weight for each of the {len(models)} models, got {len(weights)}.")
    if not math.isclose(total := math.fsum(weights), 1, abs_tol=1e-6):
        raise ValueError(
            f"The weights of the models must be 1 together, got {total:g}: {', '.join(map(str, weights))}."
        )
    return [*weights]


def _float64(model: DualEncoderModel) -> dict[str, torch.Tensor]:
    return {name: values.double() for name, values in model.state_dict().items()}


def _check_alike(first: DualEncoderModel, other: DualEncoderModel, name: str | Path, source: str | Path) -> None:
    ours, theirs = (
        {
            key: value
            for key, value in flattened(model.config.to_dict()).items()
            if key.split(".")[-1] not in _OF_A_FILE and key not in _OF_A_TOKENIZER
        }
        for model in (first, other)
    )
    _refuse_differences(ours, theirs, name, source)


def _check_processors_alike(
    first: DualEncoderProcessor, other: DualEncoderProcessor, name: str | Path, source: str | Path
) -> None:
    ours, theirs = (flattened(each.image_processor.to_dict()) for each in (first, other))
    _refuse_differences(ours, theirs, name, source)
    vocabularies = [None if each.tokenizer is None else each.tokenizer.get_vocab() for each in (first, other)]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(f"{source} has another vocabulary than {name}, so that their average reads no texts.")


def _refuse_differences(ours: dict[str, Any], theirs: dict[str, Any], name: str | Path, source: str | Path) -> None:
    names = sorted({*ours, *theirs}, key=lambda name: (name != "model_type", name))
    if different := [key for key in names if ours.get(key) != theirs.get(key)]:
        words = "; ".join(f"{key} is {theirs.get(key)} and not {ours.get(key)}" for key in different[:3])
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(f"{source} is another kind of model than {name}: {words}{more}. Average models of one start.")


def _card(model: DualEncoderModel, models: Sequence[str | Path], shares: Sequence[float]) -> str:
    title = title_of(model.config.model_type)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=[model.config.model_type, "vision", "twinlens"],
    )
    rows = "\n".join(
        f"| {code_span(Path(source).name)} | {share:g} |" for source, share in zip(models, shares, strict=True)
    )
    return _CARD.format(
        metadata=metadata.to_yaml(), count=len(models), title=title, shares=f"| model | weight |\n|---|---:|\n{rows}"
    )
