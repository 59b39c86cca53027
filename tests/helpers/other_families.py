"""Tiny folders of the dual encoders that only transformers writes, as transformers saves them, with random weights."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from torch import Tensor

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "this",
    "is",
    "red",
    "green",
    "blue",
    "yellow",
    "star",
    "circle",
    "square",
    "triangle",
    "big",
    "small",
    ".",
    "left",
    "right",
    "above",
]
_LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
_IMAGES: dict[str, Any] = {**_LAYERS, "image_size": 16, "patch_size": 8}
_TEXTS: dict[str, Any] = {**_LAYERS, "vocab_size": 40, "max_position_embeddings": 24}
_EFFICIENT_NET: dict[str, Any] = {
    "image_size": 32, "hidden_dim": 64, "width_coefficient": 0.5, "depth_coefficient": 0.3, "in_channels": [32, 16],
    "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2], "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
}  # fmt: skip


class Other(NamedTuple):
    """A family: its classes in transformers, the configuration of a tiny model, and what reads its texts."""

    model: type[transformers.PreTrainedModel]
    config: transformers.PreTrainedConfig
    tokenizer: str


def dino() -> transformers.Dinov2Model:
    torch.manual_seed(0)
    settings = {name: value for name, value in _IMAGES.items() if name != "intermediate_size"}
    return _with_random_weights(transformers.Dinov2Model(transformers.Dinov2Config(**settings)))


def bert(**settings: Any) -> transformers.BertModel:
    torch.manual_seed(0)
    return _with_random_weights(transformers.BertModel(transformers.BertConfig(**{**_TEXTS, **settings})))


def other_families() -> dict[str, Other]:
    t = transformers
    xlm_ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    two_towers = t.VisionTextDualEncoderConfig.from_vision_text_configs(dino().config, bert().config, projection_dim=8)
    return {
        "align": Other(
            t.AlignModel,
            t.AlignConfig(
                text_config={**_TEXTS, "max_position_embeddings": 70}, vision_config=_EFFICIENT_NET, projection_dim=16
            ),
            "bert",
        ),
        "altclip": Other(
            t.AltCLIPModel,
            t.AltCLIPConfig(
                text_config={**_TEXTS, **xlm_ids, "project_dim": 12}, vision_config=_IMAGES, projection_dim=8
            ),
            "xlm",
        ),
        "chinese_clip": Other(
            t.ChineseCLIPModel,
            t.ChineseCLIPConfig(text_config=_TEXTS, vision_config=_IMAGES, projection_dim=8),
            "bert",
        ),
        "metaclip_2": Other(
            t.MetaClip2Model,
            t.MetaClip2Config(text_config={**_TEXTS, **xlm_ids}, vision_config=_IMAGES, projection_dim=8),
            "xlm",
        ),
        "vision-text-dual-encoder": Other(t.VisionTextDualEncoderModel, two_towers, "bert"),
    }


def build_tokenizer(kind: str) -> transformers.PreTrainedTokenizerBase:
    if kind == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(special + WORDS)})
    pieces = [*["<s>", "<pad>", "</s>", "<unk>"], *(f"▁{word}" for word in WORDS), "<mask>"]
    return transformers.XLMRobertaTokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])


def build_image_processor(family: str, size: int) -> transformers.BaseImageProcessor:
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it would warn that there is no torchvision
    square = {"height": size, "width": size}
    if family == "align":
        return transformers.EfficientNetImageProcessor(size=square)
    if family == "vision-text-dual-encoder":
        return transformers.ViTImageProcessor(size=square)
    kind = transformers.ChineseCLIPImageProcessor if family == "chinese_clip" else transformers.CLIPImageProcessor
    return kind(size={"shortest_edge": size}, crop_size=square)


def build_processor(family: str) -> transformers.ProcessorMixin:
    names = {
        "align": "AlignProcessor",
        "altclip": "AltCLIPProcessor",
        "chinese_clip": "ChineseCLIPProcessor",
        "metaclip_2": "CLIPProcessor",
        "vision-text-dual-encoder": "VisionTextDualEncoderProcessor",
    }
    other = other_families()[family]
    image_processor = build_image_processor(family, other.config.vision_config.image_size)
    return getattr(transformers, names[family])(image_processor, build_tokenizer(other.tokenizer))


def write_folder(family: str, folder: Path) -> transformers.PreTrainedModel:
    """Write a model and its processor as transformers does, and return the model."""
    other = other_families()[family]
    model = _with_random_weights(other.model(other.config))
    model.save_pretrained(folder)
    build_processor(family).save_pretrained(folder)
    return model


def draw_images(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    return [
        Image.fromarray(torch.randint(256, (20 + number, 30, 3), generator=generator, dtype=torch.uint8).numpy())
        for number in range(count)
    ]


def _with_random_weights(model: Any) -> Any:
    """Move all weights from their first values, which zeros and ones would hide: row 0, of the padding, stays."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise: Tensor = 0.1 * torch.randn(parameter.shape, generator=generator)
            if name.endswith("word_embeddings.weight"):
                noise[:2] = 0
            parameter.add_(noise)
    return model.eval()
