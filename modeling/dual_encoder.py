"""The dual encoder: two towers into one space, and the similarity of images and texts there. Read this file first.

pixel_values / input_ids -> embeddings -> encoder -> norm -> pooling -> projection -> unit vector
"""

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast
from typing_extensions import Self, Unpack

from ..configuration import FAMILIES, OTHER_FAMILIES, DualEncoderConfig, OtherFamily, family_of, loader_of
from ..losses import LOSSES
from ..runtime import DeclaresOutput, DualEncoderNames, SavesNumbers, TextCache, checked, logit_scalars
from .pretrained import EncoderPreTrainedModel, LoadableModel, ModelKwargs, can_return_tuple
from .towers import POOLING_HEAD_KEYS, ImageTower, TextTower

if TYPE_CHECKING:
    from ..inference.embedding import EncodeOptions

Source: TypeAlias = str | PathLike[str] | PreTrainedModel  # a Hub id, a folder, or the model itself


def l2_normalize(embeds: Tensor | None) -> Tensor:
    """Return vectors (..., dim) of length 1, in float32. Raises ValueError for None, of a tower without pooling."""
    if embeds is None:
        raise ValueError("A tower without pooling (vision_use_head=False) has forward_features, but no embeddings.")
    return nn.functional.normalize(embeds.float(), dim=-1)


