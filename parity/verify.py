"""A folder against the official checkpoint that it was converted from: when it is made, and any time again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
import transformers
from transformers import PreTrainedModel
from typing_extensions import Unpack

from .. import modeling
from ..configuration import family_of
from ..formats import Checkpoint, LoadOptions, check_options, read_weights
from ..formats.source import read_source
from ..processing import DualEncoderProcessor
from .certificate import Certificate, certify

ReferenceKind = Literal["independent", "original"]
Progress = Callable[[str], None]


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    reference: ReferenceKind = "independent",
    progress: Progress = lambda step: None,
    **options: Unpack[LoadOptions],
) -> Certificate:
    """Measure a converted folder against its source again; the certificate says whether it passes.

    `reference="original"` also runs the official implementation (`original_outputs`), which executes code from a
    TorchScript archive where `openai-clip` is not installed. `options` are those of `read_source`.
    """
    check_options(options)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, expected a folder that twinlens convert wrote.")
    checkpoint, entry = read_source(source, progress=progress, **options)
    if options.get("image_size") is None and entry is None:
        # A file shows whole patches only; the folder knows the rest.
        given = _vision(type(checkpoint.config).from_pretrained(folder)).image_size
        if given // (patch := _vision(checkpoint.config).patch_size) * patch == _vision(checkpoint.config).image_size:
            checkpoint, _ = read_source(source, **{**options, "image_size": given})
    return certify_folder(checkpoint, folder, reference=reference, progress=progress)


def certify_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    strict: bool = False,
    reference: ReferenceKind = "independent",
    notes: tuple[str, ...] = (),
    progress: Progress = lambda step: None,
) -> Certificate:
    """Judge a folder as it loads; where its dtype rounds the weights, judge them unrounded and report the cost.

    `strict` raises ValueError where its weights are not those of the checkpoint, rounded or not.
    """
    config = type(checkpoint.config).from_pretrained(folder)
    model_class = model_class_of(config)

    def load_original() -> PreTrainedModel:
        return _build_model(checkpoint, config)

    def load_stored() -> PreTrainedModel:
        return model_class.from_pretrained(folder, dtype=torch.float32)

    dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
    stored = read_weights(folder)
    total, changed, exact = 0, [], True
    for name, weight in checkpoint.weights():  # room for one at a time
        expected, found = weight.float(), stored[name].float() if name in stored else torch.empty(0)
        if not torch.equal(found, expected.to(dtype).float()):
            changed.append(name)
        exact = exact and torch.equal(found, expected)
        total += 1
    if changed and strict:
        raise ValueError(f"{changed[0]} as read back from the new folder differs from what was written there.")
    model, rounded = load_stored, None
    if changed:
        notes += (f"{len(changed)} of {total} weights are not those of the source: {', '.join(changed[:3])}.",)
    elif not exact:
        model, rounded = load_original, load_stored
        notes += (f"The weights are rounded to {str(dtype).removeprefix('torch.')}; the parity table has the cost.",)
    return certify(
        checkpoint,
        model,
        rounded=rounded,
        native=lambda: getattr(transformers, model_class.__name__).from_pretrained(folder, dtype=torch.float32),
        photograph=_photograph(folder),
        original=reference == "original",
        notes=notes,
        progress=progress,
    )


def _build_model(checkpoint: Checkpoint, config: Any) -> PreTrainedModel:
    """Give our model in float32 with the official weights, every one and no other, under another configuration."""
    model, info = model_class_of(config).from_pretrained(
        None, config=config, state_dict=checkpoint.state_dict(), dtype=torch.float32, output_loading_info=True
    )
    if problems := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise ValueError(f"{checkpoint.path} does not fill the model exactly: {problems}.")
    return model.eval()


def model_class_of(config: Any) -> Any:
    """The class of ours for a dual encoder, or for an image tower alone."""
    family = family_of(config)
    return getattr(modeling, family.model if config.model_type == family.model_type else family.vision_model)


def _photograph(folder: Path) -> npt.NDArray[Any]:
    """Give a real picture as the folder's own processor makes it: (1, channels, height, width)."""
    import skimage.data

    processor = DualEncoderProcessor.from_pretrained(folder)
    return processor.image_processor(skimage.data.astronaut(), return_tensors="np")["pixel_values"]


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)
