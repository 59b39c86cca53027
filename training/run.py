"""One training run from data to a Hub folder: what `twinlens train` does."""

import logging
import os
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, set_seed

from ..formats import absolute_path
from ..inference import load_exact_model, load_processor
from ..messages import quoted
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .arguments import ContrastiveTrainingArguments
from .checkpoints import last_whole_checkpoint, remove_unfinished
from .defaults import choose_settings, describe_start
from .duplicates import check_captions
from .memory import MemoryEstimate, estimate_memory
from .optimization import add_lora, freeze
from .outcome import check_trained, digest_of_trained
from .packages import OPTIMIZER, check_optimizer, check_packages, report_names
from .patch_dropout import drop_patches
from .plan import TrainingPlan
from .planned_data import build_collator, first_batch, load_evaluation, load_training_pairs
from .progress import ShowProgress, say
from .sources import PairDataset
from .stages import Stage, StageRecord, check_resumption, read_stages
from .termination import StopOnTermination
from .trained_folder import WORK_FOLDER, count, save_trained_folder, skipped_pairs, versions
from .trainer import ContrastiveTrainer, check_batches

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_CHECKPOINTING = "activation_checkpointing"  # its name in newer versions of transformers
STOPPED = "Stopped by SIGTERM after update %d of %d, with a checkpoint: the same command with --resume goes on."


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
    ValueError for a plan that cannot be run, all of them before training starts; ValueError for a run that has changed
    no weight; SystemExit where SIGTERM stopped the training, after a checkpoint.
    """
    check_packages(plan.report_to)
    check_optimizer(plan.optimizer)
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
    record, stop = _record_stages(plan, trainer, checkpoint), StopOnTermination()
    if is_main:
        remove_unfinished(output / WORK_FOLDER)
    for callback in (record, stop):
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_kept(plan, trainer.state.global_step)) from None
    finally:
        stop.restore()
    updates = trainer.state.global_step
    if stop.stopped:
        if is_main:
            logger.warning(STOPPED, updates, trainer.state.max_steps)
        raise SystemExit(128 + signal.SIGTERM)
    check_trained(model, before, output, updates=updates, learning_rate=trainer.args.learning_rate)
    metrics = (_last_evaluation(trainer) or trainer.evaluate()) if plan.eval_data else {}
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if is_main:
        whole = trainer.accelerator.unwrap_model(trainer.model)
        if weights is not None:  # the model has a part of them
            whole, _ = load(plan)
            whole.load_state_dict(weights)
        save_trained_folder(plan, trainer, whole, processor, output, metrics, record.stages)
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(output, metrics, updates, is_main, skipped_pairs(trainer))


def _record_stages(plan: TrainingPlan, trainer: ContrastiveTrainer, checkpoint: Path | None) -> StageRecord:
    """Return the record of the run. Raises ValueError where it cannot go on from the checkpoint with this plan."""
    settings = {name: value for name, value in asdict(plan).items() if name not in ("output", "resume")}
    pairs, processes = count(trainer.train_dataset), trainer.args.world_size
    present = Stage(settings, plan.changed(), processes, pairs, versions())
    if checkpoint is None:
        return StageRecord(present)
    earlier = read_stages(checkpoint)
    check_resumption(present, earlier[-1])
    if trainer.is_world_process_zero():
        changes = "".join(
            f", {name} {quoted(after)} instead of {quoted(before)}"
            for name, (before, after) in present.changes(earlier[-1]).items()
        )
        logger.warning("Going on after update %d, from %s%s.", earlier[-1].last_update, checkpoint.name, changes)
    return StageRecord(present, earlier)


def _complete(plan: TrainingPlan, model: torch.nn.Module, pairs: PairDataset) -> TrainingPlan:
    """Return the plan with a value for every setting, and raise ValueError for pairs that cannot train a model."""
    check_captions(pairs)
    number = count(pairs)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    complete = choose_settings(plan, parameters=parameters, pairs=number, processes=processes)
    if plan.batch_size and complete.batch_size != plan.batch_size:
        each = f" for each of {processes} processes" if processes > 1 else ""
        say(f"Batches of {complete.batch_size}{each}, not {plan.batch_size}, because there are {number} pairs.")
    return complete


def _describe_start(plan: TrainingPlan, model: torch.nn.Module, pairs: PairDataset) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return describe_start(plan, trained=trained, pairs=count(pairs))


def _last_evaluation(trainer: ContrastiveTrainer) -> dict[str, float]:
    """Return the metrics of the evaluation after the last update, if there was one."""
    last = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    return next((dict(entry) for entry in reversed(last) if "eval_runtime" in entry), {})


def _what_is_kept(plan: TrainingPlan, updates: int) -> str:
    """Return what an interrupted run leaves behind, and how to go on."""
    if (checkpoint := last_whole_checkpoint(Path(plan.output, WORK_FOLDER))) is None:
        return f"interrupted at update {updates}, before the first checkpoint: remove {plan.output} and start again."
    return f"interrupted at update {updates}. {checkpoint} is kept: the same command with --resume goes on from there."


def dry_run(plan: TrainingPlan) -> MemoryEstimate:
    """Check and load all that the run needs, run one pair, and return the memory needed; nothing is written."""
    check_packages(plan.report_to)
    check_optimizer(plan.optimizer)
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
    """Raise OSError unless the folder can be written and the disk has room for the result and one checkpoint.

    Raises ValueError for a name that is not UTF-8, in which tokenizers' library cannot write: it would only say so
    after the first updates.
    """
    if os.fsencode(output).decode("utf-8", "replace") != str(output):
        raise ValueError(f"{output} is not in UTF-8, and no tokenizer can be written there. Choose another folder.")
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
    settings: dict[str, Any] = {} if plan.optimizer == OPTIMIZER else {"optim": plan.optimizer}
    if plan.gradient_checkpointing:
        name = _CHECKPOINTING if hasattr(ContrastiveTrainingArguments, _CHECKPOINTING) else "gradient_checkpointing"
        settings |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return settings


def _find_checkpoint(output: Path, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, or None to start afresh, for which the output must not hold anything."""
    if resume:
        if not (output / WORK_FOLDER).is_dir():
            raise FileNotFoundError(f"{output} has no checkpoint to resume from. Leave out --resume to start afresh.")
        checkpoint = last_whole_checkpoint(output / WORK_FOLDER)
        if checkpoint is None:
            logger.warning("%s has no checkpoint yet, so the run starts again from the beginning.", output)
        return checkpoint
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not output.is_dir():
            raise FileExistsError(f"{output} is a file, expected a folder to write.")
        raise FileExistsError(f"{output} is not empty. Choose another folder, or --resume the run that is in it.")
    return None