class DualEncoderModel(DeclaresOutput, SavesNumbers, LoadableModel):
    """Image and text encoder with a common space: the base of the families and the one entry point.

    `DualEncoderModel.from_pretrained(source)` returns the right family for a Hub id, a folder or an official file. Of
    transformers' other families it returns transformers' own class, to which this one adds its methods.
    """

    config: DualEncoderConfig  # of transformers' other families, transformers' own
    input_modalities = ("image", "text")
    vision_model: ImageTower
    text_model: TextTower
    logit_scale: Tensor  # the logarithm of the factor of the cosines
    get_image_features: Callable[..., BaseModelOutputWithPooling]
    get_text_features: Callable[..., BaseModelOutputWithPooling]

    def __init__(self, config: PreTrainedConfig, *towers: PreTrainedModel) -> None:
        super().__init__(config, *towers)
        self.text_cache = TextCache()  # of `forward`

    @property
    def traits(self) -> DualEncoderConfig | OtherFamily:
        """What holds for the whole family: its loss, whether its logits have a bias, the largest scale."""
        return self.config

    @property
    def image_input_names(self) -> tuple[str, ...]:
        """The inputs of the image tower: `pixel_values`, and what else it takes."""
        return self.vision_model.input_names

    @classmethod
    def class_for(cls, config: PreTrainedConfig | None) -> type[Self]:
        """Return the class for a configuration: this one, or the family's where this one stands for all of them.

        Raises ValueError for a configuration of no family, or of one tower where both are needed.
        """
        model_type = getattr(config, "model_type", None)
        if any(model_type in family.model_types[1:] for family in FAMILIES.values()):
            raise ValueError(
                f"{cls.__name__} takes both towers, and this checkpoint has one, a {type(config).__name__}. "
                f"Load it with {loader_of(model_type)}."
            )
        if cls.config_class.model_type:
            return cls
        if model_type in OTHER_FAMILIES:
            return import_module(f"{__package__}.other_families").class_of(model_type)
        return getattr(import_module(__package__), family_of(model_type).model)

    @classmethod
    def from_towers(cls, vision: Source, text: Source, *, projection_dim: int = 512, loss: str = "softmax") -> Self:
        """Return a dual encoder of two towers: Hub ids, folders, or models of transformers, which become parts of it.

        A dual encoder stands for its tower. The projections to `projection_dim` and the scale of the logits are new
        (ALIGN's and LiT's recipe, arXiv:2102.05918, arXiv:2111.07991), so that it is to be trained. It is transformers'
        VisionTextDualEncoderModel, and saved as such.

        With `loss="sigmoid"` it has a `logit_bias`, and starts at the scale and bias of SigLIP (arXiv:2303.15343). A
        saved folder then has the weight `logit_bias`, and `loss` in its config.json. Plain transformers loads it too,
        reports the weight as unexpected, and gives logits without the bias.

        Raises TypeError for what is no model, and ValueError for a tower of the wrong kind, without a pooled output of
        `hidden_size`, or which AutoModel does not load.
        """
        return import_module(f"{__package__}.other_families").join_towers(vision, text, projection_dim, loss)

    @checked("image")
    def encode_image(self, pixel_values: Tensor, **inputs: Any) -> Tensor:
        """Encode images as unit vectors (images, dim), in float32 for any weights.

        `inputs` are those of the image tower; others, such as a processor's for texts, are ignored. Raises TypeError
        for an image that no processor has read, and for a misspelt name; ValueError, with the rows, for a result with
        NaN or infinity. On an accelerator only `check_finite=True` looks for these, which waits for it; `encode` and
        all that brings results to the CPU look there. `check_finite=False` returns them.
        """
        inputs = {name: value for name, value in inputs.items() if name in self.image_input_names}
        return l2_normalize(self.get_image_features(pixel_values, return_dict=True, **inputs).pooler_output)

    @checked("text")
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: object) -> Tensor:
        """Encode token ids (texts, length) as unit vectors (texts, dim), in float32 for any weights.

        Other inputs, such as a processor's for images, are ignored. Raises TypeError for a text that no processor has
        read, and for a misspelt name; ValueError for ids outside of the vocabulary, looked for on the CPU, and for a
        result with NaN or infinity, as `encode_image`, with `check_finite` as there.
        """
        return l2_normalize(self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output)

    def encode(self, items: Any, processor: Any, **options: "Unpack[EncodeOptions]") -> Any:
        """Encode any number of texts or images as unit vectors (items, dim), in float32 on the CPU.

        `items` are strings, or images in any other form that the processor takes: `pathlib.Path`, PIL images, arrays
        and tensors, bytes, open files. They stand in a list, a column of `datasets`, pandas or NumPy, a stack of images
        (images, ...), or any iterable, which is read batch by batch. One item alone gives one vector (dim,). Strings
        are texts: paths and URLs in strings are images with `kind="image"`.

        Options:

        - `batch_size`: how many items the model computes at a time; by default 64, and more of short texts.
        - `kind`: "image" or "text"; by default that of the first item.
        - `convert_to_numpy`: return a NumPy array in place of a tensor.
        - `show_progress_bar`: show one, unless transformers' progress bars are disabled.
        - `check_finite`: False returns NaN and infinity, which are an error with the places of the items by default.

        The model computes where it is, without gradients and in evaluation mode, and has its former mode afterwards.
        Texts of one length are computed together, and equal texts once. Raises TypeError for items of both kinds or of
        none, and the processor's errors, with the place of the item, for one that cannot be read.
        """
        from ..inference.embedding import encode

        return encode(self, items, processor, **options)

    def forward_features(self, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        """Return hidden states of patches: see `forward_features` of the image tower."""
        return self.vision_model.forward_features(*inputs, **options)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Return logits (images, texts) of unit vectors (images, dim) and (texts, dim), always in float32.

        They are exp(logit_scale) * cosine, plus logit_bias for a family that has one.
        """
        device = text_embeds.device
        with maybe_autocast(device.type, enabled=False):
            cosine = text_embeds.float() @ image_embeds.float().to(device).t()  # (texts, images), as in transformers
            scale, *bias = (scalar.float().to(device) for scalar in logit_scalars(self))
            logits = cosine * scale.exp()
            return (logits + bias[0] if bias else logits).t()  # (images, texts)

    def loss(
        self, image_embeds: Tensor | None, text_embeds: Tensor | None, group: ProcessGroup | None = None, **options: Any
    ) -> Tensor:
        """Return the family's contrastive loss of unit vectors (pairs, dim), over the pairs of all ranks of `group`.

        `options` are those of the losses, such as `pair_ids` (pairs, columns): `twinlens.modeling.softmax_loss`.
        """
        images, texts = (0 if embeds is None else embeds.shape[0] for embeds in (image_embeds, text_embeds))
        if images != texts:
            raise ValueError(f"return_loss=True needs as many images as texts, pair by pair, got {images} and {texts}.")
        return LOSSES[self.traits.loss](image_embeds, text_embeds, *logit_scalars(self), group=group, **options)

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
        pair_ids: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> ModelOutput:
        """Compare images with texts, or encode one of the two alone; all embeddings and logits are float32.

        With `return_loss`, image i belongs to text i, and to no other of those that the ranks of `group` hold; pairs
        with one of their `pair_ids` (pairs, columns) in common are not compared. Training with it makes no logits,
        whose memory grows with the square of the batch.
        """
        images = {"interpolate_pos_encoding": interpolate_pos_encoding}
        images |= {name: kwargs.pop(name) for name in self.image_input_names if name in kwargs}
        has_text = input_ids is not None or inputs_embeds is not None
        if pixel_values is None and not has_text:
            raise ValueError("A dual encoder needs pixel_values, input_ids or both, got neither.")
        vision_outputs = image_embeds = text_outputs = text_embeds = logits_per_image = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(pixel_values, return_dict=True, **images, **kwargs)
            image_embeds = l2_normalize(vision_outputs.pooler_output)  # (images, dim)
        if has_text:
            inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, **kwargs}
            text_outputs = self.text_cache.features(self, input_ids, attention_mask, **inputs)
            text_embeds = l2_normalize(text_outputs.pooler_output)  # (texts, dim)
        if image_embeds is not None and text_embeds is not None and not (return_loss and self.training):
            logits_per_image = self.logits(image_embeds, text_embeds)  # (images, texts)
        return self.output_class(
            loss=self.loss(image_embeds, text_embeds, group, pair_ids=pair_ids) if return_loss else None,
            logits_per_image=logits_per_image,
            logits_per_text=None if logits_per_image is None else logits_per_image.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


class TowerPair(DualEncoderNames, DualEncoderModel, EncoderPreTrainedModel):
    """A dual encoder with the towers of this package: the base of its families."""

    vision_class: type[ImageTower]
    text_class: type[TextTower]

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        config = self.config
        self.text_model = self.text_class._from_config(config.text_config)
        self.vision_model = self.vision_class._from_config(config.vision_config)
        if config.visual_projection:
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        if config.text_projection:
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(config.logit_shape))  # the logarithm of the factor
        if config.has_logit_bias:
            self.logit_bias = nn.Parameter(torch.empty(config.logit_shape))
        self.post_init()
        # post_init has added the towers' own keys to ignore, among them the weights of the other tower.
        ignored = type(self)._keys_to_ignore_on_load_unexpected
        self._keys_to_ignore_on_load_unexpected = ignored if self.vision_model.pooled else ignored | POOLING_HEAD_KEYS

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, *inputs: Any, **kwargs: ModelKwargs
    ) -> BaseModelOutputWithPooling:
        """Return the image tower's outputs; `pooler_output` (images, dim) is projected, not normalised."""
        outputs = self.vision_model(pixel_values, *inputs, return_dict=True, **kwargs)
        if self.config.visual_projection:
            outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> BaseModelOutputWithPooling:
        """Return the text tower's outputs; `pooler_output` (texts, dim) is projected, not normalised."""
        outputs = self.text_model(input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs)
        if self.config.text_projection:
            outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def initialize_own_parameters(self, config: DualEncoderConfig) -> None:
        init.constant_(self.logit_scale, config.logit_scale_init_value)
        if config.has_logit_bias:
            init.constant_(self.logit_bias, config.logit_bias_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)
