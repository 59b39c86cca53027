"""CLIP with a ResNet as its image tower (`ModifiedResNet` in openai/CLIP), for which transformers has no class."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, relu
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils.output_capturing import OutputRecorder

from ..configuration import CLIPResNetConfig, CLIPResNetVisionConfig, ResNetConfig
from ..formats.positions import resize_table
from ..runtime.pickling import PickledWithoutHooks
from .attention import MultiHeadAttention
from .clip import CLIPTextModel
from .dual_encoder import TowerPair
from .embeddings import check_images
from .pretrained import ModelKwargs, capture_outputs
from .towers import ImageClassifier, ImageTower


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are frozen with its weights, and count a batch once, however often it is computed.

    So the embeddings of a frozen tower stay as they are, and gradient checkpointing does not change the statistics.
    """

    gain = 1  # the first value of its weights
    momentum: float
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        learns = self.training and self.weight.requires_grad
        is_new = torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1  # not in a backward pass
        if learns and is_new:
            self.num_batches_tracked.add_(1)
        statistics, momentum = (self.running_mean, self.running_var), self.momentum if is_new else 0.0
        return batch_norm(x, *statistics, self.weight, self.bias, learns, momentum, self.eps)


class Convolution(nn.Module):
    """A convolution that at stride 1 keeps the sides of a map, batch norm, and ReLU if `active`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, active: bool = True) -> None:
        super().__init__()
        self.active = active
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return relu(x) if self.active else x


class Bottleneck(GradientCheckpointingLayer):
    """A residual block. Where it halves the sides, both branches are averaged before they are convolved."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = Convolution(channels, width, 1)
        self.conv2 = Convolution(width, width, 3)
        self.conv3 = Convolution(width, 4 * width, 1, active=False)
        self.conv3.norm.gain = 0
        if channels != 4 * width:
            self.downsample = Convolution(channels, 4 * width, 1, active=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if self.stride > 1:
            x, y = avg_pool2d(x, self.stride), avg_pool2d(y, self.stride)
        return relu(self.conv3(y) + (self.downsample(x) if hasattr(self, "downsample") else x))


class Stage(PickledWithoutHooks, nn.Sequential):
    """The modules of one resolution."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a map (batch, channels, rows, columns), and the same as tokens (batch, rows * columns, channels)."""
        x = super().forward(x)
        return x, x.flatten(2).transpose(1, 2)  # not by `mT`, which PyTorch's older exporter has not


class AttentionPooling(MultiHeadAttention):
    """Attention of the mean token to itself and to all others, then a projection (`AttentionPool2d` in openai/CLIP)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, config.hidden_size) for _ in "qkv")
        self.out_proj = nn.Linear(config.hidden_size, config.projection_dim)

    def forward(self, tokens: Tensor, grid: torch.Size, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Pool tokens (batch, tokens, width) of a `grid` to (batch, dim); the map is (batch, heads, 1, 1 + tokens)."""
        x = self.with_mean(tokens, grid)
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        pooled, attention_map = self.multi_head_attention(query, key, value, is_causal=False, **kwargs)
        return pooled[:, 0], attention_map

    def with_mean(self, tokens: Tensor, grid: torch.Size) -> Tensor:
        """Return tokens (batch, tokens, width) behind their mean, with positions: (batch, 1 + tokens, width)."""
        positions = self.position_embedding(torch.arange(self.config.num_positions, device=tokens.device))[None]
        x = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return x + resize_table(positions, 1, grid, "transformers")


class CLIPResNetVisionModel(ImageTower):
    """CLIP's ResNet. `last_hidden_state` (batch, tokens, width) has the positions of the last stage, row by row.

    `hidden_states` are those of the stem and of each stage. `output_pooling_attentions=True` adds
    `pooling_attentions`, the map of the pooling (batch, heads, 1, 1 + tokens), in which the mean token comes first.
    """

    config: CLIPResNetVisionConfig
    _input_embed_layer = "0"  # of the stem
    _no_split_modules = ["Convolution", "Bottleneck", "AttentionPooling"]
    _can_record_outputs: dict[str, Any] = {
        "hidden_states": [OutputRecorder(Stage, index=1, capture_initial_hidden_state=False)],
        "pooling_attentions": AttentionPooling,
    }

    def __init__(self, config: CLIPResNetVisionConfig, pooled: bool = True) -> None:
        super().__init__(config, pooled)
        config = self.config
        size = config.stem_size
        convolutions = (Convolution(config.num_channels, size, 3, stride=2), Convolution(size, size, 3))
        self.embeddings = Stage(*convolutions, Convolution(size, 2 * size, 3), nn.AvgPool2d(2))
        self.layers = nn.ModuleList()
        for number, depth in enumerate(config.depths):
            width, stride = 2 * size * 2**number, 2 if number else 1
            rest = (Bottleneck(4 * width, width, stride=1) for _ in range(depth - 1))
            # The stem gives `width` channels, the stage before twice as many.
            self.layers.append(Stage(Bottleneck(stride * width, width, stride), *rest))
        if pooled:
            self.head = AttentionPooling(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_pooling_attentions: bool = False,
        **kwargs: ModelKwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode images (batch, channels, height, width); `pooler_output` (batch, projection_dim) is projected."""
        check_images(self.config, pixel_values, interpolate_pos_encoding)
        x, tokens = self.embeddings(pixel_values.to(self.dtype))
        for stage in self.layers:
            x, tokens = stage(x)
        options = {"output_attentions": output_pooling_attentions}
        pooled = self.head(tokens, x.shape[-2:], **options)[0] if self.pooled else None
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)

    def grid(self, pixel_values: Tensor, layer: int | None = None, **inputs: Any) -> tuple[int, int]:
        halvings = (len(self.layers) if layer is None else max(layer, 1)) - 1  # behind the stem and the first stage
        rows, columns = ((side + 1) // 4 >> halvings for side in pixel_values.shape[-2:])
        return rows, columns

    def pool_each(self, tokens: Tensor) -> Tensor | None:
        """Return the value path of the pooling (tokens, projection_dim), as in MaskCLIP (arXiv:2112.01071)."""
        return self.head.out_proj(self.head.v_proj(tokens)) if self.pooled else None


class CLIPResNetModel(TowerPair):
    """CLIP (arXiv:2103.00020) with a ResNet."""

    config: CLIPResNetConfig
    base_model_prefix = "clip_resnet"
    vision_class = CLIPResNetVisionModel
    text_class = CLIPTextModel
    output_class = CLIPOutput
    __call__: Callable[..., CLIPOutput]  # of which torch.nn.Module declares that it returns Any


class CLIPResNetForImageClassification(ImageClassifier):
    """CLIP's ResNet under a linear classifier of the mean over the positions of its last stage."""

    config: CLIPResNetConfig
    tower_class = CLIPResNetVisionModel
