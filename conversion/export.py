"""The way back: from a transformers folder to an official file, by the inverses of the same tables."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image
from safetensors import SafetensorError

from ..configuration import FAMILIES, family_of
from ..formats import (
    BigVisionLayout,
    Checkpoint,
    Choices,
    FormatError,
    Layout,
    OpenAILayout,
    OpenClipLayout,
    TransformersLayout,
    differences,
    layout_from_dict,
    read_checkpoint,
    read_json,
    to_official,
    write_tensors,
)
from ..formats.table import is_finite

Format = Literal["openai", "big_vision", "open_clip", "transformers"]
ExportDType = Literal["float32", "float16", "bfloat16"]

LAYOUT_FILE = "official_layout.json"
_LAYOUTS: dict[str, type[Any]] = {
    layout.format: layout for layout in (OpenAILayout, BigVisionLayout, OpenClipLayout, TransformersLayout)
}
_CONTAINERS = {  # by suffix; PyTorch's have three kinds, of which the first that the layout knows is written
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    **dict.fromkeys((".pt", ".pth", ".bin"), ("torch", "torchscript", "torch/state_dict")),
}


def export(
    folder: str | Path, file: str | Path, *, format: Format, overwrite: bool = False, dtype: ExportDType | None = None
) -> list[Path]:
    """Write the weights of a folder as an official file, and open_clip's JSON beside it; return what was written.

    The layout is the one that the folder was converted from, if of this format, else the released one; `dtype`
    overrides its dtypes. The container follows from the suffix of `file`. Raises FormatError where the format cannot
    express the model, FileExistsError without `overwrite`.
    """
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}.")
    if dtype not in (None, *get_args(ExportDType)):
        raise ValueError(f"dtype must be one of {', '.join(get_args(ExportDType))}, got {dtype!r}.")
    folder, file = Path(folder), Path(file).expanduser().resolve()
    checkpoint = read_checkpoint(folder)
    layout = _layout(checkpoint, format)
    container = _container(file, layout)
    contents: dict[Path, dict[str, Any] | None] = {file: None}
    if layout.beside and format == "open_clip":
        # First into its place: alone it does no harm, while weights without it could be misread.
        contents = {file.with_name("open_clip_config.json"): _with_preprocessing(layout.beside, folder), file: None}
    for path in contents:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists. Choose another file, or --overwrite to replace it.")
        if path.is_dir() or path in [weights.resolve() for weights in checkpoint.files]:
            raise FileExistsError(f"{path} is a folder, or holds the weights to be exported. Choose another file.")

    weights = to_official(checkpoint.state_dict(), replace(layout, dtypes={"": dtype}) if dtype else layout)
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ValueError(f"{name} has values beyond the range of {tensor.dtype}. Choose bfloat16 or float32.")
    partials = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial") for path in contents}
    try:
        for path, partial in partials.items():
            partial.touch()
            mode = partial.stat().st_mode  # safetensors lets nobody but the owner read
            if (content := contents[path]) is None:
                write_tensors(container, weights, partial)
            else:
                partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            partial.chmod(mode)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
        for path, partial in partials.items():
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Writing {file} failed: {error}") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return list(contents)


def save_layout(layout: Layout, folder: Path) -> None:
    """Have a converted folder remember what it was converted from."""
    (folder / LAYOUT_FILE).write_text(json.dumps(layout.to_dict(), indent=1) + "\n", encoding="utf-8")


def _layout(checkpoint: Checkpoint, format: Format) -> Layout:
    """The layout to write: what the folder remembers or what was released, if it can express the model."""
    config = checkpoint.config
    if format not in (*family_of(config).official_formats, "transformers"):
        holders = [name for name, family in FAMILIES.items() if format in family.official_formats]
        raise FormatError(
            f"{format} files hold {' or '.join(holders)} models, and {checkpoint.path} is {config.model_type}."
        )
    remembered = read_json(checkpoint.path / LAYOUT_FILE) if checkpoint.path.is_dir() else None
    if remembered is not None and remembered.get("format") == format:
        layout = layout_from_dict(remembered)
    else:
        layout = _LAYOUTS[format].of_config(config)
    if isinstance(layout, OpenClipLayout) and not layout.beside:
        with suppress(FormatError):  # what a checkpoint of training did without may still be all there is
            layout = layout.described(config)
    if faults := differences(config, _expressed(layout, config.vision_config)):
        raise FormatError(f"{format} cannot express {checkpoint.path}: in such a file, {'; '.join(faults)}.")
    return layout


def _expressed(layout: Layout, vision: Any) -> Any:
    """The configuration of whoever reads such a file; what it does not say, they have to be told."""
    try:
        return layout.config(Choices(vision.image_size))
    except FormatError:
        return layout.config(Choices(vision.image_size, vision.hidden_act, vision.num_attention_heads))


def _container(file: Path, layout: Layout) -> str:
    possible = [kind for kind in _CONTAINERS.get(file.suffix, ()) if kind in layout.containers]
    if not possible:
        suffixes = [suffix for suffix, kinds in _CONTAINERS.items() if {*kinds} & {*layout.containers}]
        raise ValueError(f"A file in {layout.format} format is named *{' or *'.join(suffixes)}, got {file.name}.")
    return layout.container if layout.container in possible else possible[0]


def _with_preprocessing(beside: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """open_clip's JSON, with what the folder says about images where it says nothing itself."""
    images = read_json(folder / "preprocessor_config.json")
    if images is None or "preprocess_cfg" in beside:
        return dict(beside)
    return {
        **beside,
        "preprocess_cfg": {
            "mean": images["image_mean"],
            "std": images["image_std"],
            "interpolation": Image.Resampling(images["resample"]).name.lower(),
            "resize_mode": "shortest" if images.get("do_center_crop") else "squash",
        },
    }
