"""What an evaluation measures: retrieval in both directions, and zero-shot classification. Similarities are float32."""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1024  # rows of similarities that exist at a time


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at `ks` of the pairs (image i, text i), from images to texts and back, shares of 1.

    Embeddings are unit vectors (pairs, dim). What stands for the same image, by `image_ids` (pairs,), or says the same,
    by the token ids `text_ids` (pairs, length), is as right as the pair itself. What is as similar as a right answer
    counts as before it, so that a constant encoder scores nothing. Gives `image_to_text_recall_at_1` and so on.
    """
    pairs = len(image_embeds)
    if len(text_embeds) != pairs or not pairs:
        raise ValueError(f"Expected as many images as texts, pair by pair, got {pairs} and {len(text_embeds)}.")
    images = _numbered(image_ids, pairs)
    texts = _numbered(text_ids, pairs)
    metrics: dict[str, float] = {}
    for name, queries, answers in (
        ("image_to_text", image_embeds.float(), text_embeds.float()),
        ("text_to_image", text_embeds.float(), image_embeds.float()),
    ):
        ranks = []
        for rows in torch.arange(pairs).split(BLOCK):
            similarity = queries[rows] @ answers.t()  # (rows, pairs)
            right = (images[rows, None] == images) | (texts[rows, None] == texts)
            best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
            ranks.append(((similarity >= best) & ~right).sum(dim=1))  # wrong answers before the first right one
        rank = torch.cat(ranks)
        metrics |= {f"{name}_recall_at_{k}": (rank < k).float().mean().item() for k in ks}
    return metrics


def _numbered(ids: Tensor | None, pairs: int) -> Tensor:
    """Give equal numbers to equal rows; without ids every row is another."""
    return torch.arange(pairs) if ids is None else torch.unique(ids.cpu(), dim=0, return_inverse=True)[1]


def zero_shot_accuracy(image_embeds: Tensor, class_embeds: Tensor, labels: Tensor) -> float:
    """The share of images (images, dim) that are nearest to the class (classes, dim) of their label (images,)."""
    if not len(image_embeds):
        raise ValueError("Expected at least one image to classify, got none.")
    predictions = [block.float() @ class_embeds.float().t() for block in image_embeds.split(BLOCK)]
    return (torch.cat([block.argmax(dim=1) for block in predictions]) == labels).float().mean().item()
