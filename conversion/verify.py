"""A folder against the official checkpoint that it was converted from: when it is made, and any time again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import skimage.data
import torch
import transformers
from transformers import PreTrainedModel

from ..configuration import DualEncoderConfig
from ..formats import Activation, Checkpoint
from ..modeling import DualEncoderModel, SiglipVisionModel
from ..processing import DualEncoderProcessor
from .certificate import Certificate, certify
from .source import read_source

ReferenceKind = Literal["independent", "original"]
Progress = Callable[[str], None]


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    reference: ReferenceKind = "independent",
    image_size: int | None = None,
    vision_activation: Activation | None = None,
    vision_heads: int | None = None,
    progress: Progress = lambda step: None,
) -> Certificate:
    """Measure a converted folder against its source again; the certificate says whether it passes.

    `reference="original"` also runs the official implementation (`original_outputs`), which executes code from a
    TorchScript archive where `openai-clip` is not installed. The other arguments are those of `read_source`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, expected a folder that twinlens convert wrote.")
    checkpoint, row = read_source(
        source, image_size=image_size, vision_activation=vision_activation, vision_heads=vision_heads, progress=progress
    )
    if image_size is None and row is None:  # a file shows whole patches only; the folder knows the rest
        given = _vision(type(checkpoint.config).from_pretrained(folder)).image_size
        if given // (patch := _vision(checkpoint.config).patch_size) * patch == _vision(checkpoint.config).image_size:
            checkpoint, _ = read_source(
                source, image_size=given, vision_activation=vision_activation, vision_heads=vision_heads
            )
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
    model_class = _model_class(config)

    def load_original() -> PreTrainedModel:
        return build_model(checkpoint, torch.float32, config)

    def load_stored() -> PreTrainedModel:
        return model_class.from_pretrained(folder, dtype=torch.float32)

    dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
    weights, values = load_original().state_dict(), load_stored().state_dict()
    changed = [name for name, value in values.items() if not torch.equal(value, weights[name].to(dtype).float())]
    if changed and strict:
        raise ValueError(f"{changed[0]} as read back from the new folder differs from what was written there.")
    rounded = None
    if changed:
        model = load_stored
        notes += (f"{len(changed)} of {len(values)} weights are not those of the source: {', '.join(changed[:3])}.",)
    elif all(torch.equal(value, weights[name]) for name, value in values.items()):
        model = load_stored
    else:
        model, rounded = load_original, load_stored
        notes += (f"The weights are rounded to {str(dtype).removeprefix('torch.')}; the parity table has the cost.",)
    del weights, values  # room for one model at a time
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


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, config: Any = None) -> PreTrainedModel:
    """Give our model with the official weights, every one and no other, under its own or another configuration."""
    config = config or checkpoint.config
    model, info = _model_class(config).from_pretrained(
        None,
        config=config,
        state_dict=checkpoint.state_dict(),
        dtype=dtype,
        output_loading_info=True,
    )
    if problems := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise ValueError(f"{checkpoint.path} does not fill the model exactly: {problems}.")
    return model.eval()


def _model_class(config: Any) -> Any:
    return DualEncoderModel.family(config) if isinstance(config, DualEncoderConfig) else SiglipVisionModel


def _photograph(folder: Path) -> npt.NDArray[Any]:
    """Give a real picture as the folder's own processor makes it: (1, channels, height, width)."""
    processor = DualEncoderProcessor.from_pretrained(folder)
    return processor.image_processor(skimage.data.astronaut(), return_tensors="np")["pixel_values"]


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)
