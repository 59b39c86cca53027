"""The dual encoder: two towers into one space, and the similarity of what they see there. Read this file first.

pixel_values / input_ids -> embeddings -> encoder -> norm -> pooling -> projection -> unit vector
"""

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration import DualEncoderConfig
from ..losses import LOSSES
from .pretrained import OLD_TABLES, EncoderPreTrainedModel, Options
from .towers import TextTower, VisionTower


def unit(embeds: Tensor) -> Tensor:
    """Vectors (batch, dim) scaled to length 1, in float32."""
    return nn.functional.normalize(embeds.float(), dim=-1)


def similarity(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits (images, texts) in float32, under autocast too: exp(scale) * cosine + bias, of unit vectors."""
    with torch.autocast(text_embeds.device.type, enabled=False):
        images = image_embeds.float().to(text_embeds.device)
        cosine = text_embeds.float() @ images.t()  # (texts, images), as transformers
        logits = cosine * scale.float().exp().to(cosine.device)
        return (logits if bias is None else logits + bias.float().to(cosine.device)).t()


class DualEncoderModel(EncoderPreTrainedModel):
    """Image and text encoder with a common space: the base of the families and the one entry point.

    `DualEncoderModel.from_pretrained(source)` returns the right family for a Hub id, a folder or an official file.
    """

    config: DualEncoderConfig
    input_modalities = ("image", "text")
    vision_class: type[VisionTower]
    text_class: type[TextTower]
    output_class: type[ModelOutput]

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        config = self.config
        self.text_model = self.text_class._from_config(config.text_config)
        self.vision_model = self.vision_class._from_config(config.vision_config)
        if config.projection:
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(config.logit_shape))
        if config.logit_bias_init_value is not None:
            self.logit_bias = nn.Parameter(torch.empty(config.logit_shape))
        self.post_init()
        # post_init has collected the towers' own, each with the other tower's weights (lists before transformers 5.12).
        self._keys_to_ignore_on_load_unexpected = type(self._keys_to_ignore_on_load_unexpected)(OLD_TABLES)

    def initialize_own_parameters(self, config: DualEncoderConfig) -> None:
        init.constant_(self.logit_scale, config.logit_scale_init_value)
        if config.logit_bias_init_value is not None:
            init.constant_(self.logit_bias, config.logit_bias_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Options
    ) -> BaseModelOutputWithPooling:
        """The image tower's outputs; `pooler_output` (images, dim) is projected, not normalised."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        if self.config.projection:
            outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Options,
    ) -> BaseModelOutputWithPooling:
        """The text tower's outputs; `pooler_output` (texts, dim) is projected, not normalised."""
        inputs = (input_ids, attention_mask, position_ids, inputs_embeds)
        outputs = self.text_model(*inputs, return_dict=True, **kwargs)
        if self.config.projection:
            outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def encode_image(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **ignored: object) -> Tensor:
        """Images (images, channels, height, width) as unit vectors (images, dim), float32 whatever the weights are.

        Other inputs, such as a processor's for texts, are ignored.
        """
        return unit(self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True).pooler_output)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: object) -> Tensor:
        """Token ids (texts, length) as unit vectors (texts, dim), float32 whatever the weights are.

        Other inputs, such as a processor's for images, are ignored.
        """
        return unit(self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Similarity (images, texts) of unit vectors in float32: exp(scale) * cosine (+ bias)."""
        return similarity(image_embeds, text_embeds, *self._scale_and_bias)

    @property
    def _scale_and_bias(self) -> tuple[Tensor, ...]:
        return (self.logit_scale, self.logit_bias) if hasattr(self, "logit_bias") else (self.logit_scale,)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: Tensor | None = None,
        group: ProcessGroup | None = None,
        **kwargs: Options,
    ) -> ModelOutput:
        """Compare images with texts, or encode only what is given; all embeddings and logits are float32.

        With `return_loss`, image i belongs to text i, and to no other of those that the ranks of `group` hold; training
        makes no logits then, whose memory grows with the square of the batch.
        """
        has_text = input_ids is not None or inputs_embeds is not None
        if pixel_values is None and not has_text:
            raise ValueError("A dual encoder needs pixel_values, input_ids or both, got neither.")
        image_embeds = text_embeds = vision_outputs = text_outputs = per_image = per_text = loss = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
            image_embeds = unit(vision_outputs.pooler_output)  # (images, dim)
        if has_text:
            inputs = (input_ids, attention_mask, position_ids, inputs_embeds)
            text_outputs = self.get_text_features(*inputs, return_dict=True, **kwargs)
            text_embeds = unit(text_outputs.pooler_output)  # (texts, dim)
        if image_embeds is not None and text_embeds is not None and not (return_loss and self.training):
            per_image = self.logits(image_embeds, text_embeds)  # (images, texts)
            per_text = per_image.t()
        if return_loss:
            loss = self.loss(image_embeds, text_embeds, group)
        return self.output_class(loss, per_image, per_text, text_embeds, image_embeds, text_outputs, vision_outputs)

    def loss(
        self, image_embeds: Tensor | None, text_embeds: Tensor | None, group: ProcessGroup | None = None
    ) -> Tensor:
        """The family's contrastive loss of unit vectors (pairs, dim), over the pairs of all processes of `group`."""
        images, texts = (0 if embeds is None else embeds.shape[0] for embeds in (image_embeds, text_embeds))
        if images != texts:
            raise ValueError(f"return_loss=True needs as many images as texts, pair by pair, got {images} and {texts}.")
        return LOSSES[self.config.loss](image_embeds, text_embeds, *self._scale_and_bias, group=group)
