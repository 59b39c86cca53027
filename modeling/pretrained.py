"""What all models share: the framework's switches, and first weights."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import Attention
from .encoder import EncoderLayer
from .initialization import initialize
from .loading import LoadsOfficialFiles

OLD_TABLES = [r"(^|\.)position_ids$"]  # of 0, 1, 2, ... in old folders
Options = Unpack[TransformersKwargs]  # what every forward takes, told in the way that the framework looks for


class EncoderPreTrainedModel(LoadsOfficialFiles, PreTrainedModel):
    """The base of towers, heads and dual encoders."""

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionEmbeddings", "TextEmbeddings", "EncoderLayer", "AttentionPoolingHead"]
    _input_embed_layer = "token_embedding"
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}
    _keys_to_ignore_on_load_unexpected = OLD_TABLES

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if not isinstance(config, own := self.config_class):
            # transformers' own configuration of the same model will do, e.g. inside a vision-language model.
            if getattr(config, "model_type", None) != own.model_type:
                raise TypeError(f"{type(self).__name__} takes a {own.__name__}, got a {type(config).__name__}.")
            config = own.from_dict(config.to_dict())
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)
