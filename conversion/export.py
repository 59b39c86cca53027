"""Export of a transformers folder as an official file, by the inverses of the rules that converted it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ..configuration import FAMILIES, DualEncoderConfig, TowerConfig, family_of, is_single_tower
from ..formats import (
    LAYOUTS,
    Activation,
    Checkpoint,
    FormatError,
    Layout,
    OpenClipLayout,
    absolute_path,
    differences,
    layout_from_dict,
    read_checkpoint,
    read_json,
    to_official,
    write_tensors,
)
from ..formats.atomic import complete_or_absent
from ..formats.finite import is_finite
from ..formats.layout import LAYOUT_FILE
from ..formats.open_clip_config import CONFIG_FILE
from ..formats.pixels import preprocess_cfg
from ..parity.preprocessing import Choices
from ..processing import DualEncoderProcessor
from ..processing.processor_loading import holds_image_settings

Format = Literal["openai", "big_vision", "open_clip", "transformers"]
ExportDType = Literal["float32", "float16", "bfloat16"]

# Kinds of file by suffix; of PyTorch's three the first that the layout can have is written.
_CONTAINERS = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    **dict.fromkeys((".pt", ".pth", ".bin"), ("torch", "torchscript")),
}


def export(
    folder: str | Path, file: str | Path, *, format: Format, overwrite: bool = False, dtype: ExportDType | None = None
) -> list[Path]:
    """Write the weights of a folder as an official file, for open_clip with its JSON; return the paths written.

    The layout is the one that the folder was converted from, if of this format, else the released one; `dtype`
    overrides its dtypes. The kind of file follows from the suffix of `file`. A file, and a JSON that is not the one of
    this model, are replaced with `overwrite` only, both or none. Raises FormatError where the format cannot express the
    model, FileExistsError without `overwrite`.
    """
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}.")
    if dtype not in (None, *get_args(ExportDType)):
        raise ValueError(f"dtype must be one of {', '.join(get_args(ExportDType))}, got {dtype!r}.")
    folder, file = Path(folder), absolute_path(file)
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    if is_single_tower(config):
        raise FormatError(f"{folder} holds an image tower alone, and {format} files hold both towers.")
    layout = _layout(checkpoint, config, format)
    container = _container(file, layout)
    sidecar_json = _sidecar_json(layout, folder, config)
    # The JSON appears first: alone it does no harm, while weights without it could be misread.
    paths = [file] if sidecar_json is None else [file.with_name(CONFIG_FILE), file]
    _check_destinations(paths, checkpoint, overwrite, sidecar_json)
    weights = to_official(checkpoint.state_dict(), replace(layout, dtypes={"": dtype}) if dtype else layout)
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ValueError(f"{name} has values beyond the range of {tensor.dtype}. Choose bfloat16 or float32.")
    written = [path for path in paths if path == file or not _holds(path, sidecar_json)]
    with complete_or_absent(*written, overwrite=overwrite) as partials:
        write_tensors(container, weights, partials[-1])
        if written != [file]:
            partials[0].write_text(json.dumps(sidecar_json, indent=2) + "\n", encoding="utf-8")
    return paths


def _check_destinations(
    paths: list[Path], checkpoint: Checkpoint, overwrite: bool, sidecar_json: Mapping[str, Any] | None
) -> None:
    for path in paths:
        if path.exists() and not overwrite and path.name != CONFIG_FILE:
            raise FileExistsError(f"{path} exists. Choose another file, or --overwrite to replace it.")
        if path.exists() and not overwrite and not _holds(path, sidecar_json):
            raise FileExistsError(
                f"{path} exists and describes another model, whose weights it belongs to. Choose another folder, or "
                "--overwrite to replace it."
            )
        if path.is_dir() or path in [weights.resolve() for weights in checkpoint.files]:
            raise FileExistsError(f"{path} is a folder, or holds the weights to be exported. Choose another file.")


def _holds(path: Path, sidecar_json: Mapping[str, Any] | None) -> bool:
    """Return whether a JSON file has this content, as after an export of the same model to another file."""
    try:
        return bool(read_json(path) == sidecar_json)
    except (OSError, ValueError):
        return False


def save_layout(layout: Layout, folder: Path, choices: Choices) -> None:
    """Write the layout of its source into a converted folder, for `export`, and the user's choices, for `verify`."""
    content = {**layout.to_dict(), "choices": choices._asdict()}
    (folder / LAYOUT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _layout(checkpoint: Checkpoint, config: DualEncoderConfig, format: Format) -> Layout:
    """Return the layout to write: the folder's own or the released one, if it can express the model."""
    if format not in (*family_of(config).official_formats, "transformers"):
        holders = [name for name, family in FAMILIES.items() if format in family.official_formats]
        raise FormatError(
            f"{format} files hold {' or '.join(holders)} models, and {checkpoint.path} is {config.model_type}."
        )
    saved = read_json(checkpoint.path / LAYOUT_FILE) if checkpoint.path.is_dir() else None
    if saved is not None and saved.get("format") == format:
        layout = layout_from_dict({name: value for name, value in saved.items() if name != "choices"})
    else:
        layout = LAYOUTS[format].from_config(config)
    if isinstance(layout, OpenClipLayout) and not layout.sidecar_json:
        with suppress(FormatError):  # a checkpoint of training has no JSON, and open_clip may have none for it
            layout = layout.with_model_cfg(config)
    if isinstance(layout, OpenClipLayout):
        layout = layout.with_end_of_text(config)
    if faults := differences(config, _config_in_file(layout, config)):
        raise FormatError(f"{format} cannot express {checkpoint.path}: in such a file, {'; '.join(faults)}.")
    return layout


def _config_in_file(layout: Layout, config: DualEncoderConfig) -> DualEncoderConfig | TowerConfig:
    """Return the configuration that readers get from such a file and from options for what it cannot state."""
    vision = config.vision_config
    image_size = None if vision.flexible_size else vision.image_size
    try:
        return layout.config({"image_size": image_size})
    except FormatError:
        return layout.config(
            {
                "image_size": image_size,
                # of both towers, or of the text tower alone where the other is a ResNet
                "vision_activation": cast(Activation, getattr(vision, "hidden_act", config.text_config.hidden_act)),
                "vision_heads": vision.num_attention_heads,
            }
        )


def _container(file: Path, layout: Layout) -> str:
    possible = [kind for kind in _CONTAINERS.get(file.suffix, ()) if kind in layout.containers]
    if not possible:
        suffixes = [suffix for suffix, kinds in _CONTAINERS.items() if {*kinds} & {*layout.containers}]
        raise ValueError(f"A file in {layout.format} format is named *{' or *'.join(suffixes)}, got {file.name}.")
    return layout.container if layout.container.split("/")[0] in possible else possible[0]


def _sidecar_json(layout: Layout, folder: Path, config: DualEncoderConfig) -> dict[str, Any] | None:
    """Return open_clip's JSON with the pixels that the folder makes, None for a format without a JSON."""
    if not isinstance(layout, OpenClipLayout) or not layout.sidecar_json:
        return None
    sidecar_json = dict(layout.sidecar_json)
    if holds_image_settings(folder):
        image_processor = DualEncoderProcessor.from_pretrained(folder).image_processor
        pixels = preprocess_cfg(image_processor.to_dict(), config.vision_config.image_size)
        sidecar_json["preprocess_cfg"] = {**layout.preprocess_cfg, **pixels}
    return sidecar_json
