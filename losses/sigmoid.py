"""SigLIP's loss: every pair of an image and a text is a yes-or-no question (arXiv:2303.15343)."""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .analytic import Gradients, analytic_loss
from .ring import Block, ring_reduce
from .strips import CHUNK_SIZE, Strips


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    pair_ids: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the log-loss of all pairs of unit vectors (batch, dim), summed over texts and averaged over images.

    `logit_scale` is the logarithm of the factor; open_clip's models return the factor itself, so pass its `.log()`.
    `pair_ids` (batch, columns) are whole numbers: where two pairs agree in a column, such as one for each caption, the
    image of the one is not compared with the text of the other.
    With a `group`, the texts are those of all its ranks; loss and gradients, averaged over ranks as DDP does, are those
    of one process with all pairs. At most `chunk_size` images are compared at a time, and fewer where their logits
    would take more than 256 MB. Raises ValueError where inputs are not unit vectors of matching shapes.
    """
    scalars = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    compute = partial(_sigmoid_loss_and_gradients, pair_ids=pair_ids)
    return analytic_loss(compute, image_embeds, text_embeds, scalars, chunk_size, group)


class SigmoidLoss(nn.Module):
    """`sigmoid_loss` as a module."""

    def __init__(self, *, chunk_size: int = CHUNK_SIZE, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.chunk_size, self.group = chunk_size, group

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        inputs = (image_embeds, text_embeds, logit_scale, logit_bias)
        return sigmoid_loss(*inputs, chunk_size=self.chunk_size, group=self.group)


def _sigmoid_loss_and_gradients(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    pair_ids: Tensor | None,
    needs_grad: tuple[bool, ...],
    chunk_size: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Gradients]:
    """Return the loss and the gradients of images, texts, log_scale and bias.

    The loss of a pair is softplus(-logit) if image and text match, and softplus(logit) if they do not.
    """
    strips = Strips(images, log_scale, bias, chunk_size, needs_grad, pair_ids=pair_ids)
    losses, bias_grads = [], []

    def compare(block: Block, is_local_block: bool) -> Block:
        """Collect the losses of the images with a block of texts, and return the gradient of the texts."""
        texts, *ids = block
        texts_grad = torch.zeros_like(texts) if strips.texts_need_grad else None
        for strip in strips.with_texts(texts, is_local_block, *ids):
            if is_local_block:
                strip.positive_logits.neg_()
            for _, logits, scratch in strip.tiles():
                losses.append(torch.logaddexp(logits, logits.new_zeros(()), out=scratch).sum())  # softplus
                if any(needs_grad):
                    bias_grads.append(logits.sigmoid_().sum())  # the derivative of softplus, over the logits
            if any(needs_grad):
                if is_local_block:  # the derivative of softplus(-logit) has the other sign; the sum above has it wrong
                    bias_grads.append(-2 * strip.positive_logits.sum())
                    strip.positive_logits.neg_()
                strips.add_gradients(strip, texts, texts_grad)
        return [] if texts_grad is None else [texts_grad]

    texts_grads = ring_reduce([texts, *strips.pair_ids], compare, Tensor.add_, group)
    weight = 1 / len(images)
    gradients = strips.gradients(weight, texts, texts_grads[0] if texts_grads else None)
    bias_grad = torch.stack(bias_grads).sum() * weight if needs_grad[3] else None
    return torch.stack(losses).sum() * weight, [*gradients, bias_grad]
