"""Random images and texts of any number and length, with which a graph is traced and checked."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configuration import TextConfig, max_text_length
from ..modeling import DualEncoderModel
from .graphs import image_input_names, text_input_names

_LONGEST = 64  # tokens of a text, where the configuration does not say how many it has positions for


class Case(NamedTuple):
    """How many images and texts there are, and how long they are."""

    images: int
    texts: int
    length: int  # of the rows of token ids
    patches: int  # of an image, where their number is free

    def inputs(self, model: DualEncoderModel, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the inputs of these names, of one tower or of both."""
        inputs: dict[str, Tensor] = {}
        if "input_ids" in names:
            inputs |= sample_texts(model, self.texts, self.length)
        if "pixel_values" in names:
            inputs |= sample_images(model, self.images, self.patches)
        return {name: inputs[name] for name in names}


EXAMPLE = Case(images=3, texts=5, length=7, patches=19)  # different numbers, so that none stands for another one


def cases(model: DualEncoderModel) -> list[Case]:
    """Return what a graph that was traced with `EXAMPLE` is checked with: other numbers and lengths.

    Rows are short, full and, where the graph cuts them, too long.
    """
    full = min(max_text_length(model.config) or _LONGEST, _LONGEST if cut_length(model) is None else 1_000_000)
    found = [Case(1, 2, 3, 16), Case(4, 1, full, 30)]
    if cut_length(model) is not None:
        found.append(Case(2, 7, full + 5, 9))
    return found


def sample_images(model: DualEncoderModel, count: int, patches: int = 19, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of the image tower for `count` images, of `patches` patches each where their number is free."""
    config = model.config.vision_config
    generator = torch.Generator().manual_seed(seed)
    channels = getattr(config, "num_channels", 3)
    if not getattr(config, "flexible_size", False):
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.randn(count, channels, height, width, generator=generator)}
    rows = torch.randint(1, 5, (count,), generator=generator)
    grids = torch.stack([rows, torch.div(patches, rows, rounding_mode="floor")], dim=1)  # (images, 2)
    mask = torch.arange(patches).lt(grids.prod(dim=1, keepdim=True))  # (images, patches)
    values = torch.randn(count, patches, channels * config.patch_size**2, generator=generator)
    inputs = {"pixel_values": values, "pixel_attention_mask": mask.int(), "spatial_shapes": grids}
    return {name: inputs[name] for name in image_input_names(model)}


def sample_texts(model: DualEncoderModel, count: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of the text tower for `count` texts in rows of `length` tokens; the first fills its row.

    Each text ends in end-of-text, behind which is padding that a mask hides.
    """
    config: Any = model.config.text_config
    generator = torch.Generator().manual_seed(seed)
    end, pad = end_of_text_id(config), config.pad_token_id or 0
    special = {end, pad, config.bos_token_id}
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    plain = plain[plain < end] if getattr(config, "ends_at_highest_id", False) else plain
    ids = plain[torch.randint(len(plain), (count, length), generator=generator)]
    last = torch.randint(length, (count, 1), generator=generator)
    last[0] = length - 1
    positions = torch.arange(length)
    ids = ids.where(positions < last, pad).masked_fill(positions == last, end)
    inputs = {"input_ids": ids, "attention_mask": (positions <= last).long()}
    return {name: inputs[name] for name in text_input_names(model)}


def as_tokenized(model: DualEncoderModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `sample_texts` in the form in which a tokenizer gives them: cut and padded text by text.

    That is the reference for graphs, which do the same by themselves.
    """
    config: Any = model.config.text_config
    limit, ids = cut_length(model), inputs["input_ids"]
    if limit is None:
        return {name: inputs[name] for name in text_input_names(model)}
    end, pad = end_of_text_id(config), config.pad_token_id or 0
    texts = [row[: row.index(end) + 1] for row in ids.tolist()]
    texts = [text if len(text) <= limit else [*text[: limit - 1], end] for text in texts]
    length = limit if config.fixed_length else max(map(len, texts))
    padded = torch.tensor([text + [pad] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    made = {"input_ids": padded, "attention_mask": mask}
    return {name: made[name] for name in text_input_names(model)}


def cut_length(model: DualEncoderModel) -> int | None:
    """Return the number of tokens to which a graph cuts texts, None where it does not."""
    config = model.config.text_config
    return config.max_position_embeddings if isinstance(config, TextConfig) else None


def end_of_text_id(config: Any) -> int:
    """Return the id that ends a text; the last of the vocabulary where that is the rule, or where none is stated."""
    if config.eos_token_id is None or getattr(config, "ends_at_highest_id", False):
        return config.vocab_size - 1
    return config.eos_token_id
