"""What a model has learnt of the world: kinds it saw and kinds it never saw, how many, where, and which of many."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..evaluation import retrieval_metrics, zero_shot_accuracy
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .dataset import OneThing
from .picture import render
from .world import (
    COLOURS,
    COUNTS,
    HELD_OUT,
    KINDS,
    RELATIONS,
    SEEN,
    SHAPES,
    Scene,
    draw_scene,
    name,
    relation,
    statements,
)

GALLERY = 500  # pairs among which retrieval looks for the right one
_BATCH = 250

Question = tuple[Scene, list[str], int]  # captions of which one is true, and the place of that


def evaluate(
    model: DualEncoderModel, processor: DualEncoderProcessor, *, pictures: int = 2_000, questions: int = 500
) -> dict[str, float]:
    """Shares of right answers. Chance is 1 of 100 for kinds, 1 of 4 for counts and relations, 1 of `GALLERY` pairs.

    `probe_*` is a baseline without the text tower: colour and shape by logistic regression on embeddings of seen kinds.
    """
    examiner = _Examiner(model, processor)
    images, labels = examiner.pictures(OneThing(pictures))
    classes = examiner.texts([name(kind) for kind in KINDS])
    unseen = torch.tensor([kind in HELD_OUT for kind in KINDS])[labels]
    fitted, answers = examiner.pictures(OneThing(pictures, seed=1, kinds=SEEN))
    colours = linear_probe(fitted, answers // len(SHAPES), images, len(COLOURS))
    shapes = linear_probe(fitted, answers % len(SHAPES), images, len(SHAPES))
    probed = (colours * len(SHAPES) + shapes == labels).float()
    scenes, captions = zip(*gallery(GALLERY), strict=True)
    return {
        "zero_shot_accuracy": zero_shot_accuracy(images, classes, labels),
        "zero_shot_accuracy_seen": zero_shot_accuracy(images[~unseen], classes, labels[~unseen]),
        "zero_shot_accuracy_unseen": zero_shot_accuracy(images[unseen], classes, labels[unseen]),
        "probe_accuracy_seen": probed[~unseen].mean().item(),
        "probe_accuracy_unseen": probed[unseen].mean().item(),
        "count_accuracy": examiner.answers(count_questions(questions)),
        "relation_accuracy": examiner.answers(relation_questions(questions)),
        **retrieval_metrics(examiner.scenes(scenes), examiner.texts(captions)),
    }


def count_questions(size: int) -> Iterator[Question]:
    """One to four of a kind: how many are they?"""
    for index in range(size):
        count = index % len(COUNTS) + 1
        scene = draw_scene(Random(f"count {index}"), KINDS, "group", count)
        yield scene, [name(scene.things[0].kind, number + 1) for number in range(len(COUNTS))], count - 1


def relation_questions(size: int) -> Iterator[Question]:
    """Two things: how does one lie to the other?"""
    for index in range(size):
        scene = draw_scene(Random(f"relation {index}"), KINDS, "pair")
        first, second = scene.things
        captions = [f"{name(first.kind)} {lies} {name(second.kind)}" for lies in RELATIONS]
        yield scene, captions, captions.index(f"{name(first.kind)} {relation(first, second)} {name(second.kind)}")


def gallery(size: int) -> Iterator[tuple[Scene, str]]:
    """Scenes with the fullest thing to be said of each, no two of which are the same."""
    random = Random("gallery")
    said: set[str] = set()
    while len(said) < size:
        scene = draw_scene(random, KINDS)
        caption = max(statements(scene)[0], key=len)
        if caption not in said:
            said.add(caption)
            yield scene, caption


def linear_probe(embeds: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """Labels of `others` by a logistic regression that is fitted to embeddings (samples, dim) and labels (samples,)."""
    mean, std = embeds.mean(dim=0), embeds.std(dim=0)
    probe = nn.Linear(embeds.shape[1], classes)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(probe((embeds - mean) / std), labels) + 1e-4 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe((others - mean) / std).argmax(dim=1)


class _Examiner:
    """Embeds in batches what it is asked about."""

    def __init__(self, model: DualEncoderModel, processor: DualEncoderProcessor) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        inputs = (self.processor(text=list(batch)) for batch in _batches(captions))
        return torch.cat([self.model.encode_text(**batch.to(self.model.device)).cpu() for batch in inputs])

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = (self.processor(images=list(batch)) for batch in _batches(images))
        return torch.cat([self.model.encode_image(**batch.to(self.model.device)).cpu() for batch in inputs])

    def scenes(self, scenes: Sequence[Scene]) -> Tensor:
        return self.images([render(scene) for scene in scenes])

    def pictures(self, dataset: OneThing) -> tuple[Tensor, Tensor]:
        samples = [dataset[index] for index in range(len(dataset))]
        labels = torch.tensor([sample["label"] for sample in samples])
        return self.images([sample["image"] for sample in samples]), labels

    def answers(self, questions: Iterator[Question]) -> float:
        """The share of questions for which the true caption is the nearest."""
        scenes, captions, answers = zip(*questions, strict=True)
        texts = self.texts([caption for choice in captions for caption in choice]).unflatten(0, (len(scenes), -1))
        nearest = torch.einsum("qd,qcd->qc", self.scenes(scenes), texts).argmax(dim=1)
        return (nearest == torch.tensor(answers)).float().mean().item()


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
