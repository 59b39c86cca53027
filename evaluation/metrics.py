"""Metrics of embeddings: retrieval in both directions, accuracy, and average precision. Similarities are float32.

Where a right and a wrong answer are equally similar the wrong one counts as the better, so that a constant encoder
scores nothing. Apart from such ties the metrics are those of CLIP_benchmark and scikit-learn.
"""

from collections.abc import Iterator, Sequence

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
    same image, which is one query and one answer, and each of its texts is right for it. Pairs with equal token ids
    `text_ids` (pairs, length) have the same text, which is one answer, and each of its images is right for it; without
    them only the image of its own pair is. An image is found if one of its texts is among the first k. A wrong answer
    that is as similar as the best right one ranks before it.
    """
    pairs = len(image_embeds)
    if len(text_embeds) != pairs or not pairs:
        raise ValueError(f"Expected as many images as texts, pair by pair, got {pairs} and {len(text_embeds)}.")
    images = _number_equal_rows(image_ids, pairs)
    texts = _number_equal_rows(text_ids, pairs)
    image_embeds, text_embeds = (
        embeds[_first_of_each(numbers)].float() for embeds, numbers in ((image_embeds, images), (text_embeds, texts))
    )
    image_ranks = _ranks(image_embeds, text_embeds, images, texts)
    text_ranks = _ranks(text_embeds, image_embeds, texts, images)[texts]  # a text asks as often as it occurs
    return {
        f"{name}_recall_at_{k}": (ranks < k).float().mean().item()
        for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks))
        for k in ks
    }


def _number_equal_rows(ids: Tensor | None, pairs: int) -> Tensor:
    """Return numbers (pairs,) from 0 on that are equal for equal rows; without ids all rows differ."""
    return torch.arange(pairs) if ids is None else torch.unique(ids.cpu(), dim=0, return_inverse=True)[1]


def _first_of_each(numbers: Tensor) -> Tensor:
    """Return where each of the numbers 0, 1, ... occurs first."""
    first = torch.full((int(numbers.max()) + 1,), len(numbers))
    return first.scatter_reduce(0, numbers, torch.arange(len(numbers)), reduce="amin")


def _ranks(queries: Tensor, answers: Tensor, query_of_pair: Tensor, answer_of_pair: Tensor) -> Tensor:
    """Return how many wrong answers (answers, dim) come before the first right one of each query (queries, dim).

    A pair says that one answer, of the number `answer_of_pair`, is right for one query, of the number `query_of_pair`.
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(QUERIES_PER_BLOCK):
        similarity = queries[rows] @ answers.t()  # (rows, answers)
        right = torch.zeros_like(similarity, dtype=torch.bool)
        is_here = (query_of_pair >= rows[0]) & (query_of_pair <= rows[-1])
        right[query_of_pair[is_here] - rows[0], answer_of_pair[is_here]] = True
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((similarity >= best) & ~right).sum(dim=1))
    return torch.cat(ranks)


def zero_shot_accuracy(image_embeds: Tensor, class_embeds: Tensor, labels: Tensor) -> float:
    """Return the share of images (images, dim) that are most similar to the class (classes, dim) of their label.

    `labels` (images,) are indices into `class_embeds`.
    """
    if not len(image_embeds):
        raise ValueError("Expected at least one image to classify, got none.")
    predictions = [block.argmax(dim=1) for block in similarities(image_embeds, class_embeds)]
    return (torch.cat(predictions) == labels).float().mean().item()


def similarities(image_embeds: Tensor, class_embeds: Tensor) -> Iterator[Tensor]:
    """Yield the similarities (images, classes) of images (images, dim) with classes (classes, dim), block by block."""
    for block in image_embeds.split(QUERIES_PER_BLOCK):
        yield block.float() @ class_embeds.float().t()


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many wrong classes have at least the score of the right one, for each image (images,).

    `scores` are (images, classes), `labels` (images,) are indices of classes. Scores that are not numbers rank last.
    """
    if scores.ndim != 2 or len(scores) != len(labels) or not len(labels):
        raise ValueError(
            f"Expected scores (images, classes) and a label for each image, got {tuple(scores.shape)} and "
            f"{len(labels)}."
        )
    right = scores.gather(1, labels[:, None])
    return (~(scores < right)).sum(dim=1) - 1


def accuracy_metrics(scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Return `top1`, `top5` and `mean_class_recall` of scores (images, classes), each a share of 1.

    `labels` (images,) are indices of classes. A k that is not below the number of classes, where every answer would be
    right, is left out. `mean_class_recall` is the mean of the top-1 accuracies of the classes that occur in `labels`.
    """
    ranks = class_ranks(scores, labels)
    first = (ranks < 1).double()
    images_of_class = torch.bincount(labels, minlength=scores.shape[1])
    right_of_class = torch.zeros(scores.shape[1], dtype=torch.float64).index_add(0, labels, first)
    occurs = images_of_class > 0
    return {
        **{f"top{k}": (ranks < k).double().mean().item() for k in ks if k < scores.shape[1]},
        "mean_class_recall": (right_of_class[occurs] / images_of_class[occurs]).mean().item(),
    }


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision (classes,) of each class, over the images ranked by their score for it.

    `scores` are (images, classes); `targets` (images, classes) are true where an image has the class. Images with equal
    scores share one place, as in scikit-learn. NaN for a class that no image has.
    """
    if scores.shape != targets.shape or not scores.numel():
        raise ValueError(
            f"Expected scores and targets (images, classes), got {tuple(scores.shape)} and {tuple(targets.shape)}."
        )
    ordered, order = scores.float().sort(dim=0, descending=True)
    found = targets.gather(0, order).double()
    true_positives = found.cumsum(dim=0)
    places = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    # The precision at an image is that at the last one with its score.
    is_last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    last = torch.where(is_last, places, torch.inf).flip(0).cummin(dim=0)[0].flip(0)  # the next place that is a last one
    precision = true_positives.gather(0, last.long() - 1) / last
    return (precision * found).sum(dim=0) / targets.sum(dim=0)
