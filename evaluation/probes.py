"""Classifiers on frozen embeddings: a linear probe, and a cache of a few examples."""

import torch
from torch import Tensor, nn

from .splits import split_by_class

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def linear_probe(embeds: Tensor, labels: Tensor, classes: int, *, penalty: float = 1e-4) -> nn.Linear:
    """Fit a logistic regression from embeddings (samples, dim) to labels (samples,) of 0..classes-1, by L-BFGS.

    It is fitted on standardised embeddings; the result takes embeddings that are not. `penalty` is the weight of the
    squared weights in the loss. Raises ValueError for labels that do not fit.
    """
    if len(embeds) != len(labels) or not len(labels):
        raise ValueError(f"Expected as many labels as embeddings, and some, got {len(labels)} and {len(embeds)}.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"Expected labels of 0..{classes - 1}, got {labels.min()}..{labels.max()}.")
    embeds = embeds.float()
    mean, std = embeds.mean(dim=0), embeds.std(dim=0, correction=0).clamp_min(1e-6)
    inputs = (embeds - mean) / std
    probe = nn.Linear(embeds.shape[1], classes, device=embeds.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(probe(inputs), labels) + penalty * probe.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        probe.weight.div_(std)
        probe.bias.sub_(probe.weight @ mean)
    return probe.requires_grad_(False)


def choose_penalty(embeds: Tensor, labels: Tensor, classes: int, *, seed: int = 0) -> float:
    """Return the one of `PENALTIES` with which `linear_probe` is right most often on a fifth of each class held out.

    The fifth is drawn by the seed. Of equally good ones the largest is chosen.
    """
    rows, held_out = map(torch.tensor, split_by_class(labels.tolist(), 0.2, seed))
    if not len(held_out):
        raise ValueError("Expected at least two images of a class, one of them to be held out.")
    right = []
    for penalty in PENALTIES:
        probe = linear_probe(embeds[rows], labels[rows], classes, penalty=penalty)
        right.append(int((probe(embeds[held_out]).argmax(dim=1) == labels[held_out]).sum()))
    return PENALTIES[right.index(max(right))]


def few_shot_logits(
    image_embeds: Tensor,
    class_embeds: Tensor,
    examples: Tensor,
    labels: Tensor,
    *,
    scale: float = 100.0,
    alpha: float = 1.0,
    beta: float = 5.5,
) -> Tensor:
    """Return logits (images, classes): the similarity to the texts of the classes, plus the votes of similar examples.

    This is Tip-Adapter without training (arXiv:2111.03930). All embeddings are unit vectors: of the images
    (images, dim), of the texts of the classes (classes, dim), and of the examples (examples, dim). `labels` (examples,)
    are indices of classes. `alpha` is the weight of the examples; the larger `beta`, the closer an example has to be to
    count. All defaults are those of the paper; `scale` is CLIP's.
    """
    if len(examples) != len(labels):
        raise ValueError(f"Expected a label for each example, got {len(labels)} and {len(examples)}.")
    affinity = (-beta * (1 - image_embeds.float() @ examples.float().t())).exp()  # (images, examples)
    votes = affinity @ nn.functional.one_hot(labels, len(class_embeds)).to(affinity.dtype)
    return scale * image_embeds.float() @ class_embeds.float().t() + alpha * votes
