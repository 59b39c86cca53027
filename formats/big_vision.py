"""SigLIP and the fixed-size SigLIP 2 of google-research/big_vision (models/vit.py, two_towers.py): rows and geometry."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..configuration import SiglipConfig
from .geometry import image_side, number_of_layers
from .table import (
    ADD,
    FLATTEN,
    IDENTITY_HEAD,
    KERNEL,
    OUT_KERNEL,
    PATCHES,
    SQUEEZE,
    FormatError,
    Row,
    expand,
    expand_layers,
    join,
    row,
)

ATTENTION = "MultiHeadDotProductAttention_0"
BLOCK = (
    row("LayerNorm_0/scale", "layer_norm1.weight", ".width"),
    row("LayerNorm_0/bias", "layer_norm1.bias", ".width"),
    row(f"{ATTENTION}/query/kernel", "self_attn.q_proj.weight", ".width .heads .head_dim", KERNEL),
    row(f"{ATTENTION}/query/bias", "self_attn.q_proj.bias", ".heads .head_dim", FLATTEN),
    row(f"{ATTENTION}/key/kernel", "self_attn.k_proj.weight", ".width .heads .head_dim", KERNEL),
    row(f"{ATTENTION}/key/bias", "self_attn.k_proj.bias", ".heads .head_dim", FLATTEN),
    row(f"{ATTENTION}/value/kernel", "self_attn.v_proj.weight", ".width .heads .head_dim", KERNEL),
    row(f"{ATTENTION}/value/bias", "self_attn.v_proj.bias", ".heads .head_dim", FLATTEN),
    row(f"{ATTENTION}/out/kernel", "self_attn.out_proj.weight", ".heads .head_dim .width", OUT_KERNEL),
    row(f"{ATTENTION}/out/bias", "self_attn.out_proj.bias", ".width"),
    row("LayerNorm_1/scale", "layer_norm2.weight", ".width"),
    row("LayerNorm_1/bias", "layer_norm2.bias", ".width"),
    row("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", ".width .mlp", KERNEL),
    row("MlpBlock_0/Dense_0/bias", "mlp.fc1.bias", ".mlp"),
    row("MlpBlock_0/Dense_1/kernel", "mlp.fc2.weight", ".mlp .width", KERNEL),
    row("MlpBlock_0/Dense_1/bias", "mlp.fc2.bias", ".width"),
)
PATCH_EMBEDDING = (
    row("embedding/kernel", "embeddings.patch_embedding.weight", ".patch .patch 3 .width", PATCHES),
    row("embedding/bias", "embeddings.patch_embedding.bias", ".width"),
)
IMAGE_POSITIONS = row("pos_embedding", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE)
IMAGE_POSITIONS_BEFORE_2022 = IMAGE_POSITIONS._replace(sources=("Transformer/pos_embedding",))
IMAGE_POOLING = (
    row("Transformer/encoder_norm/scale", "post_layernorm.weight", ".width"),
    row("Transformer/encoder_norm/bias", "post_layernorm.bias", ".width"),
    row("MAPHead_0/probe", "head.probe", "1 1 .width"),
    row(
        " ".join(f"MAPHead_0/{ATTENTION}/{part}/kernel" for part in ("query", "key", "value")),
        "head.attention.in_proj_weight",
        ".width .heads .head_dim",
        join(KERNEL),
    ),
    row(
        " ".join(f"MAPHead_0/{ATTENTION}/{part}/bias" for part in ("query", "key", "value")),
        "head.attention.in_proj_bias",
        ".heads .head_dim",
        join(FLATTEN),
    ),
    row(f"MAPHead_0/{ATTENTION}/out/kernel", "head.attention.out_proj.weight", ".heads .head_dim .width", OUT_KERNEL),
    row(f"MAPHead_0/{ATTENTION}/out/bias", "head.attention.out_proj.bias", ".width"),
    row("MAPHead_0/LayerNorm_0/scale", "head.layernorm.weight", ".width"),
    row("MAPHead_0/LayerNorm_0/bias", "head.layernorm.bias", ".width"),
    row("MAPHead_0/MlpBlock_0/Dense_0/kernel", "head.mlp.fc1.weight", ".width .mlp", KERNEL),
    row("MAPHead_0/MlpBlock_0/Dense_0/bias", "head.mlp.fc1.bias", ".mlp"),
    row("MAPHead_0/MlpBlock_0/Dense_1/kernel", "head.mlp.fc2.weight", ".mlp .width", KERNEL),
    row("MAPHead_0/MlpBlock_0/Dense_1/bias", "head.mlp.fc2.bias", ".width"),
)
TOKENS = row("Embed_0/embedding", "embeddings.token_embedding.weight", ".vocabulary .width")
TEXT_POSITIONS = row("pos_embedding", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE)
# Old text towers added a second table in the encoder; `text_transformer.load` merges the two as well.
TEXT_POSITIONS_TWICE = TEXT_POSITIONS._replace(sources=("pos_embedding", "Encoder_0/pos_embedding"), operation=join(SQUEEZE))
