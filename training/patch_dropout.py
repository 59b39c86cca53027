"""Random patches left out in training, which makes it faster and is a regularisation (FLIP, arXiv:2212.00794)."""

from functools import partial

import torch
from torch import Tensor, nn

from ..modeling import DualEncoderModel


def drop_patches(model: DualEncoderModel, share: float) -> None:
    """Let the image tower of a model see a random 1 - `share` of the patches of each image, whenever it trains.

    The class token stays, and so does at least one patch. Raises ValueError for a tower without a fixed grid of
    patches: a ResNet, NaFlex, or one that is transformers' own.
    """
    if not 0 <= share < 1:
        raise ValueError(f"The share of patches to leave out must be in [0, 1), got {share}.")
    config, embeddings = model.config.vision_config, getattr(model.vision_model, "embeddings", None)
    if embeddings is None or getattr(config, "flexible_size", True) or not hasattr(config, "num_class_tokens"):
        raise ValueError(
            f"Patches are left out of image towers with a fixed grid of patches, as CLIP's and SigLIP's; "
            f"this model has a {type(model.vision_model).__name__}."
        )
    embeddings.register_forward_hook(partial(_keep_some, share, config.num_class_tokens))


def _keep_some(share: float, class_tokens: int, module: nn.Module, inputs: object, tokens: Tensor) -> Tensor | None:
    """Return the class tokens and some of the patches of `tokens` (images, tokens, width), or None in evaluation."""
    if not module.training:
        return None
    images, count, width = tokens.shape
    patches = count - class_tokens
    kept = max(1, round(patches * (1 - share)))
    places = torch.rand(images, patches, device=tokens.device).argsort(dim=1)[:, :kept] + class_tokens  # (images, kept)
    chosen = tokens.gather(1, places[..., None].expand(-1, -1, width))
    return torch.cat([tokens[:, :class_tokens], chosen], dim=1)
