"""Contrastive losses on unit embeddings (batch, dim); `logit_scale` is the logarithm of the factor. float32 inside."""

import torch
from torch import Tensor, nn


def similarity(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits (images, texts) in float32, under autocast too: exp(scale) * cosine + bias, of unit vectors."""
    with torch.autocast(text_embeds.device.type, enabled=False):
        cosine = (
            text_embeds.float() @ image_embeds.float().to(text_embeds.device).t()
        )  # (texts, images), as transformers
        logits = cosine * scale.float().exp().to(cosine.device)
        return (logits if bias is None else logits + bias.float().to(cosine.device)).t()


def sigmoid_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """SigLIP's loss: every pair is a yes-or-no question; summed over texts, averaged over images (arXiv:2303.15343)."""
    logits = similarity(image_embeds, text_embeds, logit_scale, logit_bias)
    signs = 2 * torch.eye(logits.shape[0], device=logits.device) - 1  # 1 where image and text belong together, else -1
    return -nn.functional.logsigmoid(signs * logits).sum(dim=0).mean()


def softmax_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss: cross-entropy over texts and over images, averaged (arXiv:2103.00020, figure 3)."""
    logits = similarity(image_embeds, text_embeds, logit_scale)
    targets = torch.arange(logits.shape[0], device=logits.device)
    return (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.t(), targets)) / 2


LOSSES: dict = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
