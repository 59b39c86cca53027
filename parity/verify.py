"""Comparison of a converted folder with the official checkpoint that it was converted from."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel
from typing_extensions import Unpack

from .. import modeling
from ..catalogue import PHOTOGRAPH
from ..catalogue.download import Progress
from ..configuration import (
    DualEncoderConfig,
    TowerConfig,
    describe_model_type,
    family_of,
    is_single_tower,
)
from ..formats import (
    Checkpoint,
    FormatError,
    LoadOptions,
    check_options,
    read_config,
    read_weights,
    readable_errors,
)
from ..formats.geometry import sizes_of
from ..formats.source import read_source
from ..formats.table import cast
from ..processing import DualEncoderProcessor
from .certificate import Certificate
from .files import describe_files
from .measurement import Images, Pairing, measure, model_subject, reference_subject
from .original import original_subject
from .preprocessing import Choices, check_preprocessing

MISPLACED_COLUMNS = (
    "On the CPU, transformers before 5.24 gives wrong positions to an image of a single column of patches, and its "
    "logits are up to 10 off. Such images are left out of the comparison with it; the float64 reference checks them."
)

ReferenceKind = Literal["independent", "original"]
Config = DualEncoderConfig | TowerConfig  # the second for an image tower alone


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    reference: ReferenceKind = "independent",
    progress: Progress = lambda step: None,
    **options: Unpack[LoadOptions],
) -> Certificate:
    """Measure a converted folder against its source again, and return a certificate that says whether it passes.

    `reference="original"` also runs the official implementation (`original_subject`), which executes code from a
    TorchScript archive where `openai-clip` is not installed. `options` are those of `read_source`.
    Raises FileNotFoundError where `folder` is not a converted folder, FormatError where it cannot be read or holds
    another model than `source`.
    """
    check_options(options)
    folder = Path(folder)
    model_type = read_config(folder).model_type
    checkpoint, entry = read_source(source, progress=progress, **options)
    if model_type != checkpoint.config.model_type:
        raise FormatError(
            f"{folder} has the model_type {describe_model_type(model_type)}, and {source} has "
            f"{describe_model_type(checkpoint.config.model_type)}. Pass the source of this folder."
        )
    folder_config = type(checkpoint.config).from_pretrained(folder)
    if faults := _other_sizes(checkpoint.config, folder_config):
        raise FormatError(
            f"{folder} is not the model in {source}: {', '.join(faults)}. Pass the source of this folder."
        )
    vision = _vision_config(checkpoint.config)
    if options.get("image_size") is None and entry is None and not vision.flexible_size:
        # A file shows whole patches only, and the folder knows the pixels: 384 at patch 14 is 378 in a file.
        of_folder = _vision_config(folder_config)
        pixels = of_folder.image_size
        if pixels != vision.image_size and of_folder.grid_size * vision.patch_size == vision.image_size:
            checkpoint, _ = read_source(source, **(options | LoadOptions(image_size=pixels)))
    return certify_folder(checkpoint, folder, reference=reference, progress=progress)


def certify_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    strict: bool = False,
    reference: ReferenceKind = "independent",
    notes: tuple[str, ...] = (),
    choices: Choices | None = None,
    progress: Progress = lambda step: None,
) -> Certificate:
    """Measure a folder as it loads. If its dtype rounds the weights, check them unrounded and report the cost.

    `choices` are those that it records, by default. With `strict`, raise ValueError if its weights are not those of the
    checkpoint, rounded to its dtype.
    """
    with readable_errors(folder):
        files = describe_files(folder)  # first: what changes from now on is not vouched for
        processor = DualEncoderProcessor.from_pretrained(folder)
    if processor.tokenizer is not None:
        checkpoint = checkpoint.with_end_of_text(processor.tokenizer.eos_token_id)
    config = type(checkpoint.config).from_pretrained(folder)
    model_class = model_class_of(config)
    float64 = reference_subject(checkpoint)
    stored = model_subject("twinlens", lambda: _load(model_class, folder))
    transformers_class = getattr(transformers, model_class.__name__, None)

    weights = _compare_weights(checkpoint, folder, config)
    if weights.changed:
        if strict:
            raise ValueError(f"{weights.changed[0]} as read back from the new folder differs from what was written.")
        changed = ", ".join(weights.changed[:3])
        notes += (f"{len(weights.changed)} of {weights.total} weights are not those of the source: {changed}.",)
    if weights.rounded_to:
        notes += (f"The weights are rounded to {weights.rounded_to}; the parity table has the cost.",)
        ours = model_subject("twinlens", lambda: _load_unrounded(checkpoint, config))
        stored = replace(stored, name=f"twinlens, {weights.rounded_to} weights")
        pairings = [Pairing(ours, float64), Pairing(stored, float64, checked=False)]
    else:
        ours = stored
        pairings = [Pairing(ours, float64)]
    vision = _vision_config(config)
    if transformers_class is None:
        notes += (f"transformers has no {model_class.__name__}, so that the parity table has no column for it.",)
    else:
        theirs = model_subject(
            "transformers", lambda: _load(transformers_class, folder), pools_start=True, misplaces_columns=True
        )
        pairings.append(Pairing(stored, theirs))
        if vision.flexible_size:
            notes += (MISPLACED_COLUMNS,)
    if reference == "original":
        original = original_subject(checkpoint)
        pairings += [Pairing(ours, original), Pairing(original, float64)]
    progress("comparing pixels and ids")
    certificate = measure(
        checkpoint,
        pairings,
        photograph=_photograph(processor, vision),
        notes=notes,
        preprocessing=check_preprocessing(checkpoint, folder, processor, choices),
        progress=progress,
    )
    return replace(certificate, files=files)


def _other_sizes(expected: Config, config: Config) -> list[str]:
    """Return the sizes by which two dual encoders have weights of other shapes. Heads do not change any shape."""
    if is_single_tower(expected) or is_single_tower(config):
        return []
    sizes = sizes_of(config)
    return [
        f"{name} is {sizes[name]}, not {size}"
        for name, size in sizes_of(expected).items()
        if sizes[name] != size and "head" not in name
    ]


def _load(model_class: Any, folder: Path) -> PreTrainedModel:
    with readable_errors(folder):
        return model_class.from_pretrained(folder, dtype=torch.float32)


class _StoredWeights(NamedTuple):
    """The result of comparing the weights of a folder with those of its source."""

    total: int
    changed: list[str]  # names of those that are missing or not the source's, rounded to the folder's dtype
    rounded_to: str | None  # the folder's dtype, if none is changed and it has not the precision of the source


def _compare_weights(checkpoint: Checkpoint, folder: Path, config: Config) -> _StoredWeights:
    dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
    with readable_errors(folder):
        stored = read_weights(folder)
    total, changed, exact = 0, [], True
    for name, weight in checkpoint.weights():  # one at a time in memory
        actual = stored[name].float() if name in stored else torch.empty(0)
        if not torch.equal(actual, cast(weight, dtype).float()):
            changed.append(name)
        exact = exact and torch.equal(actual, weight.float())
        total += 1
    rounded = not changed and not exact
    return _StoredWeights(total, changed, str(dtype).removeprefix("torch.") if rounded else None)


def _load_unrounded(checkpoint: Checkpoint, config: Config) -> PreTrainedModel:
    """Return our model in float32 with all weights of the checkpoint, under the configuration of its folder."""
    model, info = model_class_of(config).from_pretrained(
        None, config=config, state_dict=checkpoint.state_dict(), dtype=torch.float32, output_loading_info=True
    )
    if problems := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise ValueError(f"{checkpoint.path} does not fill the model exactly: {problems}.")
    return model


def model_class_of(config: Config) -> Any:
    """Return our model class for a dual encoder, or for an image tower alone."""
    family = family_of(config)
    return getattr(modeling, family.vision_model if is_single_tower(config) else family.model)


def _photograph(processor: DualEncoderProcessor, vision: Any) -> Images:
    """Return a photograph as a processor makes it, for NaFlex with as many patches as `generate_inputs` makes."""
    settings = {"max_num_patches": vision.num_patches} if vision.flexible_size else {}
    with Image.open(PHOTOGRAPH) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a photograph that a small table of positions makes very small
        return processor.image_processor(image, return_tensors="np", **settings)


def _vision_config(config: Config) -> Any:
    """Return the configuration of the image tower, whose fields differ between families."""
    return config if is_single_tower(config) else config.vision_config
