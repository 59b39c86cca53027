"""One training run from data to a Hub folder: what `twinlens train` does."""

import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import get_last_checkpoint

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .augmentation import RandomResizedCrop
from .card import draw_curves, training_card
from .collator import ContrastiveCollator
from .memory import Estimate, estimate_memory
from .optimization import add_lora, freeze
from .plan import TrainingPlan
from .sources import Stream, image_classes, load_pairs
from .trainer import ContrastiveTrainer, ContrastiveTrainingArguments, ZeroShotTask

WORK = ".training"  # in the output folder; hidden, so that `twinlens push` leaves it here


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind."""

    folder: Path
    metrics: dict[str, float]  # the last evaluation; empty without eval_data
    updates: int
    is_main_process: bool  # the one of several that wrote it, and should speak


def train(plan: TrainingPlan) -> TrainingResult:
    """Train as planned and write a Hub folder: weights, processor, a card with the curves, and `training.json`.

    Checkpoints and TensorBoard's logs are kept in `.training` inside it. Under `accelerate launch` every process calls
    this. Raises FileExistsError where the output holds something else, ValueError for a plan that cannot be run.
    """
    output = Path(plan.output).expanduser().resolve()
    checkpoint = _checkpoint(output, plan.resume)
    model, processor = load(plan)
    trainer = build_trainer(plan, model, processor, output / WORK)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    metrics = trainer.evaluate() if plan.eval_data else {}
    is_main = trainer.is_world_process_zero()
    if is_main:
        _save(plan, trainer, processor, output, metrics, seconds)
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(output, metrics, trainer.state.global_step, is_main)


def dry_run(plan: TrainingPlan) -> Estimate:
    """Load everything, run one pair, and say what the run would take; nothing is written."""
    _checkpoint(Path(plan.output).expanduser().resolve(), plan.resume)
    model, processor = load(plan)
    collator = _collator(plan, processor)
    sample = next(iter(_training_pairs(plan)))
    return estimate_memory(
        model, collator([sample]), batch_size=plan.batch_size, slice_size=plan.gradient_cache_size, bf16=plan.bf16
    )


def load(plan: TrainingPlan) -> tuple[Any, DualEncoderProcessor]:
    """The model as it is to be trained, and its processor."""
    set_seed(plan.seed)
    chosen = {"tokenizer": plan.tokenizer} if plan.tokenizer else {}
    processor = DualEncoderProcessor.from_pretrained(plan.model, **chosen)
    if processor.tokenizer is None:
        raise ValueError(f"{plan.model} has no vocabulary, so captions cannot be read: give one with --tokenizer.")
    model = DualEncoderModel.from_pretrained(plan.model, dtype=torch.float32)
    if plan.from_scratch:
        model = type(model)(model.config)
    if plan.freeze:
        freeze(model, plan.freeze)
    return (add_lora(model, plan.lora_rank) if plan.lora_rank else model), processor


def build_trainer(plan: TrainingPlan, model: Any, processor: DualEncoderProcessor, folder: Path) -> ContrastiveTrainer:
    """The trainer of a plan, which keeps checkpoints and TensorBoard's logs in `folder`."""
    if not is_tensorboard_available():
        raise ImportError("Logs need tensorboardX or tensorboard: pip install '.[train]' in the checkout of twinlens.")
    arguments = ContrastiveTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        max_steps=plan.steps or -1,
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
        save_steps=plan.save_steps or 500,
        save_total_limit=2,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="tensorboard",
    )
    data = _training_pairs(plan)
    if isinstance(data, Stream) and not plan.steps:
        raise ValueError(f"{plan.data} is a stream, whose epochs have no known length: say how many --steps.")
    zero_shot = None
    if plan.zero_shot:
        images, names = image_classes(plan.zero_shot)
        zero_shot = ZeroShotTask(images, [[plan.template.replace("{}", name)] for name in names])
    trainer = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=_evaluation_pairs(plan) if plan.eval_data else None,
        data_collator=_collator(plan, processor),
        processing_class=processor,
        zero_shot=zero_shot,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _training_pairs(plan: TrainingPlan) -> Dataset[Any]:
    return load_pairs(
        plan.data,
        image_column=plan.image_column,
        text_column=plan.text_column,
        split=plan.split,
        streaming=plan.streaming,
        seed=plan.seed,
        skip_corrupt=plan.skip_corrupt,
    )


def _evaluation_pairs(plan: TrainingPlan) -> Dataset[Any]:
    return load_pairs(
        plan.eval_data,
        image_column=plan.image_column,
        text_column=plan.text_column,
        split=plan.eval_split,
        repeat=False,
    )


def _collator(plan: TrainingPlan, processor: DualEncoderProcessor) -> ContrastiveCollator:
    crop = RandomResizedCrop(scale=(plan.min_crop_area, 1.0)) if plan.min_crop_area < 1 else None
    return ContrastiveCollator(processor, augmentation=crop, seed=plan.seed)


def _checkpoint(output: Path, resume: bool) -> str | None:
    """Where to go on from; None to start afresh, for which the output must not hold anything."""
    if resume:
        found = get_last_checkpoint(str(output / WORK)) if (output / WORK).is_dir() else None
        if found is None:
            raise FileNotFoundError(f"{output} has no checkpoint to resume from. Leave out --resume to start afresh.")
        return found
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty. Choose another folder, or --resume the run that is in it.")
    return None


def _save(
    plan: TrainingPlan,
    trainer: ContrastiveTrainer,
    processor: DualEncoderProcessor,
    output: Path,
    metrics: dict[str, float],
    seconds: float,
) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if plan.lora_rank:
        model = model.merge_and_unload()
    model.save_pretrained(output)
    processor.save_pretrained(output)
    history = [_finite(entry) for entry in trainer.state.log_history]
    report = {
        "plan": asdict(plan),
        "updates": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "seconds": round(seconds, 1),
        "metrics": _finite(metrics),
        "skipped": getattr(trainer.train_dataset, "skipped", 0),  # damaged samples of a stream
        "history": history,
        "versions": {name: version(name) for name in ("twinlens", "torch", "transformers", "accelerate")}
        | {"python": platform.python_version()},
    }
    (output / "training.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draw_curves(history, output / "training_curves.png")
    card = training_card(report, model.config.model_type, plan.changed())
    (output / "README.md").write_text(card, encoding="utf-8")


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has: one that is not finite becomes None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }
