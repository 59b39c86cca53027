"""One training run from data to a Hub folder: what `twinlens train` does."""

import copy
import json
import logging
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import get_last_checkpoint

from .._version import __version__
from ..formats import absolute_path
from ..inference import check_labels, load_exact_model, load_processor
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_batches import naming
from ..processing.image_input import open_image
from ..processing.sentence_transformers import save_sentence_transformers_files
from .augmentation import RandomResizedCrop
from .card import draw_curves, training_card
from .collator import ContrastiveCollator
from .labelled_images import LabelledImages, image_classes
from .memory import MemoryEstimate, estimate_memory
from .optimization import add_lora, freeze
from .plan import TrainingPlan
from .sources import ColumnPairs, FilePairs, PairDataset, SkipUnreadable, load_pairs
from .streams import SkipCounter, Stream, check_caption
from .trainer import ContrastiveTrainer, ContrastiveTrainingArguments, ZeroShotTask, check_batches

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

WORK_FOLDER = ".training"  # in the output folder; hidden, so that `twinlens push` does not upload it


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run."""

    folder: Path
    metrics: dict[str, float]  # of the last evaluation; empty without eval_data
    updates: int
    is_main_process: bool  # the one of several processes that wrote the folder, and should print
    skipped: int = 0  # pairs that could not be read, with skip_corrupt or from a stream


def train(plan: TrainingPlan) -> TrainingResult:
    """Train as planned and write a Hub folder: weights, processor, a card with the curves, and `training.json`.

    Checkpoints and TensorBoard's logs are kept in `.training` inside it. Under `accelerate launch` every process calls
    this. Raises FileExistsError for an output that holds something else, ImportError for a missing package, and
    ValueError for a plan that cannot be run, all of them before training starts.
    """
    _check_packages()
    output = absolute_path(plan.output)
    checkpoint = _find_checkpoint(output, plan.resume)
    model, processor = load(plan)
    _check_output(output, model)
    trainer = build_trainer(plan, model, processor, output / WORK_FOLDER)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    metrics = trainer.evaluate() if plan.eval_data else {}
    is_main = trainer.is_world_process_zero()
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if is_main:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if weights is not None:  # the model has a part of them
            model, _ = load(plan)
            model.load_state_dict(weights)
        _save(plan, trainer, model, processor, output, metrics, seconds)
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(output, metrics, trainer.state.global_step, is_main, _skipped(trainer))


def dry_run(plan: TrainingPlan) -> MemoryEstimate:
    """Check and load all that the run needs, run one pair, and return the memory needed; nothing is written."""
    _check_packages()
    output = absolute_path(plan.output)
    _find_checkpoint(output, plan.resume)
    model, processor = load(plan)
    _check_output(output, model)
    collator = _build_collator(plan, processor)
    pairs = _load_training_pairs(plan)
    try:
        check_batches(pairs, plan.batch_size, model.traits.loss, workers=plan.workers)
    except ValueError as error:  # the memory can be estimated all the same
        logger.warning("The run would not start: %s", error)
    _load_evaluation(plan, collator)
    return estimate_memory(
        model,
        _first_batch(pairs, collator),
        batch_size=plan.batch_size,
        slice_size=plan.gradient_cache_size,
        bf16=plan.bf16,
    )


def _check_packages() -> None:
    """Raise ImportError unless the packages are installed that only logs and the card need, at the end of a run."""
    if not is_tensorboard_available():
        raise ImportError("Logs need tensorboardX or tensorboard: pip install '.[train]' in the checkout of twinlens.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The curves in the model card need matplotlib ({error}): "
            "pip install '.[train]' in the checkout of twinlens."
        ) from error


def _check_output(output: Path, model: "DualEncoderModel | PeftModel") -> None:
    """Raise OSError unless the folder can be written and the disk has room for the result and one checkpoint."""
    parent = next(path for path in (output, *output.parents) if path.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{output} cannot be made, because {parent} is a file. Choose another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{parent} cannot be written to. Choose another folder, or ask for the permission.")
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in model.parameters()]
    needed = sum(2 * size + 2 * size * trained for size, trained in sizes)  # twice the weights, two moments of AdamW
    if (free := shutil.disk_usage(parent).free) < needed:
        raise OSError(f"{output} needs {needed:,} bytes for the model and a checkpoint, and the disk has {free:,}.")


def load(plan: TrainingPlan) -> "tuple[DualEncoderModel | PeftModel, DualEncoderProcessor]":
    """Return the model with the parts frozen that are not to be trained, or with LoRA around it, and its processor."""
    set_seed(plan.seed)
    model = load_exact_model(plan.model, torch.float32)
    processor = load_processor(plan.model, plan.tokenizer or None)
    if plan.from_scratch:
        model = type(model)(model.config)
    if plan.freeze:
        freeze(model, plan.freeze)
    return (add_lora(model, plan.lora_rank) if plan.lora_rank else model), processor


def build_trainer(
    plan: TrainingPlan, model: "DualEncoderModel | PeftModel", processor: DualEncoderProcessor, folder: Path
) -> ContrastiveTrainer:
    """Return the trainer of a plan, which keeps checkpoints and TensorBoard's logs in `folder`."""
    arguments = ContrastiveTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        max_steps=-1 if plan.steps is None else plan.steps,
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.gradient_cache_size or plan.batch_size,
        gradient_cache_size=plan.gradient_cache_size,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup,
        weight_decay=plan.weight_decay,
        layer_decay=plan.layer_decay,
        adam_beta2=plan.adam_beta2,
        bf16=plan.bf16,
        seed=plan.seed,
        data_seed=plan.seed,
        dataloader_num_workers=plan.workers,
        logging_steps=plan.log_steps,
        logging_first_step=True,
        eval_strategy="no" if not plan.eval_data else "steps" if plan.eval_steps else "epoch",
        eval_steps=plan.eval_steps,
        save_strategy="steps" if plan.save_steps else "epoch",
        save_steps=plan.save_steps or 500,  # a number is expected even where it is not used
        save_total_limit=2,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="tensorboard",
    )
    pairs = _load_training_pairs(plan)
    collator = _build_collator(plan, processor)
    # Before there is a trainer, which makes the output folder.
    processes, loss = arguments.world_size, model.traits.loss
    check_batches(pairs, plan.batch_size, loss, processes=processes, workers=plan.workers)
    _first_batch(pairs, collator)
    eval_pairs, zero_shot = _load_evaluation(plan, collator)
    trainer = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        eval_dataset=eval_pairs,
        data_collator=collator,
        processing_class=processor,
        zero_shot=zero_shot,
    )
    trainer.remove_callback(PrinterCallback)
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_ProgressOnStderr())
    return trainer


