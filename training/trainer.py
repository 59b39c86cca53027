"""A transformers `Trainer` for dual encoders: losses over all processes, large batches in slices, retrieval metrics."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from ..configuration import OtherFamily
from ..evaluation import retrieval_metrics, zero_shot_accuracy
from ..losses import LOSSES
from ..modeling import DualEncoderModel
from ..runtime import logit_scalars, shardable
from .labelled_images import LabelledImage
from .optimization import parameter_groups
from .pair_ids import pair_ids
from .random_state import ReplayRandomState, random_state
from .resumable_trainer import ResumableTrainer
from .schedules import SCHEDULES, rate_factor
from .streams import Stream

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ZeroShotTask:
    """Labelled images, and the texts of each class, whose embeddings are averaged.

    A label is an index into `class_texts`.
    """

    images: Dataset[LabelledImage]
    class_texts: Sequence[Sequence[str]]


class ContrastiveTrainer(ResumableTrainer):
    """Trains a dual encoder on pairs of images and texts.

    Each of several processes compares its images with the texts of all of them; the mean of their losses and gradients
    equals that of one process with the whole batch. Evaluation measures recall at 1, 5 and 10 in both directions over
    the whole evaluation set, and with `zero_shot` the accuracy on that task. Raises TypeError for another model, and
    ValueError for FSDP 1.
    """

    def __init__(self, *args: Any, zero_shot: ZeroShotTask | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self._dual_encoder, DualEncoderModel):
            raise TypeError(f"ContrastiveTrainer takes a twinlens DualEncoderModel, got {type(self.model)}.")
        if self.is_fsdp_enabled:
            if not self.accelerator.is_fsdp2:
                raise ValueError("Expected version 2 of FSDP, got 1: set fsdp_version to 2.")
            shardable(self._dual_encoder)
        self.zero_shot = zero_shot
        self.compute_metrics: Callable[[EvalPrediction], dict[str, float]] = (
            kwargs.get("compute_metrics") or _retrieval_metrics_of
        )
        self.add_callback(_SetCollatorEpoch())
        self.add_callback(_ClampScale(self._dual_encoder))

    def create_accelerator_and_postprocess(self) -> None:
        if isinstance(getattr(self.model, "traits", None), OtherFamily):
            self.args.ddp_find_unused_parameters = True  # transformers' classes may have parameters without use
        super().create_accelerator_and_postprocess()

    def _load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        encoder = self._dual_encoder
        if not isinstance(encoder.traits, OtherFamily) or hasattr(self.model, "peft_config"):
            super()._load_weights(checkpoint, model)
            return
        # transformers would take the names in the file for those in memory, and leave out weights where they differ.
        saved = type(encoder).from_pretrained(checkpoint, dtype=encoder.dtype)
        encoder.load_state_dict(saved.state_dict())

    @property
    def _dual_encoder(self) -> DualEncoderModel:
        """The model without the wrappers that distribute it or adapt it."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _group(self) -> torch.distributed.ProcessGroup | None:
        return torch.distributed.group.WORLD if self.args.world_size > 1 else None

    def _unshard(self) -> None:
        """Bring together what FSDP has divided of the model outside of its layers, until the next backward pass."""
        if self.is_fsdp_enabled:
            self.model.unshard()

    def _logit_scalars(self) -> list[nn.Parameter]:
        """Return the scale and bias of the logits, where they are trained."""
        self._unshard()
        return [parameter for parameter in self._dual_encoder.parameters(recurse=False) if parameter.requires_grad]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            model = model or self.model
            optimizer_class, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameter_groups(
                model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.args.layer_decay,
            )
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss: in training over the pairs of all processes, in evaluation over those of the batch."""
        group = self._group if model.training else None
        outputs = model(**_model_inputs(inputs), return_loss=True, group=group, pair_ids=self._pair_ids(inputs))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _pair_ids(self, inputs: Batch) -> Tensor | None:
        return None if self.args.duplicates_as_negatives else pair_ids(inputs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule of the learning rate; those of `SCHEDULES` have no update at rate 0."""
        schedule = str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type))
        if self.lr_scheduler is None and schedule in SCHEDULES:  # type: ignore[has-type]
            warmup = self.args.get_warmup_steps(num_training_steps)
            factor = partial(rate_factor, schedule, num_training_steps, warmup)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers, with the scale of the logits beside a loss."""
        if "loss" in logs:
            logs["scale"] = logit_scalars(self._dual_encoder)[0].detach().exp().item()
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader[Any]:
        args, loss = self.args, self._dual_encoder.traits.loss
        size, workers = args.per_device_train_batch_size, args.dataloader_num_workers
        check_batches(self.train_dataset, size, loss, processes=args.world_size, workers=workers)
        if isinstance(self.train_dataset, Stream):  # it divides itself between processes
            return DataLoader(
                self.train_dataset,
                self.args.per_device_train_batch_size,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                drop_last=True,
            )
        # A smaller last batch would have another loss, and its size could differ between processes. Evaluation, whose
        # data loader has the same setting, takes all pairs.
        self.args.dataloader_drop_last = True
        try:
            dataloader = super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = False
        if self.args.gradient_cache_size is not None:
            dataloader.device = None  # the batch stays in memory, and its slices go to the device one by one
        return dataloader

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        training: Any = self.data_collator  # type: ignore[has-type]
        # Evaluation takes whole images, and always the same one of several captions.
        self.data_collator = training.for_evaluation() if hasattr(training, "for_evaluation") else training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if self.args.gradient_cache_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._cached_step(model, inputs, self.args.gradient_cache_size)

    def _cached_step(self, model: nn.Module, inputs: Batch, size: int) -> Tensor:
        """Train on a batch in slices of `size` pairs, with the gradients of the whole batch (GradCache).

        1. Embed all slices without a graph. 2. Compute the loss and its gradients with respect to the embeddings.
        3. Embed each slice again, with the same dropout, and propagate its part of these gradients.
        """
        model.train()
        slices = list(_slices(_model_inputs(inputs), size))
        embeds, states = [], []
        for part in slices:
            states.append(random_state(self.args.device))
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**self._prepare_inputs(part))
            embeds.append((outputs.image_embeds, outputs.text_embeds))
        images, texts = (torch.cat(parts).requires_grad_() for parts in zip(*embeds, strict=True))  # (batch, dim)
        scalars, ids = self._logit_scalars(), self._pair_ids(inputs)
        loss = self._dual_encoder.loss(
            images, texts, self._group, pair_ids=None if ids is None else ids.to(images.device)
        )
        image_grads, text_grads, *scalar_grads = torch.autograd.grad(loss, [images, texts, *scalars])
        last = len(slices) - 1
        pieces = zip(slices, states, image_grads.split(size), text_grads.split(size), strict=True)
        for number, (part, state, image_grad, text_grad) in enumerate(pieces):
            # Under DDP, processes exchange gradients only once, with the last slice; FSDP keeps none undivided.
            is_kept = number < last and not self.is_fsdp_enabled
            with (
                self.accelerator.no_sync(model) if is_kept else nullcontext(),
                ReplayRandomState(state, self.args.device),
            ):
                with self.compute_loss_context_manager():
                    outputs = model(**self._prepare_inputs(part))
                product = (outputs.image_embeds * image_grad).sum() + (outputs.text_embeds * text_grad).sum()
                if number == last:
                    scalars = self._logit_scalars()
                    product = product + sum((p * g).sum() for p, g in zip(scalars, scalar_grads, strict=True))
                self.accelerator.backward(product)
        return loss.detach()

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None, Batch | None]:
        """Return no loss, the unit embeddings of images and texts, and the ids by which equal ones are recognised."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**_model_inputs(inputs))
        columns = dict(zip(("text_ids", "image_ids"), pair_ids(inputs).unbind(1), strict=False))
        return None, (outputs.image_embeds, outputs.text_embeds), columns

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # prediction_loss_only=False: transformers would set it to True because the inputs have no `labels`.
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if len(output.predictions[0]) > 1 or self._dual_encoder.traits.loss == "sigmoid":
            output.metrics[f"{metric_key_prefix}_loss"] = self._evaluation_loss(output)
        if self.zero_shot is not None:
            output.metrics[f"{metric_key_prefix}_zero_shot_accuracy"] = self._zero_shot_accuracy(self.zero_shot)
        return output

    def _evaluation_loss(self, output: EvalLoopOutput) -> float:
        """Return the loss of all pairs together, which depends neither on batches nor on processes."""
        encoder, device = self._dual_encoder, self.args.device
        images, texts = (torch.from_numpy(embeds).to(device) for embeds in output.predictions)
        columns = [torch.from_numpy(ids).to(device) for ids in output.label_ids.values()]
        ids = None if self.args.duplicates_as_negatives else torch.stack(columns, dim=1)
        with torch.no_grad():
            return LOSSES[encoder.traits.loss](images, texts, *logit_scalars(encoder), pair_ids=ids).item()

    def _zero_shot_accuracy(self, task: ZeroShotTask) -> float:
        """Return the accuracy. The embedding of a class is the normalised mean of those of its texts."""
        self._unshard()
        model, processor = self._dual_encoder, self.data_collator.processor
        size = self.args.per_device_eval_batch_size
        texts = [text for class_texts in task.class_texts for text in class_texts]
        embeds = model.encode(texts, processor, kind="text", batch_size=size)
        embeds_by_class = embeds.split([len(class_texts) for class_texts in task.class_texts])
        classes = nn.functional.normalize(torch.stack([embeds.mean(dim=0) for embeds in embeds_by_class]), dim=-1)
        samples = [task.images[index] for index in range(len(task.images))]  # type: ignore[arg-type]
        pictures = [sample["image"] for sample in samples]
        images = model.encode(pictures, processor, kind="image", batch_size=size)
        return zero_shot_accuracy(images, classes, torch.tensor([sample["label"] for sample in samples]))


