"""One training run from data to a Hub folder: what `twinlens train` does."""

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .._version import __version__
from ..formats import absolute_path
from ..inference import load_exact_model, load_processor
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.sentence_transformers import save_sentence_transformers_files
from .arguments import ContrastiveTrainingArguments
from .card import draw_curves, training_card
from .defaults import choose_settings, describe_start
from .duplicates import check_captions
from .memory import MemoryEstimate, estimate_memory
from .optimization import add_lora, freeze
from .outcome import check_trained, digest_of_trained
from .packages import check_packages, report_names
from .patch_dropout import drop_patches
from .plan import TrainingPlan
from .planned_data import build_collator, first_batch, load_evaluation, load_training_pairs
from .progress import ShowProgress, say
from .sources import PairDataset
from .trainer import ContrastiveTrainer, check_batches

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_CHECKPOINTING = "activation_checkpointing"  # its name in newer versions of transformers
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
    ValueError for a plan that cannot be run, all of them before training starts; and ValueError for a run that has
    changed no weight.
    """
    check_packages(plan.report_to)
    output = absolute_path(plan.output)
    checkpoint = _find_checkpoint(output, plan.resume)
    model, processor = load(plan)
    _check_output(output, model)
    pairs = load_training_pairs(plan)
    plan = _complete(plan, model, pairs)
    trainer = build_trainer(plan, model, processor, output / WORK_FOLDER, pairs)
    is_main = trainer.is_world_process_zero()
    say(_describe_start(plan, model, pairs))
    before = digest_of_trained(model)
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_kept(plan, trainer.state.global_step)) from None
    seconds = time.perf_counter() - start
    updates = trainer.state.global_step
    check_trained(model, before, updates=updates, learning_rate=trainer.args.learning_rate)
    metrics = (_last_evaluation(trainer) or trainer.evaluate()) if plan.eval_data else {}
    if is_main:
        _save(plan, trainer, processor, output, metrics, seconds)
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(output, metrics, updates, is_main, _skipped(trainer))


def _complete(plan: TrainingPlan, model: torch.nn.Module, pairs: PairDataset) -> TrainingPlan:
    """Return the plan with a value for every setting, and raise ValueError for pairs that cannot train a model."""
    check_captions(pairs)
    count = len(pairs) if isinstance(pairs, Sized) else None
    processes = int(os.environ.get("WORLD_SIZE", 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    complete = choose_settings(plan, parameters=parameters, pairs=count, processes=processes)
    if plan.batch_size and complete.batch_size != plan.batch_size:
        each = f" for each of {processes} processes" if processes > 1 else ""
        say(f"Batches of {complete.batch_size}{each}, not {plan.batch_size}, because there are {count} pairs.")
    return complete


def _describe_start(plan: TrainingPlan, model: torch.nn.Module, pairs: PairDataset) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return describe_start(plan, trained=trained, pairs=len(pairs) if isinstance(pairs, Sized) else None)


def _last_evaluation(trainer: ContrastiveTrainer) -> dict[str, float]:
    """Return the metrics of the evaluation after the last update, if there was one."""
    last = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    return next((dict(entry) for entry in reversed(last) if "eval_runtime" in entry), {})


def _what_is_kept(plan: TrainingPlan, updates: int) -> str:
    """Return what an interrupted run leaves behind, and how to go on."""
    folder = Path(plan.output, WORK_FOLDER)
    if (checkpoint := get_last_checkpoint(str(folder)) if folder.is_dir() else None) is None:
        return f"interrupted at update {updates}, before the first checkpoint: remove {plan.output} and start again."
    return f"interrupted at update {updates}. {checkpoint} is kept: the same command with --resume goes on from there."


def dry_run(plan: TrainingPlan) -> MemoryEstimate:
    """Check and load all that the run needs, run one pair, and return the memory needed; nothing is written."""
    check_packages(plan.report_to)
    output = absolute_path(plan.output)
    _find_checkpoint(output, plan.resume)
    model, processor = load(plan)
    _check_output(output, model)
    pairs = load_training_pairs(plan)
    plan = _complete(plan, model, pairs)
    say(_describe_start(plan, model, pairs))
    batch_size, collator = plan.batch_size or 1, build_collator(plan, processor)
    try:
        check_batches(pairs, batch_size, model.traits.loss, workers=plan.workers)
    except ValueError as error:  # the memory can be estimated all the same
        logger.warning("The run would not start: %s", error)
    load_evaluation(plan, collator)
    if plan.gradient_checkpointing:
        enable = getattr(model, f"{_CHECKPOINTING}_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return estimate_memory(
        model,
        first_batch(pairs, collator),
        batch_size=batch_size,
        slice_size=plan.gradient_cache_size,
        bf16=plan.bf16,
    )


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
    if plan.patch_dropout:
        drop_patches(model, plan.patch_dropout)
    adapted = add_lora(model, plan.lora_rank) if plan.lora_rank else model
    if plan.freeze:  # after the adapters were added, so that those of the frozen tower are frozen too
        freeze(model, plan.freeze, unlocked_layers=plan.unlocked_layers)
    return adapted, processor


def build_trainer(
    plan: TrainingPlan,
    model: "DualEncoderModel | PeftModel",
    processor: DualEncoderProcessor,
    folder: Path,
    pairs: "PairDataset | None" = None,
) -> ContrastiveTrainer:
    """Return the trainer of a plan, which keeps checkpoints and TensorBoard's logs in `folder`.

    `pairs` are those to train on, if they have been loaded already.
    """
    pairs = load_training_pairs(plan) if pairs is None else pairs
    plan = _complete(plan, model, pairs)
    arguments = ContrastiveTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,  # `_complete` has set what was None
        max_steps=-1 if plan.steps is None else plan.steps,
        per_device_train_batch_size=plan.batch_size,  # type: ignore[arg-type]
        per_device_eval_batch_size=plan.gradient_cache_size or plan.batch_size,
        gradient_cache_size=plan.gradient_cache_size,
        learning_rate=plan.learning_rate,  # type: ignore[arg-type]
        lr_scheduler_type=plan.schedule,
        warmup_steps=plan.warmup,  # type: ignore[arg-type]
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,  # type: ignore[arg-type]
        duplicates_as_negatives=plan.duplicates_as_negatives,
        layer_decay=plan.layer_decay,
        adam_beta2=plan.adam_beta2,
        bf16=plan.bf16,
        use_cpu=not torch.accelerator.is_available(),  # without it transformers refuses bfloat16
        torch_compile=plan.compile,
        seed=plan.seed,
        data_seed=plan.seed,
        dataloader_num_workers=plan.workers,
        logging_steps=plan.log_steps,
        logging_first_step=True,
        eval_strategy="steps" if plan.eval_data else "no",
        eval_steps=plan.eval_steps,
        eval_on_start=bool(plan.eval_data) and not plan.resume,
        save_strategy="steps",
        save_steps=plan.save_steps,
        save_total_limit=2,
        disable_tqdm=True,  # `ShowProgress` shows what there is to see
        report_to=report_names(plan.report_to) or "none",
        **_named_settings(plan),
    )
    collator = build_collator(plan, processor)
    # Before there is a trainer, which makes the output folder.
    processes, loss = arguments.world_size, model.traits.loss
    check_batches(pairs, arguments.per_device_train_batch_size, loss, processes=processes, workers=plan.workers)
    first_batch(pairs, collator)
    eval_pairs, zero_shot = load_evaluation(plan, collator)
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
    trainer.add_callback(ShowProgress())
    return trainer


def _named_settings(plan: TrainingPlan) -> dict[str, Any]:
    """Return the arguments whose names or defaults differ between versions of transformers."""
    settings: dict[str, Any] = {} if plan.optimizer == "adamw" else {"optim": plan.optimizer}
    if plan.gradient_checkpointing:
        name = _CHECKPOINTING if hasattr(ContrastiveTrainingArguments, _CHECKPOINTING) else "gradient_checkpointing"
        settings |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return settings


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
