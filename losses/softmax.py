"""CLIP's loss: find the text of every image and the image of every text (arXiv:2103.00020, figure 3)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .analytic import Gradients, analytic
from .ring import Block, travel
from .strips import CHUNK_SIZE, KEPT, Strips


def softmax_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy over texts and over images of unit vectors (batch, dim), averaged.

    `logit_scale` is the logarithm of the factor: of open_clip's output, give `logit_scale.log()`. With a `group`, texts
    and images are those of all its ranks; loss and gradients, averaged over ranks as DDP does, are those of one process
    with all. At most `chunk_size` images are compared at a time, and fewer where their logits would take more than
    256 MB.
    """
    return analytic(_softmax, image_embeds, text_embeds, {"logit_scale": logit_scale}, chunk_size, group)


class SoftmaxLoss(nn.Module):
    """`softmax_loss` as a module."""

    def __init__(self, *, chunk_size: int = CHUNK_SIZE, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.chunk_size, self.group = chunk_size, group

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        return softmax_loss(image_embeds, text_embeds, logit_scale, chunk_size=self.chunk_size, group=self.group)


def _softmax(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    *,
    needs: tuple[bool, ...],
    chunk_size: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Gradients]:
    strips = Strips(images, log_scale.exp(), None, chunk_size, needs, kept=KEPT if any(needs) else 1)
    of_images = images.new_full((len(images),), -torch.inf)  # log-sum-exp over texts
    matches = torch.empty_like(of_images)

    def measure(block: Block, is_home: bool) -> Block:
        of_texts = torch.full_like(of_images, -torch.inf)  # log-sum-exp over this rank's images
        for strip in strips.of(block[0], is_home):
            if is_home:
                matches[strip.rows] = strip.pairs
            for texts, logits, spare in strip.tiles():
                for so_far, dim in ((of_images[strip.rows], 0), (of_texts[texts], 1)):
                    _add_logarithms(so_far, _log_sum_exp(logits, dim, spare))
        return [of_texts]

    def differentiate(block: Block, is_home: bool) -> Block:
        texts, of_texts = block
        texts_gradient = torch.zeros_like(texts) if strips.needs_texts else None
        for strip in strips.of(texts, is_home):
            for some, logits, spare in strip.tiles():
                torch.sub(logits, of_images[strip.rows], out=spare).exp_()
                logits.sub_(of_texts[some, None]).exp_().add_(spare)
            if is_home:
                strip.pairs.sub_(2)
            strips.add(strip, texts, texts_gradient)
        return [] if texts_gradient is None else [texts_gradient]

    # Nothing can be said of a text before it has met all images, hence two trips.
    (of_texts,) = travel([texts], measure, _add_logarithms, group)
    loss = ((of_images + of_texts) / 2 - matches).mean()
    found = travel([texts, of_texts], differentiate, Tensor.add_, group) if any(needs) else []
    return loss, strips.gradients(1 / (2 * len(images)), texts, found[0] if found else None)


def _add_logarithms(so_far: Tensor, more: Tensor) -> Tensor:
    return torch.logaddexp(so_far, more, out=so_far)


def _log_sum_exp(logits: Tensor, dim: int, spare: Tensor) -> Tensor:
    """`logits.logsumexp(dim)` without memory of its own."""
    highest = logits.amax(dim, keepdim=True)
    return torch.sub(logits, highest, out=spare).exp_().sum(dim).log_() + highest.squeeze(dim)
