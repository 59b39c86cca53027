"""The two towers, and the image tower under a classifier."""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.import_utils import is_tracing
from typing_extensions import Self

from ..configuration import DualEncoderConfig, TextConfig, VisionConfig, ViTConfig
from ..configuration.known_names import POSITION_IDS_BUFFERS
from ..formats.former_names import AcceptsFormerNames, former_module
from ..runtime import TextTowerNames, deferred, has_hooks, later, states_of
from .attention import Packing, image_mask, text_mask
from .embeddings import PatchEmbeddings, TextEmbeddings, VisionEmbeddings, flatten_texts
from .encoder import Encoder
from .pooling import POOLERS, AttentionPoolingHead, end_of_text, mean_of_tokens
from .pretrained import EncoderPreTrainedModel, ModelKwargs, can_return_tuple, capture_outputs

# The keys of a dual encoder outside its towers: not reported when one tower is loaded from its checkpoint.
NON_TOWER_KEYS = {r"^(visual|text)_projection\.", r"^logit_(scale|bias)$", POSITION_IDS_BUFFERS}
POOLING_HEAD_KEYS = {r"^(vision_model\.)?head\."}  # not reported where a model does without its head


class ForImages:
    """Mixin of models for images alone: what transformers asks of the image tower and of those that hold it."""

    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)


class ImageTower(ForImages, AcceptsFormerNames, EncoderPreTrainedModel):
    """Image encoder of any architecture. With `pooled=False`, it has neither pooling nor its parameters."""

    config: VisionConfig
    _keys_to_ignore_on_load_unexpected = {r"^text_model\."} | NON_TOWER_KEYS
    input_names: tuple[str, ...]  # what `forward` takes of what a processor returns

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.input_names = tuple(name for name in signature(cls.forward).parameters if name not in ("self", "kwargs"))

    def __init__(self, config: VisionConfig, pooled: bool = True) -> None:
        super().__init__(config)
        self.pooled = pooled

    def grid(self, pixel_values: Tensor, layer: int | None = None, **inputs: Any) -> tuple[int, int]:
        """Return the rows and columns of the tokens of an image, at a layer or by default at the last one."""
        return pixel_values.shape[-2] // self.config.patch_size, pixel_values.shape[-1] // self.config.patch_size

    def forward_features(
        self,
        pixel_values: Tensor,
        layers: Sequence[int] = (-2,),
        norm: bool = False,
        as_map: bool = True,
        **inputs: Any,
    ) -> tuple[Tensor, ...]:
        """Return the hidden states of the patches at each of `layers`, as (batch, width, rows, columns).

        Layers are indices into `hidden_states`: 0 is what enters the encoder, -1 what its last layer returns. Those
        behind the last one asked for are not run. `norm` applies a transformer's final norm. Without `as_map`, the form
        is (batch, patches, width), with padding. `inputs` are further ones of `forward`.
        """
        count = self.config.num_hidden_layers + 1
        try:
            indices = [range(count)[layer] for layer in layers]
        except (IndexError, TypeError):  # no such layer, and what is no index or no sequence of them
            indices = []
        if not indices:
            raise ValueError(f"layers must be indices from {-count} to {count - 1}, at least one, got {layers}.")
        outputs = self(pixel_values, depth=max(1, *indices), output_hidden_states=indices, return_dict=True, **inputs)
        features = [outputs.hidden_states[index][:, self.config.num_class_tokens :] for index in indices]
        if norm:
            features = [self.post_layernorm(states) for states in features]
        if as_map:
            grids = [self.grid(pixel_values, index, **inputs) for index in indices]
            features = [x[:, : math.prod(grid)].mT.unflatten(2, grid) for x, grid in zip(features, grids, strict=True)]
        return tuple(features)


