"""Classification after a few examples of each class, drawn several times."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import class_ranks
from .probes import few_shot_logits, linear_probe
from .splits import draw_examples


class Spread(NamedTuple):
    """A metric of several draws: its mean, its standard deviation (0 for one draw), and its value in each of them."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of some values."""
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, tuple(values))


def few_shot_accuracy(
    train_embeds: Tensor,
    train_labels: Tensor,
    test_embeds: Tensor,
    test_labels: Tensor,
    class_embeds: Tensor,
    *,
    shots: int,
    seeds: Sequence[int],
    alpha: float = 1.0,
    beta: float = 5.5,
) -> dict[str, Spread]:
    """Return top-1 accuracies with `shots` examples of each class, drawn once for each of the `seeds`.

    `examples_and_names` is `few_shot_logits`, with its `alpha` and `beta`, which uses the embeddings of the names of
    the classes (classes, dim) too; `linear_probe` learns from the examples alone. Embeddings are unit vectors
    (images, dim), labels (images,) are indices of classes. Raises ValueError for a class with too few images.
    """
    accuracies: dict[str, list[float]] = {"examples_and_names": [], "linear_probe": []}
    for seed in seeds:
        rows = torch.tensor(draw_examples(train_labels.tolist(), shots, seed))
        examples, labels = train_embeds[rows], train_labels[rows]
        voted = few_shot_logits(test_embeds, class_embeds, examples, labels, alpha=alpha, beta=beta)
        probed = linear_probe(examples, labels, len(class_embeds))(test_embeds)
        for name, logits in (("examples_and_names", voted), ("linear_probe", probed)):
            accuracies[name].append((class_ranks(logits, test_labels) < 1).double().mean().item())
    return {name: Spread.of(values) for name, values in accuracies.items()}
