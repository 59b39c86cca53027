"""SigLIP's image tower in timm (huggingface/pytorch-image-models, timm/models/vision_transformer.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor

from ..configuration import SiglipVisionConfig
from .families import siglip_vision_config, tower
from .layout import Activation, Choices, Layout, decide, number_of_layers, read_json
from .table import CONCATENATE, SPLIT, SQUEEZE, Row, expand, expand_layers, row

BLOCK = (
    row("norm1.weight", "layer_norm1.weight", ".width"),
    row("norm1.bias", "layer_norm1.bias", ".width"),
    row(
        "attn.qkv.weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "3*.width .width",
        SPLIT,
    ),
    row("attn.qkv.bias", "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias", "3*.width", SPLIT),
    row("attn.proj.weight", "self_attn.out_proj.weight", ".width .width"),
    row("attn.proj.bias", "self_attn.out_proj.bias", ".width"),
    row("norm2.weight", "layer_norm2.weight", ".width"),
    row("norm2.bias", "layer_norm2.bias", ".width"),
    row("mlp.fc1.weight", "mlp.fc1.weight", ".mlp .width"),
    row("mlp.fc1.bias", "mlp.fc1.bias", ".mlp"),
    row("mlp.fc2.weight", "mlp.fc2.weight", ".width .mlp"),
    row("mlp.fc2.bias", "mlp.fc2.bias", ".width"),
)
VISION = (
    row("patch_embed.proj.weight", "embeddings.patch_embedding.weight", ".width 3 .patch .patch"),
    row("patch_embed.proj.bias", "embeddings.patch_embedding.bias", ".width"),
    row("pos_embed", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE),
    row("norm.weight", "post_layernorm.weight", ".width"),
    row("norm.bias", "post_layernorm.bias", ".width"),
    row("attn_pool.latent", "head.probe", "1 1 .width"),
    row(
        "attn_pool.q.weight attn_pool.kv.weight",
        "head.attention.in_proj_weight",
        ".width .width | 2*.width .width",
        CONCATENATE,
    ),
    row("attn_pool.q.bias attn_pool.kv.bias", "head.attention.in_proj_bias", ".width | 2*.width", CONCATENATE),
    row("attn_pool.proj.weight", "head.attention.out_proj.weight", ".width .width"),
    row("attn_pool.proj.bias", "head.attention.out_proj.bias", ".width"),
    row("attn_pool.norm.weight", "head.layernorm.weight", ".width"),
    row("attn_pool.norm.bias", "head.layernorm.bias", ".width"),
    row("attn_pool.mlp.fc1.weight", "head.mlp.fc1.weight", ".mlp .width"),
    row("attn_pool.mlp.fc1.bias", "head.mlp.fc1.bias", ".mlp"),
    row("attn_pool.mlp.fc2.weight", "head.mlp.fc2.weight", ".width .mlp"),
    row("attn_pool.mlp.fc2.bias", "head.mlp.fc2.bias", ".width"),
)


class Trunk(NamedTuple):
    """What timm's name of a model means."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    image_size: int
    hidden_act: Activation


_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# All were trained with tanh; the names that timm gave before it knew compute exact GELU.
_NAMES: dict[Activation, str] = {
    "gelu": "base_16_224 base_16_256 base_16_384 base_16_512 large_16_256 large_16_384 "
    "so400m_14_224 so400m_14_378 so400m_14_384",
    "gelu_pytorch_tanh": "base_32_256 large_16_512 so400m_16_256 so400m_16_384 so400m_16_512 "
    "giantopt_16_256 giantopt_16_384",
}
TRUNKS = {
    f"vit_{size}_patch{patch}_siglip_{pixels}": Trunk(*_SIZES[size], int(patch), int(pixels), activation)
    for activation, names in _NAMES.items()
    for size, patch, pixels in (name.split("_") for name in names.split())
}


def tower_rows(layers: int, source: str, target: str) -> list[Row]:
    """The rows of the tower, whose names begin with `source`."""
    blocks = expand_layers(BLOCK, "vision", layers, f"{source}blocks.{{n}}.", f"{target}encoder.layers.{{n}}.")
    return [*expand(VISION, "vision", source, target), *blocks]


def tower_config(sizes: Mapping[str, int], layers: int, name: str | None, choices: Choices) -> SiglipVisionConfig:
    """Geometry from the shapes; heads and activation from timm's `name`, or else from the caller."""
    trunk = TRUNKS.get(name or "")
    model = f"a timm model named {name}" if name else "a timm model without its name"
    activation = decide(
        "vision-activation", choices.vision_activation, trunk and trunk.hidden_act, f"the activation of {model}"
    )
    heads = decide(
        "vision-heads", choices.vision_heads, trunk and trunk.num_attention_heads, f"the number of heads of {model}"
    )
    fields = tower(sizes, "vision", layers, heads=heads, activation=activation, eps=1e-6)
    return siglip_vision_config(sizes, fields, choices.image_size or (trunk and trunk.image_size))


@dataclass(frozen=True, kw_only=True)
class TimmLayout(Layout):
    """The image tower alone; `config.json` of a timm folder names its architecture."""

    format: ClassVar[str] = "timm"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch")

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor], folder: Path) -> "TimmLayout | None":
        if "attn_pool.latent" not in tensors:
            return None
        return cls(
            container=container,
            image_layers=number_of_layers(tensors, r"blocks\.(\d+)\."),
            text_layers=0,
            beside=read_json(folder / "config.json", {}),
        )

    def table(self) -> list[Row]:
        return tower_rows(self.image_layers, "", "")

    def config(self, choices: Choices) -> SiglipVisionConfig:
        return tower_config(self.sizes, self.image_layers, self.beside.get("architecture"), choices)
