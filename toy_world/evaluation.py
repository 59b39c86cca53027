"""Tests of what a model has learnt of the world: seen and unseen kinds, counts, relations, and retrieval."""

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from ..evaluation import linear_probe, retrieval_metrics, zero_shot_accuracy
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .dataset import SingleShapeDataset
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
    describe_kind,
    draw_scene,
    relation,
    statements,
)

GALLERY_PAIRS = 500  # retrieval looks for the right one among so many pairs

Question = tuple[Scene, list[str], int]  # a scene, captions of which one is true, and the index of that one


def evaluate(
    model: DualEncoderModel, processor: DualEncoderProcessor, *, pictures: int = 2_000, questions: int = 500
) -> dict[str, float]:
    """Return shares of right answers. Chance is 1/100 for kinds, 1/4 for counts and relations, 1/500 for retrieval.

    `probe_*` is a baseline without the text tower: logistic regression of colour and of shape, on embeddings of seen
    kinds.
    """
    images, labels = _embed_dataset(model, processor, SingleShapeDataset(pictures))
    classes = model.encode([describe_kind(kind) for kind in KINDS], processor)
    unseen = torch.tensor([kind in HELD_OUT for kind in KINDS])[labels]

    seen_images, seen_labels = _embed_dataset(model, processor, SingleShapeDataset(pictures, seed=1, kinds=SEEN))
    colour_probe = linear_probe(seen_images, seen_labels // len(SHAPES), len(COLOURS))
    shape_probe = linear_probe(seen_images, seen_labels % len(SHAPES), len(SHAPES))
    probed = colour_probe(images).argmax(dim=1) * len(SHAPES) + shape_probe(images).argmax(dim=1)
    probed_right = (probed == labels).float()

    scenes, captions = zip(*gallery(GALLERY_PAIRS), strict=True)
    gallery_images = model.encode([render(scene) for scene in scenes], processor)
    return {
        "zero_shot_accuracy": zero_shot_accuracy(images, classes, labels),
        "zero_shot_accuracy_seen": zero_shot_accuracy(images[~unseen], classes, labels[~unseen]),
        "zero_shot_accuracy_unseen": zero_shot_accuracy(images[unseen], classes, labels[unseen]),
        "probe_accuracy_seen": probed_right[~unseen].mean().item(),
        "probe_accuracy_unseen": probed_right[unseen].mean().item(),
        "count_accuracy": _answer_accuracy(model, processor, count_questions(questions)),
        "relation_accuracy": _answer_accuracy(model, processor, relation_questions(questions)),
        **retrieval_metrics(gallery_images, model.encode(captions, processor)),
    }


def count_questions(size: int) -> Iterator[Question]:
    """Yield questions for the number of things in a scene, which is one to four of a kind."""
    for index in range(size):
        count = index % len(COUNTS) + 1
        scene = draw_scene(Random(f"count {index}"), KINDS, "group", count)
        kind = scene.things[0].kind
        yield scene, [describe_kind(kind, number + 1) for number in range(len(COUNTS))], count - 1


def relation_questions(size: int) -> Iterator[Question]:
    """Yield questions for the relation of the two things in a scene."""
    for index in range(size):
        scene = draw_scene(Random(f"relation {index}"), KINDS, "pair")
        first, second = scene.things
        captions = [f"{describe_kind(first.kind)} {word} {describe_kind(second.kind)}" for word in RELATIONS]
        true = f"{describe_kind(first.kind)} {relation(first, second)} {describe_kind(second.kind)}"
        yield scene, captions, captions.index(true)


def gallery(size: int) -> Iterator[tuple[Scene, str]]:
    """Yield scenes, each with the longest caption that is true of it, and no caption twice."""
    random = Random("gallery")
    captions: set[str] = set()
    while len(captions) < size:
        scene = draw_scene(random, KINDS)
        caption = max(statements(scene)[0], key=len)
        if caption not in captions:
            captions.add(caption)
            yield scene, caption


def _embed_dataset(
    model: DualEncoderModel, processor: DualEncoderProcessor, dataset: SingleShapeDataset
) -> tuple[Tensor, Tensor]:
    """Return the embeddings (pictures, dim) and the labels (pictures,) of a data set."""
    samples = [dataset[index] for index in range(len(dataset))]
    labels = torch.tensor([sample["label"] for sample in samples])
    return model.encode([sample["image"] for sample in samples], processor), labels


def _answer_accuracy(model: DualEncoderModel, processor: DualEncoderProcessor, questions: Iterator[Question]) -> float:
    """Return the share of questions whose true caption is the most similar one to the picture."""
    scenes, captions, answers = zip(*questions, strict=True)
    images = model.encode([render(scene) for scene in scenes], processor)
    texts = model.encode([text for choices in captions for text in choices], processor)
    similarity = torch.einsum("qd,qcd->qc", images, texts.unflatten(0, (len(scenes), -1)))
    return (similarity.argmax(dim=1) == torch.tensor(answers)).float().mean().item()
