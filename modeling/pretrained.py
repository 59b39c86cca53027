"""What all models share: initialisation, attention kernels, and loading from folders or official files."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..formats import is_checkpoint_file, read_checkpoint
from .attention import Attention
from .encoder import EncoderLayer
from .initialization import initialize


class EncoderPreTrainedModel(PreTrainedModel):
    """The base of towers, heads and dual encoders."""

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionEmbeddings", "TextEmbeddings", "EncoderLayer", "AttentionPoolingHead"]
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if not isinstance(config, self.config_class) and isinstance(config, PreTrainedConfig):
            # transformers' own configuration of the same model, e.g. inside a vision-language model.
            if config.model_type != self.config_class.model_type:
                raise TypeError(
                    f"{type(self).__name__} takes a {self.config_class.__name__}, got a {type(config).__name__}."
                )
            config = self.config_class.from_dict(config.to_dict())
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)

    @classmethod
    def family(cls, config: PreTrainedConfig) -> "type[EncoderPreTrainedModel]":
        """The class that loads a checkpoint with this configuration: this one, or an error."""
        if not isinstance(config, cls.config_class) and not hasattr(config, cls.config_class.base_config_key):
            raise ValueError(f"{cls.__name__} cannot load a {config.model_type!r} checkpoint; DualEncoderModel can.")
        return cls

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from a Hub id or a folder; also from an official checkpoint file, in float32."""
        source = pretrained_model_name_or_path
        if source is None or not is_checkpoint_file(source):
            return super().from_pretrained(source, *args, **kwargs)
        checkpoint = read_checkpoint(source)
        model_class = cls.family(checkpoint.config)
        tower = model_class.config_class.base_config_key
        kwargs.setdefault("config", getattr(checkpoint.config, tower) if tower else checkpoint.config)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        return model_class.from_pretrained(None, *args, state_dict=checkpoint.state_dict(), **kwargs)
