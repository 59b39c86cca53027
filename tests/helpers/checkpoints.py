"""Small checkpoints of every format, layout and container, by the names of what is special about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP,
    TINY_SIGLIP_JSON,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    open_clip_tensors,
    timm_tensors,
    trunk_tensors,
    write_beside,
    write_big_vision,
    write_openai,
    write_transformers,
)
from torch import Tensor

from twinlens.formats import Checkpoint, read_checkpoint, write_tensors

OPENAI: dict[str, dict[str, Any]] = {
    "archive": {"container": "torchscript"},
    "archive-float32": {"container": "torchscript", "half": False},
    "state-dict": {"container": "torch"},
    "state-dict-legacy": {"container": "legacy"},
    "state-dict-safetensors": {"container": "safetensors"},
    "one-layer-each": {"layers": 1, "text_layers": 1},
    "one-patch": {"image_size": 16},
}
BIG_VISION: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2-scanned": {"scan_image": True, "scan_text": True},
    "only-image-scanned": {"scan_image": True},
    "only-text-scanned": {"scan_text": True},
    "scanned-one-layer": {"scan_image": True, "scan_text": True, "layers": 1, "text_layers": 1},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16-scanned-no-head": {"dtype": torch.bfloat16, "scan_text": True, "head": False},
    "old": {"prefix": "", "old_positions": True},
    "old-no-head": {"prefix": "", "old_positions": True, "head": False},
    "no-head": {"head": False},
    "patch-14": {"patch": 14},
    "unequal-widths": {"text_width": 32, "text_heads": 2},
    "long-text": {"text_length": 64},
    "naflex": {"naflex": True, "scan_image": True, "scan_text": True},
    "naflex-bfloat16": {"naflex": True, "dtype": torch.bfloat16, "prefix": "", "head": False},
}


QUICK_JSON: dict[str, Any] = {**TINY_CLIP_JSON, "quick_gelu": True}
TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
TANH_JSON: dict[str, Any] = {
    **TINY_CLIP_JSON, "vision_cfg": {**TINY_CLIP_JSON["vision_cfg"], **TANH, "head_width": 32},
    "text_cfg": {**TINY_CLIP_JSON["text_cfg"], **TANH, "heads": 4},
}  # fmt: skip
# Container, model_cfg of the JSON beside it, what the caller has to say, and what the weights are built from.
OPEN_CLIP: dict[str, tuple[str, dict | None, dict, dict]] = {
    "open_clip": ("safetensors", TINY_CLIP_JSON, {}, {}),
    "open_clip-quick": ("torch", QUICK_JSON, {}, {"custom_text": True}),
    "open_clip-tanh": ("safetensors", TANH_JSON, {}, {"dtype": torch.bfloat16}),
    "open_clip-training": ("torch/state_dict", None, {"vision_activation": "gelu"}, {"prefix": "module."}),
    "open_clip-zero-bias": ("torch", None, {"vision_activation": "quick_gelu"}, {"zero_bias": True}),
    "open_clip-siglip": ("safetensors", TINY_SIGLIP_JSON, TRUNK_OPTIONS, {"trunk": True}),
    "open_clip-siglip-no-head": (
        "torch",
        None,
        {"vision_activation": "gelu", "vision_heads": 4},
        {"trunk": True, "width": 64, "head": False},
    ),
    "open_clip-siglip-training": ("torch/state_dict", None, TRUNK_OPTIONS, {"trunk": True, "prefix": "module."}),
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformers-clip": {"family": "clip"},
    "transformers-siglip": {"family": "siglip"},
    "transformers-naflex": {"family": "siglip2"},
    "transformers-old": {"family": "clip", "old": True},
}
CASES = [*OPENAI, *BIG_VISION, *OPEN_CLIP, "timm", *TRANSFORMERS]


def write(path: Path, case: str) -> dict[str, Tensor]:
    if case in OPENAI:
        return write_openai(path, **{**TINY_CLIP, **OPENAI[case]})
    if case in BIG_VISION:
        return write_big_vision(path, **{**TINY_SIGLIP, **BIG_VISION[case]})
    if case in TRANSFORMERS:
        return write_transformers(path, **TRANSFORMERS[case])
    if case == "timm":
        tower = {name: TINY_TRUNK[name] for name in ("grid", "patch", "width", "layers", "mlp")}
        write_tensors("safetensors", tensors := timm_tensors(**tower), path)
        return tensors
    container, model, _, traits = OPEN_CLIP[case]
    traits = dict(traits)
    build, sizes = (trunk_tensors, TINY_TRUNK) if traits.pop("trunk", False) else (open_clip_tensors, TINY_CLIP)
    tensors = build(**{**sizes, **traits})
    write_beside(path, tensors, container, "open_clip_config.json" if model else "", {"model_cfg": model})
    return tensors


def read(path: Path, case: str) -> Checkpoint:
    options = TRUNK_OPTIONS if case == "timm" else OPEN_CLIP[case][2] if case in OPEN_CLIP else {}
    return read_checkpoint(path, **options)


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].shape == theirs[name].shape, name
        assert ours[name].numpy(force=True).tobytes() == theirs[name].numpy(force=True).tobytes(), name


def bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.view(torch.int16) if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}
