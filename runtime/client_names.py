"""Names that transformers' own modules have and that client code reads, computed from what these modules have anyway.

They are mixins of properties: nothing is stored, saved or added to a forward pass.
"""

from typing import Any

import torch
from torch import Tensor


class _WidthName:
    @property
    def embed_dim(self: Any) -> int:
        return self.config.hidden_size


class EmbeddingNames(_WidthName):
    """Mixin of the embeddings of images and texts. Those of texts have no sizes of images."""

    @property
    def patch_size(self: Any) -> int:
        return self.config.patch_size

    @property
    def image_size(self: Any) -> int:
        return self.config.image_size

    @property
    def num_patches(self: Any) -> int:
        return self.config.grid_size**2

    @property
    def num_positions(self: Any) -> int:
        return self.position_embedding.num_embeddings

    @property
    def position_ids(self: Any) -> Tensor:
        """The positions (1, num_positions): 0, 1, 2, ..."""
        return torch.arange(self.num_positions, device=self.position_embedding.weight.device)[None]


class AttentionNames(_WidthName):
    """Mixin of attention."""

    @property
    def num_heads(self: Any) -> int:
        return self.config.num_attention_heads

    @property
    def scale(self: Any) -> float:
        """The factor of the products of queries and keys."""
        return self.head_dim**-0.5

    @property
    def dropout(self: Any) -> float:
        return self.config.attention_dropout


class LayerNames:
    """Mixin of one layer of an encoder, of which there are subclasses that differ in their names alone."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        has_own_forward = "forward" in vars(cls)
        super().__init_subclass__(**kwargs)  # transformers wraps `forward` for gradient checkpointing
        if not has_own_forward and "forward" in vars(cls):  # the inherited one is wrapped already
            del cls.forward  # type: ignore[attr-defined]

    @property
    def embed_dim(self: Any) -> int:
        return self.self_attn.embed_dim


class TextTowerNames:
    """Mixin of a text tower."""

    @property
    def eos_token_id(self: Any) -> int | None:
        return self.config.eos_token_id

    @eos_token_id.setter
    def eos_token_id(self: Any, value: int | None) -> None:
        self.config.eos_token_id = value


class DualEncoderNames:
    """Mixin of a dual encoder. SigLIP has no `projection_dim`, as in transformers."""

    @property
    def projection_dim(self: Any) -> int:
        return self.config.projection_dim

    @property
    def text_embed_dim(self: Any) -> int:
        return self.config.text_config.hidden_size

    @property
    def vision_embed_dim(self: Any) -> int:
        return self.config.vision_config.hidden_size


class UnsplitModules:
    """Mixin of models: `_no_split_modules` names only classes of modules that a model has.

    accelerate refuses to wrap a model, and FSDP to shard it, for a name that is not found in it.
    """

    _no_split_modules: Any

    def post_init(self: Any) -> None:
        super().post_init()  # type: ignore[misc]
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in self._no_split_modules or () if name in present]
