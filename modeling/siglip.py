"""SigLIP and fixed-size SigLIP 2 under transformers' class names: configuration, towers, output classes."""

from collections.abc import Callable

from transformers import PreTrainedModel  # noqa: F401  # diffusers looks for it beside the class of a component
from transformers.models.siglip.modeling_siglip import SiglipOutput

from ..configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from .attention import PoolingAttention
from .dual_encoder import TowerPair
from .pretrained import EncoderPreTrainedModel
from .towers import ImageClassifier, TextTower, VisionTower


class SiglipPreTrainedModel(EncoderPreTrainedModel):
    """The base of the models of the family, which client code asks for."""

    config: SiglipConfig


class SiglipVisionModel(VisionTower, SiglipPreTrainedModel):
    """SigLIP's image tower.

    `output_pooling_attentions=True` adds `pooling_attentions`, the head's map (batch, heads, 1, patches).
    """

    config: SiglipVisionConfig
    _can_record_outputs = {**VisionTower._can_record_outputs, "pooling_attentions": PoolingAttention}


class SiglipTextModel(TextTower, SiglipPreTrainedModel):
    """SigLIP's text tower."""

    config: SiglipTextConfig


class SiglipModel(TowerPair, SiglipPreTrainedModel):
    """SigLIP (arXiv:2303.15343); fixed-size SigLIP 2 (arXiv:2502.14786) is the same model."""

    config: SiglipConfig
    base_model_prefix = "siglip"
    vision_class = SiglipVisionModel
    text_class = SiglipTextModel
    output_class = SiglipOutput
    __call__: Callable[..., SiglipOutput]  # of which torch.nn.Module declares that it returns Any


class SiglipForImageClassification(ImageClassifier, SiglipPreTrainedModel):
    """SigLIP's image tower under a linear classifier of the mean over patches."""

    config: SiglipConfig
    tower_class = SiglipVisionModel
