"""SigLIP and SigLIP 2 (google-research/big_vision): rules and geometry.

Sources: models/vit.py and models/proj/image_text/{two_towers,text_transformer,naflex_vit}.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..configuration import DualEncoderConfig, SiglipConfig
from .errors import FormatError
from .geometry import siglip2_vision_config, siglip_config, siglip_vision_config, sizes_of, tower_fields
from .layout import Layout, number_of_layers
from .operations import ADD, FLATTEN, GRID, IDENTITY_HEAD, KERNEL, OUT_KERNEL, PATCHES, SQUEEZE, join
from .options import LoadOptions, resolve_option
from .table import Rule, expand, expand_layers, rule

ATTENTION = "MultiHeadDotProductAttention_0"
BLOCK = (
    rule("LayerNorm_0/scale", "layer_norm1.weight", ".width"),
    rule("LayerNorm_0/bias", "layer_norm1.bias", ".width"),
    rule(f"{ATTENTION}/query/kernel", "self_attn.q_proj.weight", ".width .heads .head_dim", KERNEL),
    rule(f"{ATTENTION}/query/bias", "self_attn.q_proj.bias", ".heads .head_dim", FLATTEN),
    rule(f"{ATTENTION}/key/kernel", "self_attn.k_proj.weight", ".width .heads .head_dim", KERNEL),
    rule(f"{ATTENTION}/key/bias", "self_attn.k_proj.bias", ".heads .head_dim", FLATTEN),
    rule(f"{ATTENTION}/value/kernel", "self_attn.v_proj.weight", ".width .heads .head_dim", KERNEL),
    rule(f"{ATTENTION}/value/bias", "self_attn.v_proj.bias", ".heads .head_dim", FLATTEN),
    rule(f"{ATTENTION}/out/kernel", "self_attn.out_proj.weight", ".heads .head_dim .width", OUT_KERNEL),
    rule(f"{ATTENTION}/out/bias", "self_attn.out_proj.bias", ".width"),
    rule("LayerNorm_1/scale", "layer_norm2.weight", ".width"),
    rule("LayerNorm_1/bias", "layer_norm2.bias", ".width"),
    rule("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", ".width .mlp", KERNEL),
    rule("MlpBlock_0/Dense_0/bias", "mlp.fc1.bias", ".mlp"),
    rule("MlpBlock_0/Dense_1/kernel", "mlp.fc2.weight", ".mlp .width", KERNEL),
    rule("MlpBlock_0/Dense_1/bias", "mlp.fc2.bias", ".width"),
)
PATCH_EMBEDDING = (
    rule("embedding/kernel", "embeddings.patch_embedding.weight", ".patch .patch 3 .width", PATCHES),
    rule("embedding/bias", "embeddings.patch_embedding.bias", ".width"),
)
IMAGE_POSITIONS = rule("pos_embedding", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE)
OLD_IMAGE_POSITIONS = IMAGE_POSITIONS._replace(sources=("Transformer/pos_embedding",))
# NaFlex: patches come ready-made, each as its values in the order (row, column, channel), which transformers has too.
NAFLEX_EMBEDDING = (
    rule("embedding/kernel", "embeddings.patch_embedding.weight", ".patch_values .width", KERNEL),
    rule("embedding/bias", "embeddings.patch_embedding.bias", ".width"),
    rule("pos_embedding", "embeddings.position_embedding.weight", ".grid .grid .width", GRID),
)
QUERY_KEY_VALUE = " ".join(f"MAPHead_0/{ATTENTION}/{part}/{{0}}" for part in ("query", "key", "value"))
IMAGE_POOLING = (
    rule("Transformer/encoder_norm/scale", "post_layernorm.weight", ".width"),
    rule("Transformer/encoder_norm/bias", "post_layernorm.bias", ".width"),
    rule("MAPHead_0/probe", "head.probe", "1 1 .width"),
    rule(QUERY_KEY_VALUE.format("kernel"), "head.attention.in_proj_weight", ".width .heads .head_dim", join(KERNEL)),
    rule(QUERY_KEY_VALUE.format("bias"), "head.attention.in_proj_bias", ".heads .head_dim", join(FLATTEN)),
    rule(f"MAPHead_0/{ATTENTION}/out/kernel", "head.attention.out_proj.weight", ".heads .head_dim .width", OUT_KERNEL),
    rule(f"MAPHead_0/{ATTENTION}/out/bias", "head.attention.out_proj.bias", ".width"),
    rule("MAPHead_0/LayerNorm_0/scale", "head.layernorm.weight", ".width"),
    rule("MAPHead_0/LayerNorm_0/bias", "head.layernorm.bias", ".width"),
    rule("MAPHead_0/MlpBlock_0/Dense_0/kernel", "head.mlp.fc1.weight", ".width .mlp", KERNEL),
    rule("MAPHead_0/MlpBlock_0/Dense_0/bias", "head.mlp.fc1.bias", ".mlp"),
    rule("MAPHead_0/MlpBlock_0/Dense_1/kernel", "head.mlp.fc2.weight", ".mlp .width", KERNEL),
    rule("MAPHead_0/MlpBlock_0/Dense_1/bias", "head.mlp.fc2.bias", ".width"),
)
TOKENS = rule("Embed_0/embedding", "embeddings.token_embedding.weight", ".vocabulary .width")
TEXT_POSITIONS = rule("pos_embedding", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE)
# Old text towers added a second table in the encoder by mistake; `text_transformer.load` merges the two as well.
TEXT_POSITIONS_TWICE = rule(
    "pos_embedding Encoder_0/pos_embedding", "embeddings.position_embedding.weight", "1 .positions .width", ADD
)
TEXT_NORM = (
    rule("Encoder_0/encoder_norm/scale", "final_layer_norm.weight", ".width"),
    rule("Encoder_0/encoder_norm/bias", "final_layer_norm.bias", ".width"),
)
HEAD = (rule("head/kernel", "head.weight", ".width embed", KERNEL), rule("head/bias", "head.bias", "embed"))
# A tower without a head: see `operations.IDENTITY_HEAD`.
TEXT_NORM_WITHOUT_HEAD = rule(
    "Encoder_0/encoder_norm/scale Encoder_0/encoder_norm/bias",
    "final_layer_norm.weight final_layer_norm.bias head.weight head.bias",
    ".width",
    IDENTITY_HEAD,
)
# The other two-tower models of big_vision pool and compare in other ways. SigLIP has all of these parameters ...
REQUIRED_NAMES = {
    "img/MAPHead_0/": "attention pooling of images (img/MAPHead_0)",
    "txt/": "text tower (txt)",
    "t$": "temperature (t)",
    "b$": "bias of the sigmoid loss (b)",
}
# ... and none of these.
FORBIDDEN_NAMES = {
    "img/cls$": "a class token (img/cls)",
    "img/head/": "an image projection (img/head)",
    "txt/MAPHead_0/": "attention pooling of texts (txt/MAPHead_0)",
}
LOGITS = (rule("t", "logit_scale", "1"), rule("b", "logit_bias", "1"))


@dataclass(frozen=True, kw_only=True)
class BigVisionLayout(Layout):
    """The layouts that released files of SigLIP and SigLIP 2 have, in every combination of their traits."""

    format: ClassVar[str] = "big_vision"
    containers: ClassVar[tuple[str, ...]] = ("npz",)

    image_scanned: bool  # all layers are in one array, on a leading axis
    text_scanned: bool
    old_image_positions: bool  # the image position table is under `img/Transformer/`
    text_positions_twice: bool  # two text position tables, which the model adds
    text_head: bool
    naflex: bool = False  # images of any grid, as ready-made patches

    @classmethod
    def detect(
        cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path
    ) -> "BigVisionLayout | None":
        if not any(name.startswith(("img/", "txt/")) for name in tensors):
            return None
        _refuse_other_models(tensors)
        image, text = "img/Transformer/encoderblock", "txt/Encoder_0/encoderblock"
        image_stack, text_stack = _stacked_layers(tensors, f"{image}/"), _stacked_layers(tensors, f"{text}/")
        return cls(
            container=container,
            prefix=prefix,
            image_layers=image_stack or number_of_layers(tensors, rf"{image}_(\d+)/"),
            text_layers=text_stack or number_of_layers(tensors, rf"{text}_(\d+)/"),
            image_scanned=image_stack > 0,
            text_scanned=text_stack > 0,
            old_image_positions="img/Transformer/pos_embedding" in tensors and "img/pos_embedding" not in tensors,
            text_positions_twice="txt/Encoder_0/pos_embedding" in tensors,
            text_head=any(name.startswith("txt/head/") for name in tensors),
            naflex="img/embedding/kernel" in tensors and tensors["img/embedding/kernel"].ndim == 2,
        )

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> "BigVisionLayout":
        """Return the layout of a model with this configuration, as SigLIP was released."""
        return cls(
            container="npz",
            prefix="params/",
            image_layers=config.vision_config.num_hidden_layers,
            text_layers=config.text_config.num_hidden_layers,
            sizes=sizes_of(config),
            image_scanned=False,
            text_scanned=False,
            old_image_positions=False,
            text_positions_twice=False,
            text_head=True,
            naflex=config.vision_config.flexible_size,
        )

    def own_rules(self) -> list[Rule]:
        image, text = "img/", "txt/"
        image_block = f"{image}Transformer/encoderblock{'' if self.image_scanned else '_{n}'}/"
        text_block = f"{text}Encoder_0/encoderblock{'' if self.text_scanned else '_{n}'}/"
        image_positions = OLD_IMAGE_POSITIONS if self.old_image_positions else IMAGE_POSITIONS
        image_embedding = NAFLEX_EMBEDDING if self.naflex else (*PATCH_EMBEDDING, image_positions)
        text_positions = TEXT_POSITIONS_TWICE if self.text_positions_twice else TEXT_POSITIONS
        text_head = (*TEXT_NORM, *HEAD) if self.text_head else (TEXT_NORM_WITHOUT_HEAD,)
        return [
            *expand((*image_embedding, *IMAGE_POOLING), "vision", image, "vision_model."),
            *expand_layers(BLOCK, "vision", self.image_layers, image_block, "vision_model.encoder.layers.{n}."),
            *expand((TOKENS, text_positions, *text_head), "text", text, "text_model."),
            *expand_layers(BLOCK, "text", self.text_layers, text_block, "text_model.encoder.layers.{n}."),
            *LOGITS,
        ]

    def config(self, options: LoadOptions) -> SiglipConfig:
        """Return the configuration: geometry from the shapes, and the activation of every SigLIP of big_vision."""
        chosen = options.get("vision_activation")
        activation = resolve_option("vision_activation", chosen, "gelu_pytorch_tanh", "the activation")
        resolve_option("vision_heads", options.get("vision_heads"), self.sizes["vision.heads"], "the number of heads")
        towers = []
        for name, layers in (("vision", self.image_layers), ("text", self.text_layers)):
            width, heads, head_dim = (self.sizes[f"{name}.{size}"] for size in ("width", "heads", "head_dim"))
            if heads * head_dim != width:
                raise FormatError(
                    f"the {name} tower has {heads} heads of {head_dim}, expected them to fill its width {width}."
                )
            towers.append(tower_fields(self.sizes, name, layers, heads=heads, activation=activation, eps=1e-6))
        vision_config = siglip2_vision_config if self.naflex else siglip_vision_config
        vision = vision_config(self.sizes, towers[0], options.get("image_size"))
        return siglip_config(self.sizes, vision, towers[1], scanned=self.text_scanned)


def _refuse_other_models(tensors: Mapping[str, Tensor]) -> None:
    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    faults = [f"no {what}" for pattern, what in REQUIRED_NAMES.items() if not has(pattern)]
    faults += [what for pattern, what in FORBIDDEN_NAMES.items() if has(pattern)]
    if faults:
        raise FormatError(f"expected a SigLIP of big_vision, but this model has {', '.join(faults)}.")


def _stacked_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return next((tensor.shape[0] for name, tensor in tensors.items() if name.startswith(prefix) and tensor.ndim), 0)
