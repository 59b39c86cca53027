"""CLIP with a ResNet as its image tower (arXiv:2103.00020, section 2.4), which transformers has no class for."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .base import VisionConfig
from .clip import CLIPConfig, CLIPTextConfig
from .limits import MAX_LAYERS, check_sizes


@strict
class ResNetConfig(VisionConfig):
    """A ResNet with attention pooling that projects (`ModifiedResNet` in openai/CLIP); defaults are those of RN50."""

    hidden_size: int = 2048  # channels of the last stage
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)  # residual blocks in each of the four stages
    num_attention_heads: int = 32  # of the attention pooling
    image_size: int = 224
    projection_dim: int = 1024  # to which the attention pooling maps

    pooling = "attention"
    attention_dropout: ClassVar[float] = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.depths = list(self.depths)  # as JSON has it
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        super().validate_architecture()
        check_sizes(self, ["num_attention_heads", "projection_dim", "image_size"])
        if self.hidden_size % 64 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of 64 and of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}."
            )
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths must be four numbers of at least 1, got {self.depths}.")
        if sum(self.depths) > MAX_LAYERS:
            raise ValueError(f"depths must be {MAX_LAYERS} blocks at most, got {sum(self.depths)}.")
        if self.grid_size < 1:
            raise ValueError(f"image_size must be at least {self.patch_size - 1}, got {self.image_size}.")

    @property
    def stem_size(self) -> int:
        """Channels of the first convolution; all others have a multiple of them."""
        return self.hidden_size // 64

    @property
    def pooled_size(self) -> int:
        """The width of the pooled output, which is projected."""
        return self.projection_dim

    @property
    def patch_size(self) -> int:
        """Pixels per side of the square that one token stands for: the stride of the whole network."""
        return 32

    @property
    def grid_size(self) -> int:
        """Tokens per side: the first convolution rounds half of the pixels up, all pooling after it down."""
        return (self.image_size + 1) // self.patch_size

    @property
    def num_positions(self) -> int:
        """The rows of the table of positions: the mean of all tokens, then the tokens."""
        return 1 + self.grid_size**2

    @property
    def num_hidden_layers(self) -> int:
        """Stages, each of which is one layer of the encoder."""
        return len(self.depths)


@strict
class CLIPResNetVisionConfig(ResNetConfig):
    """The ResNet of CLIP."""

    model_type = "clip_resnet_vision_model"

    initialization = "resnet"
    position_resampling = "open_clip"


@strict
class CLIPResNetConfig(CLIPConfig):
    """CLIP with a ResNet: the image tower's pooling projects, so that the text alone has a projection."""

    model_type = "clip_resnet"
    sub_configs: ClassVar = {"vision_config": CLIPResNetVisionConfig, "text_config": CLIPTextConfig}

    projection_dim: int = 1024

    visual_projection = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # One width, as in files: here it is the image tower that projects to it.
        self.vision_config.projection_dim = self.text_config.projection_dim = self.projection_dim
