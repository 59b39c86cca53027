"""CLIP's loss: the cross-entropy of finding the text of every image and vice versa (arXiv:2103.00020, figure 3)."""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .analytic import Gradients, analytic_loss
from .ring import Block, ring_reduce
from .strips import CHUNK_SIZE, MAX_CACHED_STRIPS, NO_PAIR, Strips


def softmax_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    label_smoothing: float = 0.0,
    pair_ids: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the mean of the cross-entropies over texts and over images, of unit vectors (batch, dim).

    `logit_scale` is the logarithm of the factor; open_clip's models return the factor itself, so pass its `.log()`.
    `label_smoothing` is the share of the target that goes to all pairs alike, as in torch's cross_entropy.
    `pair_ids` (batch, columns) are whole numbers: where two pairs agree in a column, such as one for each caption, the
    image of the one is not compared with the text of the other, whose share of a smoothed target the pair itself gets.
    With a `group`, texts and images are those of all its ranks; loss and gradients, averaged over ranks as DDP does,
    are those of one process with all pairs. At most `chunk_size` images are compared at a time, and fewer where their
    logits would take more than 256 MB. Raises ValueError where inputs are not unit vectors of matching shapes.
    """
    scalars = {"logit_scale": logit_scale}
    compute = partial(_softmax_loss_and_gradients, label_smoothing=label_smoothing, pair_ids=pair_ids)
    return analytic_loss(compute, image_embeds, text_embeds, scalars, chunk_size, group)


class SoftmaxLoss(nn.Module):
    """`softmax_loss` as a module."""

    def __init__(self, *, chunk_size: int = CHUNK_SIZE, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.chunk_size, self.group = chunk_size, group

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        return softmax_loss(image_embeds, text_embeds, logit_scale, chunk_size=self.chunk_size, group=self.group)


def _softmax_loss_and_gradients(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    *,
    label_smoothing: float,
    pair_ids: Tensor | None,
    needs_grad: tuple[bool, ...],
    chunk_size: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Gradients]:
    """Return the loss and the gradients of images, texts and log_scale.

    The loss of a pair is the mean of both log-sum-exps, over texts and over images, less the pair's logit, or the mean
    of that and all logits with the weight of `label_smoothing`.
    Two passes: the gradient of a text's logits needs its log-sum-exp over the images of all ranks.
    """
    max_cached = MAX_CACHED_STRIPS if any(needs_grad) else 1
    strips = Strips(images, log_scale, None, chunk_size, needs_grad, max_cached, pair_ids)
    image_lse = images.new_full((len(images),), -torch.inf)  # log-sum-exp over all texts so far
    positive_logits = torch.empty_like(image_lse)
    target = torch.full_like(image_lse, 1 - label_smoothing)
    to_each_pair = label_smoothing / (len(images) * (1 if group is None else dist.get_world_size(group)))
    logits_sums = []

    def sum_up(block: Block, is_local_block: bool) -> Block:
        """Add a block of texts to `image_lse`, and return the texts' log-sum-exp over the images of this rank."""
        texts, *ids = block
        text_lse = torch.full_like(image_lse, -torch.inf)
        for strip in strips.with_texts(texts, is_local_block, *ids):
            if is_local_block:
                positive_logits[strip.images_slice] = strip.positive_logits
            for texts_slice, logits, scratch in strip.tiles():
                _add_lse(image_lse[strip.images_slice], _log_sum_exp(logits, 0, scratch))
                _add_lse(text_lse[texts_slice], _log_sum_exp(logits, 1, scratch))
                if label_smoothing:
                    compared = (logits > NO_PAIR).to(logits)
                    logits_sums.append((logits * compared).sum())
                    target[strip.images_slice].add_(len(logits) - compared.sum(0), alpha=to_each_pair)
        return [text_lse]

    def differentiate(block: Block, is_local_block: bool) -> Block:
        """Add to the gradient of the images, and return the gradient of a block of texts."""
        texts, text_lse, *ids = block
        texts_grad = torch.zeros_like(texts) if strips.texts_need_grad else None
        for strip in strips.with_texts(texts, is_local_block, *ids):
            # The gradient of the logits: both softmaxes, less the target twice.
            for texts_slice, logits, scratch in strip.tiles():
                compared = (logits > NO_PAIR).to(logits) if label_smoothing else None
                torch.sub(logits, image_lse[strip.images_slice], out=scratch).exp_()
                logits.sub_(text_lse[texts_slice, None]).exp_().add_(scratch)
                if compared is not None:
                    logits.sub_(compared, alpha=2 * to_each_pair)
            if is_local_block:
                strip.positive_logits.sub_(2 * target[strip.images_slice])
            strips.add_gradients(strip, texts, texts_grad)
        return [] if texts_grad is None else [texts_grad]

    (text_lse,) = ring_reduce([texts, *strips.pair_ids], sum_up, _add_lse, group)
    loss = ((image_lse + text_lse) / 2 - target * positive_logits).mean()
    if label_smoothing:
        loss = loss - torch.stack(logits_sums).sum() * to_each_pair / len(images)
    block = [texts, text_lse, *strips.pair_ids]
    texts_grads = ring_reduce(block, differentiate, Tensor.add_, group) if any(needs_grad) else []
    return loss, strips.gradients(1 / (2 * len(images)), texts, texts_grads[0] if texts_grads else None)


def _add_lse(total: Tensor, more: Tensor) -> Tensor:
    """Add one log-sum-exp to another, in place."""
    return torch.logaddexp(total, more, out=total)


def _log_sum_exp(logits: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return `logits.logsumexp(dim)`, computed in `scratch` (the shape of `logits`) instead of fresh memory."""
    highest = logits.amax(dim, keepdim=True)
    return torch.sub(logits, highest, out=scratch).exp_().sum(dim).log_() + highest.squeeze(dim)
