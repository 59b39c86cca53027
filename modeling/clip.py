"""CLIP under transformers' class names: configuration, towers, output classes, and the towers with projections."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedModel  # noqa: F401  # diffusers looks for it beside the class of a component
from transformers.models.clip.modeling_clip import CLIPOutput, CLIPTextModelOutput, CLIPVisionModelOutput

from ..configuration import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from ..runtime.outputs import deferred, without_pooled
from .dual_encoder import TowerPair
from .pretrained import EncoderPreTrainedModel, ModelKwargs, can_return_tuple
from .towers import ForImages, ImageClassifier, TextTower, VisionTower


class CLIPPreTrainedModel(EncoderPreTrainedModel):
    """The base of the models of the family, which client code asks for."""

    config: CLIPConfig


class CLIPVisionModel(VisionTower, CLIPPreTrainedModel):
    """CLIP's image tower."""

    config: CLIPVisionConfig


class CLIPTextModel(TextTower, CLIPPreTrainedModel):
    """CLIP's text tower."""

    config: CLIPTextConfig


class CLIPModel(TowerPair, CLIPPreTrainedModel):
    """CLIP (arXiv:2103.00020)."""

    config: CLIPConfig
    base_model_prefix = "clip"
    vision_class = CLIPVisionModel
    text_class = CLIPTextModel
    output_class = CLIPOutput
    __call__: Callable[..., CLIPOutput]  # of which torch.nn.Module declares that it returns Any


class CLIPForImageClassification(ImageClassifier, CLIPPreTrainedModel):
    """CLIP's image tower under a linear classifier of the mean over patches."""

    config: CLIPConfig
    tower_class = CLIPVisionModel


class CLIPVisionModelWithProjection(ForImages, CLIPPreTrainedModel):
    """CLIP's image tower and `visual_projection`; `image_embeds` (images, projection_dim) is not normalised."""

    config: CLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.vision_model = CLIPVisionModel._from_config(self.config)
        self.visual_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: ModelKwargs
    ) -> CLIPVisionModelOutput:
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        embeds = self.visual_projection(outputs.pooler_output)
        return deferred(CLIPVisionModelOutput, image_embeds=embeds, **without_pooled(outputs))


class CLIPTextModelWithProjection(CLIPPreTrainedModel):
    """CLIP's text tower and `text_projection`; `text_embeds` (texts, projection_dim) is not normalised."""

    config: CLIPTextConfig
    base_model_prefix = "text_model"

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(self.config)
        self.text_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> CLIPTextModelOutput:
        kwargs |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "return_dict": True}
        outputs = self.text_model(input_ids, attention_mask, **kwargs)
        embeds = self.text_projection(outputs.pooler_output)
        return deferred(CLIPTextModelOutput, text_embeds=embeds, **without_pooled(outputs))
