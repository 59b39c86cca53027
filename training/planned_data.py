"""The pairs and tasks of a plan, loaded and checked: what cannot be read ends a run before it starts."""

import copy
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..inference import check_labels
from ..processing import DualEncoderProcessor
from ..processing.image_batches import naming
from ..processing.image_input import open_image
from .augmentation import RandomResizedCrop
from .collator import ContrastiveCollator
from .duplicates import describe_equal_captions
from .labelled_images import LabelledImages, image_classes
from .plan import TrainingPlan
from .progress import say
from .sources import ColumnPairs, FilePairs, PairDataset, SkipUnreadable, load_pairs
from .streams import SkipCounter, Stream, check_caption
from .trainer import ZeroShotTask


def load_training_pairs(plan: TrainingPlan) -> PairDataset:
    pairs = load_pairs(
        plan.data,
        image_column=plan.image_column,
        text_column=plan.text_column,
        split=plan.split,
        streaming=plan.streaming,
        seed=plan.seed,
        skip_corrupt=plan.skip_corrupt,
    )
    if isinstance(pairs, Stream) and plan.steps is None:
        raise ValueError(f"{plan.data} is a stream, whose epochs have no known length: say how many --steps.")
    return pairs


def load_evaluation(
    plan: TrainingPlan, collator: ContrastiveCollator
) -> "tuple[PairDataset | None, ZeroShotTask | None]":
    """Return the pairs and the task to measure on, if they are planned; all that is no stream can be read."""
    eval_pairs, zero_shot = None, None
    if plan.eval_data:
        eval_pairs = load_pairs(
            plan.eval_data,
            image_column=plan.image_column,
            text_column=plan.text_column,
            split=plan.eval_split,
            repeat=False,
            skip_corrupt=plan.skip_corrupt,
        )
        first_batch(eval_pairs, collator)
        if said := describe_equal_captions(eval_pairs):
            say(said)
        if isinstance(eval_pairs, FilePairs):
            _check_samples(eval_pairs, dict(zip(eval_pairs.image_ids, range(len(eval_pairs)), strict=True)).values())
        elif isinstance(eval_pairs, ColumnPairs):
            _check_samples(eval_pairs, range(len(eval_pairs)))
    if plan.zero_shot:
        images, names = image_classes(plan.zero_shot)
        check_labels(names)
        _check_samples(images, range(len(images)))
        zero_shot = ZeroShotTask(images, [[plan.template.replace("{}", name)] for name in names])
    return eval_pairs, zero_shot


def _check_samples(samples: FilePairs | ColumnPairs | LabelledImages, indices: Iterable[int]) -> None:
    """Raise the error of the first of these samples that cannot be read: after the training it would come too late."""

    def check(index: int) -> None:
        sample = samples[index]
        with naming(f"Sample {index}"):
            check_caption(sample.get("text", "a class"))
            if isinstance(sample["image"], str | bytes):
                open_image(sample["image"])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(check, indices):
            pass


def first_batch(pairs: PairDataset, collator: ContrastiveCollator) -> dict[str, Tensor]:
    """Return a batch of the first pair alone, which fails for data that the model cannot take; nothing is counted."""
    if isinstance(pairs, Stream):
        pairs = copy.copy(pairs)
        pairs.repeat, pairs.skip = False, SkipCounter()  # in order, without filling the buffer for shuffling
    elif isinstance(pairs, SkipUnreadable):
        pairs = SkipUnreadable(pairs.pairs)
    return collator([next(iter(pairs))])


def build_collator(plan: TrainingPlan, processor: DualEncoderProcessor) -> ContrastiveCollator:
    area = plan.min_crop_area
    crop = RandomResizedCrop(scale=(area, 1.0)) if area is not None and area < 1 else None
    return ContrastiveCollator(processor, augmentation=crop, seed=plan.seed)
