"""Maps of an image, one value for each patch: how similar it is to a text."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..modeling.encoder import EncoderLayer
from ..processing import DualEncoderProcessor
from .embedding import embed_texts


@torch.no_grad()
def encode_image_and_patches(model: DualEncoderModel, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return unit vectors (images, dim) of images and (images, rows, columns, dim) of their patches, from one forward.

    `inputs` are a processor's for images. The first are those of `encode_image`. A patch of `encode_patches` has seen
    the whole image, and says more about the image than about its place. So here a patch is what the attention of the
    last half of the layers adds to its token, where a token attends to those whose keys are like its own, and without
    MLPs: as in CLIP Surgery (arXiv:2304.05653), with keys as in NACLIP (arXiv:2404.08181). docs/maps.md compares both.
    """
    outputs = model.get_image_features(**inputs, output_hidden_states=True, return_dict=True)
    tower, config = model.vision_model, model.vision_model.config
    layers = list(zip(cast("list[EncoderLayer]", tower.encoder.layers), outputs.hidden_states[:-1], strict=True))
    added = []
    for layer, hidden_states in layers[len(layers) // 2 :]:
        x = layer.layer_norm1(hidden_states[:, config.num_class_tokens :])  # (images, patches, width)
        key, value = layer.self_attn.k_proj(x), layer.self_attn.v_proj(x)
        added.append(layer.self_attn.multi_head_attention(key, key, value)[0])
    tokens = torch.stack(added).sum(dim=0)
    if config.norm_first:
        tokens = tower.post_layernorm(tokens)
    patches = model.project_tokens(tokens).unflatten(1, tower.embeddings.grid(**inputs))
    return torch.nn.functional.normalize(outputs.pooler_output.float(), dim=-1), patches


def similarity_map(
    model: DualEncoderModel, processor: DualEncoderProcessor, image: Any, texts: Sequence[str]
) -> Tensor:
    """Return the cosine of every patch of an image with every text: (texts, rows, columns), float32 on the CPU.

    An image is anything that the processor takes as one. See `encode_image_and_patches` for what a patch is.
    """
    _, patches = encode_image_and_patches(model, processor(images=image).to(model.device))
    return torch.einsum("rcd,td->trc", patches[0].cpu(), embed_texts(model, processor, texts))
