"""SigLIP's loss: every pair of an image and a text is a yes-or-no question (arXiv:2303.15343)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .analytic import Gradients, analytic
from .ring import Block, travel
from .strips import CHUNK_SIZE, Strips


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Log-loss of all pairs of unit vectors (batch, dim), summed over texts and averaged over images.

    `logit_scale` is the logarithm of the factor: of open_clip's output, give `logit_scale.log()`. With a `group`, texts
    are those of all its ranks; loss and gradients, averaged over ranks as DDP does, are those of one process with all.
    At most `chunk_size` images are compared at a time, and fewer where their logits would take more than 256 MB.
    """
    scalars = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    return analytic(_sigmoid, image_embeds, text_embeds, scalars, chunk_size, group)


class SigmoidLoss(nn.Module):
    """`sigmoid_loss` as a module."""

    def __init__(self, *, chunk_size: int = CHUNK_SIZE, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.chunk_size, self.group = chunk_size, group

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        inputs = (image_embeds, text_embeds, logit_scale, logit_bias)
        return sigmoid_loss(*inputs, chunk_size=self.chunk_size, group=self.group)


def _sigmoid(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    needs: tuple[bool, ...],
    chunk_size: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Gradients]:
    strips = Strips(images, log_scale.exp(), bias, chunk_size, needs)
    losses, bias_gradients = [], []

    def visit(block: Block, is_home: bool) -> Block:
        (texts,) = block
        texts_gradient = torch.zeros_like(texts) if strips.needs_texts else None
        for strip in strips.of(texts, is_home):
            if is_home:
                strip.pairs.neg_()  # what is true of a pair is false of the others
            for _, logits, spare in strip.tiles():
                losses.append(torch.logaddexp(logits, logits.new_zeros(()), out=spare).sum())  # softplus
                if any(needs):
                    bias_gradients.append(logits.sigmoid_().sum())
            if any(needs):
                if is_home:
                    bias_gradients.append(-2 * strip.pairs.sum())
                    strip.pairs.neg_()
                strips.add(strip, texts, texts_gradient)
        return [] if texts_gradient is None else [texts_gradient]

    found = travel([texts], visit, Tensor.add_, group)
    weight = 1 / len(images)
    gradients = strips.gradients(weight, texts, found[0] if found else None)
    bias_gradient = torch.stack(bias_gradients).sum() * weight if needs[3] else None
    return torch.stack(losses).sum() * weight, [*gradients, bias_gradient]
