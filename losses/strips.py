"""The matrix of logits in strips of a few images each, and the gradients that follow from it, in reused memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SIZE = 1024  # images in a strip; a tenth faster than half as many on two CPU threads
MAX_CACHED_STRIPS = 4  # kept between the two passes of a loss that needs the logits twice
# In all buffers together, 256 MB in float32: with many texts, strips are narrower and fewer.
MAX_LOGITS_ELEMENTS = 2**26
TILE_ELEMENTS = 2**18  # logits that stay in a CPU's cache from one operation to the next
NO_PAIR = -1e30  # the logit of an image and a text that are not compared: no exponential or gradient of it is left


class Strip(NamedTuple):
    """The logits of all texts of a block with a few images."""

    images_slice: slice  # the place of the images in the batch
    scaled_images: Tensor  # (images, dim): the images times the scale
    logits: Tensor  # (texts, images); the losses write the gradient of the logits over them
    scratch: Tensor  # (texts of a tile, images)

    @property
    def positive_logits(self) -> Tensor:
        """The logits (images,) of the matching pairs, a view; only where the texts are those of this rank."""
        return self.logits[self.images_slice].diagonal()

    def tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield slices of the texts, with their logits and scratch memory of the same shape."""
        for start in range(0, len(self.logits), len(self.scratch)):
            logits = self.logits[start : start + len(self.scratch)]
            yield slice(start, start + len(logits)), logits, self.scratch[: len(logits)]


def strip_size(batch: int, chunk_size: int = CHUNK_SIZE) -> int:
    """Return the number of images in a strip."""
    return min(chunk_size, batch, max(1, MAX_LOGITS_ELEMENTS // batch))


class Strips:
    """The logits exp(log_scale) * image @ text (+ bias) of `images` (batch, dim), strip by strip, and their gradients.

    `needs_grad` says for images, texts, log_scale and bias whether their gradients are needed. `pair_ids` (batch,
    columns) say what is not compared: see `softmax_loss`.
    """

    def __init__(
        self,
        images: Tensor,
        log_scale: Tensor,
        bias: Tensor | None,
        chunk_size: int,
        needs_grad: tuple[bool, ...],
        max_cached: int = 1,
        pair_ids: Tensor | None = None,
    ) -> None:
        batch, dim = images.shape
        self.images, self.scale, self.bias, self.needs_grad = images, log_scale.exp(), bias, needs_grad
        self.pair_ids = [] if pair_ids is None else [pair_ids.reshape(batch, -1).contiguous()]  # travel with the texts
        self.size = strip_size(batch, chunk_size)
        # The scale's gradient follows from those of the images, or of the texts if the images need none.
        images_need_grad, self.texts_need_grad, scale_needs_grad = needs_grad[:3]
        sums_over_texts = images_need_grad or (scale_needs_grad and not self.texts_need_grad)
        self.images_grad = torch.zeros_like(images) if sums_over_texts else None
        # Memory is allocated once: fresh memory costs a tenth to a sixth of the time on the CPU.
        self.scaled_images = images.new_empty(self.size, dim)
        strip_elements = self.size * batch
        max_cached = min(max_cached, -(-batch // self.size), max(1, MAX_LOGITS_ELEMENTS // strip_elements))
        self.buffers = [images.new_empty(strip_elements) for _ in range(max_cached)]
        tile_elements = max(TILE_ELEMENTS, self.size) if images.device.type == "cpu" else strip_elements
        self.scratch = images.new_empty(min(tile_elements, strip_elements))
        self.cached_logits: dict[int, int] = {}  # index of a buffer -> first image of the local strip that it holds

    def with_texts(self, texts: Tensor, is_local_block: bool, *text_ids: Tensor) -> Iterator[Strip]:
        """Yield all strips of the logits with `texts` (texts, dim); the next one may overwrite the one before.

        The first strips of the block of this rank are computed once and yielded twice.
        """
        for start in range(0, len(self.images), self.size):
            images_slice = slice(start, min(start + self.size, len(self.images)))
            count = images_slice.stop - start
            scaled_images = torch.mul(self.images[images_slice], self.scale, out=self.scaled_images[:count])
            # Each of the first local strips has a buffer; all others share the last one.
            last = len(self.buffers) - 1
            index = min(start // self.size, last) if is_local_block else last
            logits = self.buffers[index][: len(texts) * count].view(-1, count)
            is_cached = self.cached_logits.pop(index, None) == start and is_local_block
            if not is_cached:
                # Texts by images: the tall product is a fifth faster than the wide one.
                if self.bias is None:
                    torch.mm(texts, scaled_images.t(), out=logits)
                else:
                    torch.addmm(self.bias, texts, scaled_images.t(), out=logits)
                for ids in text_ids:
                    self._leave_out_equals(logits, ids, images_slice, is_local_block)
                if is_local_block:
                    self.cached_logits[index] = start
            scratch = self.scratch[: self.scratch.numel() // count * count].view(-1, count)
            yield Strip(images_slice, scaled_images, logits, scratch)

    def _leave_out_equals(self, logits: Tensor, text_ids: Tensor, images_slice: slice, is_local_block: bool) -> None:
        """Write NO_PAIR over the logits (texts, images) of different pairs that have an id in common."""
        for of_texts, of_images in zip(text_ids.t(), self.pair_ids[0][images_slice].t(), strict=True):
            equal = of_texts[:, None] == of_images
            if is_local_block:
                equal[images_slice].fill_diagonal_(False)
            logits.masked_fill_(equal, NO_PAIR)

    def add_gradients(self, strip: Strip, texts: Tensor, texts_grad: Tensor | None) -> None:
        """Add a strip's part to the gradients of images and texts; `strip.logits` holds the gradient of the logits."""
        if self.images_grad is not None:
            self.images_grad[strip.images_slice].addmm_(strip.logits.t(), texts)
        if texts_grad is not None:
            texts_grad.addmm_(strip.logits, strip.scaled_images)

    def gradients(self, weight: float, texts: Tensor, texts_grad: Tensor | None) -> list[Tensor | None]:
        """Return the gradients of images, texts and log_scale: the sums over all strips, times `weight`.

        `texts` are those of this rank, `texts_grad` the sum over all ranks.
        """
        if texts_grad is not None:
            texts_grad.mul_(weight)
        if self.images_grad is not None:
            self.images_grad.mul_(weight * self.scale)
        # Each rank has its share of the gradient of log_scale; DDP's mean over ranks makes the full gradient of it.
        vectors, grad = (texts, texts_grad) if self.images_grad is None else (self.images, self.images_grad)
        log_scale_grad = _inner_product(vectors, grad, self.size) if self.needs_grad[2] and grad is not None else None
        return [self.images_grad if self.needs_grad[0] else None, texts_grad, log_scale_grad]


def _inner_product(one: Tensor, other: Tensor, rows: int) -> Tensor:
    """Return the sum of all products of elements, in parts of `rows` rows: without a matrix of products in memory."""
    parts = zip(one.split(rows), other.split(rows), strict=True)
    return torch.stack([torch.dot(left.flatten(), right.flatten()) for left, right in parts]).sum()
