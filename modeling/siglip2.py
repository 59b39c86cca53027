"""SigLIP 2 NaFlex under transformers' class names: images of any grid of patches, padded to one number of them."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel  # noqa: F401  # diffusers looks for it beside the class of a component
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.siglip2.modeling_siglip2 import Siglip2Output

from ..configuration import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig
from .dual_encoder import DualEncoderModel
from .pretrained import ModelKwargs, can_return_tuple, capture_outputs
from .siglip import SiglipVisionModel
from .towers import ImageClassifier, TextTower


class Siglip2VisionModel(SiglipVisionModel):
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
        **kwargs: ModelKwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode patches (images, tokens, patch_size * patch_size * channels), as the checkpoint's processor cuts them.

        `spatial_shapes` (images, 2) are the rows and columns of patches of each image. `pixel_attention_mask` (images,
        tokens) is 0 for padding, which may hold anything; without it there is none.
        """
        hidden_states = self.embeddings(pixel_values, pixel_attention_mask, spatial_shapes)  # (images, tokens, width)
        return self.encode_tokens(hidden_states, pixel_attention_mask, **kwargs)


class Siglip2TextModel(TextTower):
    """The text tower of SigLIP 2 NaFlex."""

    config: Siglip2TextConfig


class Siglip2Model(DualEncoderModel):
    """SigLIP 2 NaFlex (arXiv:2502.14786)."""

    config: Siglip2Config
    base_model_prefix = "siglip2"
    vision_class = Siglip2VisionModel
    text_class = Siglip2TextModel
    output_class = Siglip2Output

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        inputs_embeds: Tensor | None = None,
        group: ProcessGroup | None = None,
        **kwargs: ModelKwargs,
    ) -> Siglip2Output:
        """Compare images with texts, as every dual encoder; the images are the inputs of the image tower."""
        images = (pixel_values, pixel_attention_mask, spatial_shapes)
        texts = (input_ids, attention_mask, position_ids, inputs_embeds)
        return self.compare(images, texts, return_loss, group, **kwargs)

    if TYPE_CHECKING:  # torch.nn.Module declares that calling a model returns Any

        def __call__(self, *args: Any, **kwargs: Any) -> Siglip2Output: ...


class Siglip2ForImageClassification(ImageClassifier):
    """The image tower of SigLIP 2 NaFlex under a linear classifier of the mean over patches."""

    config: Siglip2Config
    tower_class = Siglip2VisionModel

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> ImageClassifierOutput:
        """Classify images; `labels` are class indices (batch,), or (batch, num_labels) for several labels or values."""
        outputs = self.vision_model(pixel_values, pixel_attention_mask, spatial_shapes, **kwargs)
        return self.classify(outputs, labels, pixel_attention_mask)