class _SetCollatorEpoch(TrainerCallback):
    """Sets the epoch of the collator, on which random crops depend."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        train_dataloader: DataLoader[Any],
        **kwargs: Any,
    ) -> None:
        collator = train_dataloader.collate_fn
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch or 0))


class _ClampScale(TrainerCallback):
    """Keeps the scale of the logits below the limit of the family."""

    def __init__(self, model: DualEncoderModel) -> None:
        self.model = model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (limit := self.model.traits.max_logit_scale) is not None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=limit)


def check_batches(pairs: Any, batch_size: int, loss: str, *, processes: int = 1, workers: int = 0) -> None:
    """Raise ValueError where pairs make no batch for each process, or where the loss of a batch is always 0."""
    if isinstance(pairs, Stream):
        pairs.check_parts(processes * max(1, workers))
    if batch_size * processes == 1 and loss != "sigmoid":
        is_all = isinstance(pairs, Sized) and len(pairs) == 1
        needed = "bring at least 2 pairs, there is 1" if is_all else "choose at least 2"
        raise ValueError(f"The softmax loss of one pair is always 0, so a batch size of 1 trains nothing: {needed}.")
    if batch_size * processes == 1:
        logger.warning("A batch of one pair has no texts of other images to tell apart: choose a larger batch size.")
    if isinstance(pairs, Sized) and len(pairs) < batch_size * processes:
        each = f" for each of {processes} processes" if processes > 1 else ""
        most = len(pairs) // processes
        remedy = f"choose a batch size of at most {most}" if most else f"use at most {len(pairs)} processes"
        raise ValueError(
            f"A batch has {batch_size} pairs{each}, and there are {len(pairs)} pairs to train on: {remedy}, or bring "
            "more pairs."
        )


def _model_inputs(inputs: Mapping[str, Any]) -> Batch:
    return {name: value for name, value in inputs.items() if name != "image_ids"}


def _slices(inputs: Batch, size: int) -> Iterator[Batch]:
    names = list(inputs)
    for parts in zip(*(inputs[name].split(size) for name in names), strict=True):
        yield dict(zip(names, parts, strict=True))


def _retrieval_metrics_of(prediction: EvalPrediction) -> dict[str, float]:
    images, texts = (torch.from_numpy(embeds) for embeds in prediction.predictions)
    ids = {name: torch.from_numpy(values) for name, values in prediction.label_ids.items()}
    return retrieval_metrics(images, texts, image_ids=ids.get("image_ids"), text_ids=ids["text_ids"])