class VisionTower(ImageTower):
    """Vision transformer: embeddings, (norm), encoder, then norm and pooling in the family's order."""

    config: ViTConfig
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: ViTConfig, pooled: bool = True) -> None:
        super().__init__(config, pooled and getattr(config, "vision_use_head", True))
        config = self.config
        self.embeddings = (PatchEmbeddings if config.flexible_size else VisionEmbeddings)(config)
        if config.pre_norm:  # misspelt in every CLIP checkpoint of transformers
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        if config.norm_first or self.pooled:
            self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if self.pooled and config.pooling == "attention":
            self.head = AttentionPoolingHead(config)
        self.post_init()
        if not self.pooled:
            self._keys_to_ignore_on_load_unexpected = self._keys_to_ignore_on_load_unexpected | POOLING_HEAD_KEYS

    @property
    def vision_model(self) -> "VisionTower":
        """The tower itself: in transformers before 5.6, a module of this name held it. `hasattr` does not find it."""
        return former_module(self)

    @capture_outputs
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: ModelKwargs
    ) -> BaseModelOutputWithPooling:
        """Encode images (batch, channels, height, width), as the checkpoint's processor makes them."""
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)  # (batch, tokens, width)
        return self.encode_tokens(hidden_states, **kwargs)

    def encode_tokens(
        self, hidden_states: Tensor, token_mask: Tensor | None = None, packed: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Do what follows the embeddings (batch, tokens, width).

        `token_mask` (batch, tokens) is 0 for padding, which `packed` leaves out on the way through the encoder, unless
        what happens there is asked for.
        """
        output_attentions = bool(kwargs.setdefault("output_attentions", self.config.output_attentions))
        is_watched = output_attentions or kwargs.get("output_hidden_states", self.config.output_hidden_states)
        if self.config.pre_norm:
            hidden_states = self.pre_layrnorm(hidden_states)
        if packed and token_mask is not None and hidden_states.shape[0] and not is_watched:
            packing = Packing(token_mask.to(hidden_states.device))
            sequence = states_of(self.encoder(hidden_states[packing.rows][None], attention_mask=packing, **kwargs))
            hidden_states = torch.zeros_like(hidden_states).index_put(packing.rows, sequence[0])
        else:
            mask = image_mask(self.config, hidden_states, hidden_states, token_mask, output_attentions)
            hidden_states = states_of(self.encoder(hidden_states, **{"attention_mask": mask, **kwargs}))
        if self.config.norm_first:
            hidden_states = self.post_layernorm(hidden_states)
        pooled = self.pool(hidden_states, token_mask=token_mask, **kwargs)  # (batch, width)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def pool(self, hidden_states: Tensor, **inputs: Any) -> Tensor | None:
        """Pool `last_hidden_state` (batch, tokens, width) to (batch, width), in a tower that has pooling.

        `inputs` are those of `forward`.
        """
        if not self.pooled:
            return None
        pooled = POOLERS[self.config.pooling](self, hidden_states, **inputs)
        return pooled if self.config.norm_first else self.post_layernorm(pooled)

    def pool_each(self, tokens: Tensor) -> Tensor | None:
        """Pool each of `tokens` (tokens, width) of `last_hidden_state` as if there were no other: (tokens, width)."""
        # With maps, which only the eager kernel makes: the kernels of CUDA take no more than 65,535 sequences.
        return self.pool(tokens[:, None], output_pooling_attentions=True)


class TextTower(TextTowerNames, AcceptsFormerNames, EncoderPreTrainedModel):
    """Text encoder: embeddings, encoder, norm, pooling, and SigLIP's linear head."""

    config: TextConfig
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = {r"^vision_model\."} | NON_TOWER_KEYS

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        projection_size = getattr(config, "projection_size", None)
        self.head = nn.Linear(config.hidden_size, projection_size) if projection_size else nn.Identity()
        self.post_init()

    @property
    def text_model(self) -> "TextTower":
        """The tower itself: in transformers before 5.6, a module of this name held it. `hasattr` does not find it."""
        return former_module(self)

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: ModelKwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts (batch, length). With `inputs_embeds` (batch, length, width), ids only say where texts end.

        A bidirectional family was trained to attend to its padding: `attention_mask` has no effect there.
        """
        input_ids, attention_mask = flatten_texts(input_ids, attention_mask)
        may_cut = inputs_embeds is None and position_ids is None and not is_tracing(input_ids)
        if input_ids is not None and may_cut and self.config.causal and not self.training:
            outputs = self.encode_beginnings(input_ids, attention_mask, **kwargs)
            if outputs is not None:
                return outputs
        hidden_states = self.embeddings(input_ids, position_ids, inputs_embeds)  # (batch, length, width)
        return self.encode_tokens(hidden_states, input_ids, attention_mask, **kwargs)

    def encode_tokens(
        self, x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Do what follows the embeddings `x` (batch, length, width); the other inputs are those of `forward`."""
        output_attentions = bool(kwargs.setdefault("output_attentions", self.config.output_attentions))
        mask = text_mask(self.config, x, attention_mask, output_attentions)
        x = states_of(self.encoder(x, attention_mask=mask, is_causal=self.config.causal, **kwargs))
        x = self.final_layer_norm(x)
        pooled = POOLERS[self.config.pooling](self, x, input_ids=input_ids, attention_mask=attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.head(pooled))

    def encode_beginnings(
        self, input_ids: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> BaseModelOutputWithPooling | None:
        """Encode texts (batch, length) as far as the last one ends; `last_hidden_state`, when read, is that of all.

        What follows the end of a causal text has no effect on the pooled output. Returns None where something else may
        see a difference, and outside of inference on the CPU.
        """
        length, config = input_ids.shape[1], self.config
        is_default = config._attn_implementation == "sdpa" and not torch.is_autocast_enabled("cpu")  # eager: equal bits
        is_plain = attention_mask is None or attention_mask.shape == input_ids.shape
        is_inference = not (torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters()))
        is_watched = any(kwargs.get(x, getattr(config, x)) for x in ("output_hidden_states", "output_attentions"))
        # On a GPU, looking at values would wait for it.
        is_ready = is_default and is_plain and is_inference and input_ids.device.type == "cpu"
        if not is_ready or is_watched or has_hooks(self):
            return None
        end = length
        with suppress(RuntimeError):  # inside torch.func.vmap there are no values to look at
            mask = None if attention_mask is None else attention_mask.bool()
            end = max(end_of_text(self, input_ids, mask).tolist(), default=0) + 1
        if end > 0.75 * length or length > config.max_position_embeddings:  # who reads all states encodes texts twice
            return None
        positions = torch.arange(length, device=input_ids.device)[None]
        # Copies, because the caller may change the inputs before the states are read.
        inputs = [x if x is None else x.clone() for x in (input_ids, attention_mask, positions)]
        forward = partial(TextTower.forward, self, return_dict=True, **kwargs)
        pooled = forward(*(x if x is None else x[:, :end] for x in inputs)).pooler_output
        states = later("cpu", partial(forward, *inputs))
        return deferred(BaseModelOutputWithPooling, last_hidden_state=states, pooler_output=pooled)


class ImageClassifier(ForImages, EncoderPreTrainedModel):
    """Image tower, then the mean over patches or the tower's own pooling, then a linear classifier.

    Which of the two is `config.classifier_pooling`. With "mean", as in transformers, the tower has no pooling; "pooled"
    starts from the head that the checkpoint was trained with.
    """

    config: DualEncoderConfig
    _keys_to_ignore_on_load_unexpected = {r"^(vision_model\.)?(head|post_layernorm)\."}  # pooling
    tower_class: type[ImageTower]

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        vision_config, pooled = self.config.vision_config, self.config.classifier_pooling == "pooled"
        self.vision_model = self.tower_class._from_config(vision_config, pooled=pooled)
        width, labels = vision_config.pooled_size if pooled else vision_config.hidden_size, self.config.num_labels
        self.classifier = nn.Linear(width, labels) if labels > 0 else nn.Identity()
        self.post_init()

    @classmethod
    def from_labels(cls, model: Any, processor: Any, labels: Sequence[str], **options: Any) -> Self:
        """Return a classifier with the image tower of a dual encoder, which starts as its zero-shot classifier.

        Its weights are the embeddings of the labels, so that it ranks them for an image exactly as `model` does, before
        any training. Its logits are those of `model` times a factor of each image, the length of its embedding, in
        units of that of one photograph. `templates` are those of `ZeroShotClassifier`, by default "a photo of {}.".

        Raises ValueError for labels and templates that `ZeroShotClassifier` refuses, and TypeError for a dual encoder
        of another family.
        """
        from ..inference.label_classifier import classifier_from_labels

        return classifier_from_labels(cls, model, processor, labels, **options)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: ModelKwargs,
    ) -> ImageClassifierOutput:
        """Classify images; `labels` are class indices (batch,), or (batch, num_labels) for several labels or values."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        features = outputs.pooler_output  # (batch, width)
        if not self.vision_model.pooled:
            patches = outputs.last_hidden_state[:, self.config.vision_config.num_class_tokens :]
            features = mean_of_tokens(patches, kwargs.get("pixel_attention_mask"))  # (batch, width)
        logits = self.classifier(features)  # (batch, num_labels)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
