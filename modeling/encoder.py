"""The transformer encoder in every tower of every family."""

from itertools import islice
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from ..configuration import TransformerConfig
from ..runtime import LayerNames, PickledWithoutHooks
from .attention import Attention
from .initialization import linear


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = linear(config.hidden_size, config.intermediate_size, "mlp_in")
        self.fc2 = linear(config.intermediate_size, config.hidden_size, "mlp_out")

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))  # (..., width)


class EncoderLayer(LayerNames, PickledWithoutHooks, GradientCheckpointingLayer):
    """One pre-norm transformer block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        x = hidden_states  # (batch, length, width)
        x = x + self.self_attn(self.layer_norm1(x), attention_mask=attention_mask, **kwargs)[0]
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoderLayer(EncoderLayer):
    """The same under the name by which FSDP and accelerate look for CLIP's, in the order of transformers' parts.

    An optimizer's state has no names: it goes from one class to the other by that order.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self._modules.update({name: self._modules.pop(name) for name in ("layer_norm1", "mlp", "layer_norm2")})


class SiglipEncoderLayer(EncoderLayer):
    """The same under the name by which FSDP and accelerate look for SigLIP's."""


class Siglip2EncoderLayer(EncoderLayer):
    """The same under the name by which FSDP and accelerate look for SigLIP 2's."""


# By the `encoder_layer` of a configuration.
LAYERS = {cls.__name__: cls for cls in (CLIPEncoderLayer, SiglipEncoderLayer, Siglip2EncoderLayer)}


class Encoder(nn.Module):
    """A stack of blocks, of which the first `depth` are run; all by default.

    `attention_mask` is None or what `create_causal_mask` and its like return.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[config.encoder_layer](config) for _ in range(config.num_hidden_layers))

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Any = None, depth: int | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        for layer in islice(self.layers, depth):
            inputs_embeds = layer(inputs_embeds, attention_mask=attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=inputs_embeds)  # (batch, length, width)