class _ProgressOnStderr(ProgressCallback):
    """Shows progress bars, losses and metrics on stderr, because stdout is for the result of the command."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            numbers = [f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float)]
            self.training_bar.write(f"update {state.global_step}: {', '.join(numbers)}", file=sys.stderr)


def _load_evaluation(
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
        _first_batch(eval_pairs, collator)
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


def _first_batch(pairs: PairDataset, collator: ContrastiveCollator) -> dict[str, Tensor]:
    """Return a batch of the first pair alone, which fails for data that the model cannot take; nothing is counted."""
    if isinstance(pairs, Stream):
        pairs = copy.copy(pairs)
        pairs.repeat, pairs.skip = False, SkipCounter()  # in order, without filling the buffer for shuffling
    elif isinstance(pairs, SkipUnreadable):
        pairs = SkipUnreadable(pairs.pairs)
    return collator([next(iter(pairs))])


def _load_training_pairs(plan: TrainingPlan) -> PairDataset:
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


def _build_collator(plan: TrainingPlan, processor: DualEncoderProcessor) -> ContrastiveCollator:
    crop = RandomResizedCrop(scale=(plan.min_crop_area, 1.0)) if plan.min_crop_area < 1 else None
    return ContrastiveCollator(processor, augmentation=crop, seed=plan.seed)


def _find_checkpoint(output: Path, resume: bool) -> str | None:
    """Return the checkpoint to resume from, or None to start afresh, for which the output must not hold anything."""
    if resume:
        checkpoint = get_last_checkpoint(str(output / WORK_FOLDER)) if (output / WORK_FOLDER).is_dir() else None
        if checkpoint is None:
            raise FileNotFoundError(f"{output} has no checkpoint to resume from. Leave out --resume to start afresh.")
        return checkpoint
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty. Choose another folder, or --resume the run that is in it.")
    return None


def _save(
    plan: TrainingPlan,
    trainer: ContrastiveTrainer,
    model: Any,
    processor: DualEncoderProcessor,
    output: Path,
    metrics: dict[str, float],
    seconds: float,
) -> None:
    if plan.lora_rank:
        model = model.merge_and_unload()
    model.save_pretrained(output)
    processor.save_pretrained(output)
    save_sentence_transformers_files(model.config, processor, output)
    history = [_json_numbers(entry) for entry in trainer.state.log_history]
    report = {
        "plan": asdict(plan),
        "updates": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "seconds": round(seconds, 1),
        "metrics": _json_numbers(metrics),
        "skipped": _skipped(trainer),  # pairs that could not be read
        "history": history,
        "versions": {
            "twinlens": __version__,
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
            "python": platform.python_version(),
        },
    }
    (output / "training.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draw_curves(history, output / "training_curves.png")
    card = training_card(report, model.config.model_type, plan.changed())
    (output / "README.md").write_text(card, encoding="utf-8")


def _skipped(trainer: ContrastiveTrainer) -> int:
    return getattr(trainer.train_dataset, "skipped", 0)


def _json_numbers(entry: Mapping[str, float]) -> dict[str, float | None]:
    """Return the numbers with None for those that are not finite, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }
