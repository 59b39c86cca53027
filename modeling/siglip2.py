"""SigLIP 2 NaFlex under transformers' class names: images of any grid of patches, padded to one number of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel  # noqa: F401  # diffusers looks for it beside the class of a component
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.siglip2.modeling_siglip2 import Siglip2Output
from transformers.utils.import_utils import is_tracing

from ..configuration import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig
from .dual_encoder import TowerPair
from .pretrained import EncoderPreTrainedModel, ModelKwargs, capture_outputs
from .siglip import SiglipVisionModel
from .towers import ImageClassifier, TextTower


class Siglip2PreTrainedModel(EncoderPreTrainedModel):
    """The base of the models of the family, which client code asks for."""

    config: Siglip2Config


class Siglip2VisionModel(SiglipVisionModel, Siglip2PreTrainedModel):
    """The image tower of SigLIP 2 NaFlex.

    `output_pooling_attentions=True` adds `pooling_attentions`, the head's map (batch, heads, 1, patches).
    """

    config: Siglip2VisionConfig

    @capture_outputs
    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        packed: bool = False,
        **kwargs: ModelKwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode patches (images, tokens, patch_size * patch_size * channels), as the checkpoint's processor cuts them.

        `spatial_shapes` (images, 2) are the rows and columns of patches of each image. `pixel_attention_mask` (images,
        tokens) is 0 for padding, which may hold anything; without it there is none. Positions are always interpolated.
        `packed` leaves padding out of the encoder, for the same result in less time; it has no effect where hidden
        states or attention maps of the layers are asked for, and torch.compile does not take it.
        """
        hidden_states = self.embeddings(pixel_values, pixel_attention_mask, spatial_shapes)  # (images, tokens, width)
        return self.encode_tokens(hidden_states, pixel_attention_mask, packed, **kwargs)

    def grid(
        self, pixel_values: Tensor, layer: int | None = None, spatial_shapes: Tensor | None = None, **inputs: Any
    ) -> tuple[int, int]:
        grids = set() if spatial_shapes is None else {(rows, columns) for rows, columns in spatial_shapes.tolist()}
        if len(grids) != 1:
            raise ValueError(f"Maps need images of one grid of patches (spatial_shapes), got {sorted(grids)}.")
        return grids.pop()


class Siglip2TextModel(TextTower, Siglip2PreTrainedModel):
    """The text tower of SigLIP 2 NaFlex."""

    config: Siglip2TextConfig


class Siglip2Model(TowerPair, Siglip2PreTrainedModel):
    """SigLIP 2 NaFlex (arXiv:2502.14786)."""

    config: Siglip2Config
    base_model_prefix = "siglip2"
    vision_class = Siglip2VisionModel
    text_class = Siglip2TextModel
    output_class = Siglip2Output
    __call__: Callable[..., Siglip2Output]  # of which torch.nn.Module declares that it returns Any

    def encode_image(self, pixel_values: Tensor, packed: bool | None = None, **inputs: Any) -> Tensor:
        """Encode images as every dual encoder; `packed` is the image tower's, by default in inference on the CPU."""
        if packed is None:
            packed = pixel_values.device.type == "cpu" and not (torch.is_grad_enabled() or is_tracing(pixel_values))
        return super().encode_image(pixel_values, packed=packed, **inputs)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: ModelKwargs,
    ) -> Siglip2Output:
        """Compare images with texts, as every dual encoder."""
        images: dict[str, Any] = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        texts: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(input_ids, pixel_values, return_loss=return_loss, **images, **texts, **kwargs)


class Siglip2ForImageClassification(ImageClassifier, Siglip2PreTrainedModel):
    """The image tower of SigLIP 2 NaFlex under a linear classifier of the mean over patches."""

    config: Siglip2Config
    tower_class = Siglip2VisionModel

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> ImageClassifierOutput:
        """Classify images; `labels` are class indices (batch,), or (batch, num_labels) for several labels or values."""
        images: dict[str, Any] = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        return super().forward(pixel_values, labels, **images, **kwargs)
