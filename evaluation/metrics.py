"""Metrics of embeddings: retrieval in both directions, and zero-shot accuracy. Similarities are float32."""

from collections.abc import Sequence

import torch
from torch import Tensor

QUERIES_PER_BLOCK = 1024  # the similarities of so many queries with all answers exist at a time


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Return the recall at `ks` of the pairs (image i, text i) in both directions: `image_to_text_recall_at_1` etc.

    Embeddings are unit vectors (pairs, dim); a recall is a share of 1. Pairs with equal `image_ids` (pairs,) have the
    same image, pairs with equal token ids `text_ids` (pairs, length) the same text: each is a right answer for the
    others. A wrong answer that is as similar as the best right one ranks before it, so that a constant encoder scores
    0.
    """
    pairs = len(image_embeds)
    if len(text_embeds) != pairs or not pairs:
        raise ValueError(f"Expected as many images as texts, pair by pair, got {pairs} and {len(text_embeds)}.")
    images = _number_equal_rows(image_ids, pairs)
    texts = _number_equal_rows(text_ids, pairs)
    metrics: dict[str, float] = {}
    for name, queries, answers in (
        ("image_to_text", image_embeds.float(), text_embeds.float()),
        ("text_to_image", text_embeds.float(), image_embeds.float()),
    ):
        ranks = []
        for rows in torch.arange(pairs).split(QUERIES_PER_BLOCK):
            similarity = queries[rows] @ answers.t()  # (rows, pairs)
            right = (images[rows, None] == images) | (texts[rows, None] == texts)
            best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
            ranks.append(((similarity >= best) & ~right).sum(dim=1))  # wrong answers before the first right one
        rank = torch.cat(ranks)
        metrics |= {f"{name}_recall_at_{k}": (rank < k).float().mean().item() for k in ks}
    return metrics


def _number_equal_rows(ids: Tensor | None, pairs: int) -> Tensor:
    """Return numbers (pairs,) that are equal for equal rows; without ids all rows differ."""
    return torch.arange(pairs) if ids is None else torch.unique(ids.cpu(), dim=0, return_inverse=True)[1]


def zero_shot_accuracy(image_embeds: Tensor, class_embeds: Tensor, labels: Tensor) -> float:
    """Return the share of images (images, dim) that are most similar to the class (classes, dim) of their label.

    `labels` (images,) are indices into `class_embeds`.
    """
    if not len(image_embeds):
        raise ValueError("Expected at least one image to classify, got none.")
    predictions = [block.float() @ class_embeds.float().t() for block in image_embeds.split(QUERIES_PER_BLOCK)]
    return (torch.cat([block.argmax(dim=1) for block in predictions]) == labels).float().mean().item()
