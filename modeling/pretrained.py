"""The base of all models: transformers' switches, its decorators with types, and first weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, generic, output_capturing

from ..formats.transformers_folder import POSITION_IDS_BUFFERS
from .attention import Attention
from .encoder import EncoderLayer
from .initialization import initialize
from .loading import LoadsOfficialFiles
from .pickling import PickledWithoutHooks

if TYPE_CHECKING:
    from typing_extensions import Self

    ModelKwargs: TypeAlias = Any
else:  # transformers' common tests expect this of every forward, although it names only some of the keywords
    ModelKwargs = Unpack[TransformersKwargs]
Method = TypeVar("Method", bound=Callable[..., Any])


def typed(decorator: Any) -> Callable[[Method], Method]:
    """Declare that an untyped decorator of transformers keeps the type of the method under it."""
    return decorator


can_return_tuple = typed(generic.can_return_tuple)  # a tuple for `return_dict=False`
capture_outputs = typed(output_capturing.capture_outputs(tie_last_hidden_states=False))  # hidden states, attention maps


class EncoderPreTrainedModel(LoadsOfficialFiles, PickledWithoutHooks, PreTrainedModel):
    """The base of towers, heads and dual encoders."""

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionEmbeddings", "TextEmbeddings", "EncoderLayer", "AttentionPoolingHead"]
    _input_embed_layer = "token_embedding"
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}
    _keys_to_ignore_on_load_unexpected = {POSITION_IDS_BUFFERS}

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        # transformers' own configuration of the same model is accepted, e.g. inside a vision-language model.
        super().__init__(self.config_class.from_config(config), *args, **kwargs)

    if TYPE_CHECKING:  # methods that transformers leaves without types, or hides behind a decorator

        def eval(self) -> Self: ...

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)
