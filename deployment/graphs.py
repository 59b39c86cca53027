"""What is exported: a tower, or both, as a module that takes what the processor makes and returns unit vectors."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..modeling import DualEncoderModel
from ..modeling.dual_encoder import l2_normalize

Tower = Literal["image", "text", "both"]
FILES = {"both": "model", "image": "vision_model", "text": "text_model"}  # as transformers.js and optimum name them
# The sizes that a runtime may change from call to call; all other sizes are those of the checkpoint.
_AXES: dict[str, dict[int, str]] = {
    "input_ids": {0: "text_batch_size", 1: "sequence_length"},
    "attention_mask": {0: "text_batch_size", 1: "sequence_length"},
    "pixel_values": {0: "image_batch_size"},
    "pixel_attention_mask": {0: "image_batch_size", 1: "num_patches"},
    "spatial_shapes": {0: "image_batch_size"},
}


def text_input_names(model: DualEncoderModel) -> tuple[str, ...]:
    """Return the inputs of the text tower: with a mask, unless the family attends to its padding too."""
    is_masked = getattr(model.config.text_config, "causal", True)
    return ("input_ids", "attention_mask") if is_masked else ("input_ids",)


def image_input_names(model: DualEncoderModel) -> tuple[str, ...]:
    """Return the inputs of the image tower that a processor makes."""
    return tuple(name for name in _AXES if name in model.image_input_names)


def end_texts(ids: Tensor, mask: Tensor | None = None, *, config: Any) -> tuple[Tensor, Tensor | None]:
    """Return token ids (texts, length), and their mask, in which every text of a full or longer row has an end.

    Rows are cut to the positions that the tower has, and a text that was cut, here or by a tokenizer that leaves out
    the end, gets it back. What comes after the end of a causal text has no effect, so that shorter texts in such rows
    may get another one. Families of a fixed length pad and cut by themselves.
    """
    if not hasattr(config, "fixed_length"):  # of transformers' other families, the tokenizer cuts the texts
        return ids, mask
    limit = config.max_position_embeddings
    positions = torch.arange(ids.shape[1], device=ids.device)
    is_last = positions.eq(limit - 1)  # nowhere in a short row; no question about the length: one graph for all
    if config.fixed_length:
        is_full = positions[-1:].eq(limit - 1)
        return ids.masked_fill(is_last & is_full & ids.ne(config.pad_token_id), config.eos_token_id), mask
    end = ids.amax(dim=1, keepdim=True) if config.ends_at_highest_id else ids.new_full((1, 1), config.eos_token_id)
    ids = torch.where(is_last, end, ids)
    return ids[:, :limit], None if mask is None else mask[:, :limit]


class ImageGraph(nn.Module):
    """Images to `image_embeds`, unit vectors, and `pooler_output`, which are the same before they get length 1."""

    def __init__(self, model: DualEncoderModel) -> None:
        super().__init__()
        self.model = model
        self.names = image_input_names(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(self.names, inputs, strict=True))
        features = self.model.get_image_features(**named, return_dict=True).pooler_output.float()  # (images, dim)
        return l2_normalize(features), features


class TextGraph(nn.Module):
    """Token ids to `text_embeds`, unit vectors, and `pooler_output`, which are the same before they get length 1."""

    def __init__(self, model: DualEncoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = end_texts(*inputs, config=self.model.config.text_config)
        features = self.model.get_text_features(ids, mask, return_dict=True).pooler_output.float()  # (texts, dim)
        return l2_normalize(features), features


class PairGraph(nn.Module):
    """Token ids, then images, to logits as the model computes them, and the unit vectors of both."""

    def __init__(self, model: DualEncoderModel) -> None:
        super().__init__()
        self.model, self.images, self.texts = model, ImageGraph(model), TextGraph(model)
        self.text_inputs = len(text_input_names(model))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        text_embeds, _ = self.texts(*inputs[: self.text_inputs])
        image_embeds, _ = self.images(*inputs[self.text_inputs :])
        logits = self.model.logits(image_embeds, text_embeds)  # (images, texts)
        return logits, logits.t(), text_embeds, image_embeds


@dataclass(frozen=True)
class Graph:
    """A module to export, with the names of its inputs and outputs."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: DualEncoderModel, tower: Tower) -> "Graph":
        texts, images = text_input_names(model), image_input_names(model)
        if tower == "image":
            return cls(ImageGraph(model).eval(), images, ("image_embeds", "pooler_output"))
        if tower == "text":
            return cls(TextGraph(model).eval(), texts, ("text_embeds", "pooler_output"))
        outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
        return cls(PairGraph(model).eval(), texts + images, outputs)

    def dynamic_shapes(self, inputs: dict[str, Tensor]) -> list[dict[int, Any]]:
        """Return, for each input, which of its axes may have any size: the patches only of ready-made patches."""
        dims = {name: Dim(name) for axes in _AXES.values() for name in axes.values()}
        shapes = [{axis: dims[label] for axis, label in _AXES[name].items()} for name in self.inputs]
        for name, shape in zip(self.inputs, shapes, strict=True):
            if name == "pixel_values" and inputs[name].ndim == 3:
                shape[1] = dims["num_patches"]
        return shapes
