"""The measures of `twinlens evaluate`: each embeds what it needs and returns what is reported."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .evaluation_data import check_examples
from .terminal import show_progress

if TYPE_CHECKING:  # commands import what needs PyTorch when they run
    from torch import Tensor

    from ..evaluation import EmbeddedImages
    from ..modeling import DualEncoderModel
    from ..processing import DualEncoderProcessor
    from .evaluation_data import CaptionedImages, Labelled, Part
    from .evaluation_index import KnownEmbeddings


@dataclass(frozen=True)
class Learning:
    """What is learnt from the images for it, and the seeds of what is drawn from them."""

    probe: bool
    shots: list[int]
    draws: int
    seed: int
    alpha: float
    beta: float


@dataclass
class EmbeddingJob:
    """Embeds images with a model, shows how far it is, and remembers which it could not read."""

    model: "DualEncoderModel"
    processor: "DualEncoderProcessor"
    known: "KnownEmbeddings | None"
    batch_size: int
    skipped: list[tuple[str | None, str]] = field(default_factory=list)
    reused: int = 0

    def embed(self, images: Iterable[tuple[str, Any]], total: int | None) -> "EmbeddedImages":
        """Embed named images."""
        from ..evaluation import embed_images

        of_all = "" if total is None else f" of {total:,}"
        with show_progress(quiet=False) as show:
            embedded = embed_images(
                self.model,
                self.processor,
                images,
                known=self.known,
                batch_size=self.batch_size,
                advance=lambda count: show(f"image {count + 1:,}{of_all}"),
            )
        self.skipped += embedded.skipped
        self.reused += embedded.reused
        return embedded

    def embed_part(self, part: "Part") -> "tuple[Tensor, list[tuple[int, ...]]]":
        """Return the embeddings (images, dim) of labelled images that can be read, and their labels."""
        embedded = self.embed(((image, image) for image in part.images), len(part.images))
        return embedded.embeds, [part.labels[place] for place in embedded.kept]


def measure_classes(
    job: EmbeddingJob, labelled: "Labelled", class_embeds: "Tensor", learning: Learning
) -> dict[str, Any]:
    """Measure zero-shot accuracy, and a linear probe and few-shot accuracy where they are wanted."""
    import torch

    from ..evaluation import accuracy_metrics, choose_penalty, few_shot_accuracy, linear_probe, similarities

    images, names = job.embed_part(labelled.test)
    labels = torch.tensor([label for (label,) in names])
    result: dict[str, Any] = {"images": len(images), "split": labelled.split}
    result["zero_shot"] = accuracy_metrics(torch.cat([*similarities(images, class_embeds)]), labels)
    if labelled.train is None or not (learning.probe or learning.shots):
        return result
    train_images, names = job.embed_part(labelled.train)
    train_labels = torch.tensor([label for (label,) in names])
    result["train_images"] = len(train_images)
    if learning.probe:
        penalty = choose_penalty(train_images, train_labels, len(class_embeds), seed=learning.seed)
        probe = linear_probe(train_images, train_labels, len(class_embeds), penalty=penalty)
        result["linear_probe"] = accuracy_metrics(probe(images), labels) | {"penalty": penalty}
    if learning.shots:
        check_examples(names, labelled.classes, max(learning.shots))  # some may be damaged
        seeds = range(learning.seed, learning.seed + learning.draws)
        options: Any = {"seeds": seeds, "alpha": learning.alpha, "beta": learning.beta}
        result["few_shot"] = [
            {"shots": shots, "draws": learning.draws}
            | {
                name: spread._asdict()
                for name, spread in few_shot_accuracy(
                    train_images, train_labels, images, labels, class_embeds, shots=shots, **options
                ).items()
            }
            for shots in learning.shots
        ]
    return result


def measure_labels(job: EmbeddingJob, labelled: "Labelled", class_embeds: "Tensor") -> dict[str, Any]:
    """Measure the average precision of each class, and its mean over the classes that some image has."""
    import torch

    from ..evaluation import average_precisions, similarities

    images, names = job.embed_part(labelled.test)
    targets = torch.zeros(len(images), len(class_embeds), dtype=torch.bool)
    for row, labels in enumerate(names):
        targets[row, list(labels)] = True
    if not targets.any():
        raise ValueError("Expected a label of at least one image that can be read, got none.")
    precisions = average_precisions(torch.cat([*similarities(images, class_embeds)]), targets)
    occurs = targets.any(dim=0)
    return {
        "images": len(images),
        "mean_average_precision": precisions[occurs].mean().item(),
        "average_precision": {
            name: precision
            for name, precision, has_images in zip(labelled.classes, precisions.tolist(), occurs.tolist(), strict=True)
            if has_images
        },
    }


def measure_pairs(job: EmbeddingJob, pairs: "CaptionedImages", own_images_only: bool) -> dict[str, Any]:
    """Measure recall at 1, 5 and 10 in both directions."""
    import torch

    from ..evaluation import retrieval_metrics
    from ..runtime.logs import without_warnings

    with without_warnings("twinlens.training.streams"):
        embedded = job.embed(pairs, pairs.count)
    job.skipped += [(None, reason) for reason in pairs.left_out]
    row_of_image = {place: row for row, place in enumerate(embedded.kept)}
    captions = [
        (text, row_of_image[image])
        for text, image in zip(pairs.texts, pairs.image_of_text, strict=True)
        if image in row_of_image
    ]
    texts = [text for text, _ in captions]
    rows = torch.tensor([row for _, row in captions])
    ids = job.processor(text=texts)["input_ids"]
    recalls = retrieval_metrics(
        embedded.embeds[rows],
        job.model.encode(texts, job.processor, kind="text", batch_size=job.batch_size),
        image_ids=rows,
        text_ids=None if own_images_only else ids,
    )
    numbers = torch.unique(ids, dim=0, return_inverse=True)[1]
    images_of_text: dict[int, set[int]] = {}
    for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
        images_of_text.setdefault(number, set()).add(row)
    shared = sum(len(images_of_text[number]) > 1 for number in numbers.tolist())
    return {
        "images": len(embedded.embeds),
        "captions": len(texts),
        "captions_of_several_images": shared,
        "own_images_only": own_images_only,
        "retrieval": recalls,
    }
