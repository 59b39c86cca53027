"""A transformers `Trainer` for dual encoders: losses over all processes, large batches in slices, retrieval metrics."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..evaluation import retrieval_metrics, zero_shot_accuracy
from ..inference import embed_images, embed_texts
from ..modeling import DualEncoderModel
from .optimization import parameter_groups
from .sources import Stream

Batch = dict[str, Any]


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """transformers' arguments, with defaults for contrastive learning.

    `per_device_train_batch_size` is what one process compares with itself and, around the ring, with all others.
    """

    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    adam_beta2: float = 0.98  # CLIP's, for its Vision Transformers (arXiv:2103.00020, table 18)
    adam_epsilon: float = 1e-6
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    per_device_train_batch_size: int = 64
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)
    ddp_find_unused_parameters: bool | None = False  # there are none, and looking for them takes time
    report_to: Any = "none"
    gradient_cache_size: int | None = field(
        default=None,
        metadata={"help": "Embed so many pairs at a time; memory then follows this, not the batch (arXiv:2101.06983)."},
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer to the one below it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_cache_size is not None and self.gradient_cache_size < 1:
            raise ValueError(f"gradient_cache_size must be at least 1 or None, got {self.gradient_cache_size}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}.")


@dataclass(frozen=True)
class ZeroShotTask:
    """Labelled images, and texts that describe each class; several texts of one class are averaged.

    `images` yields {"image": ..., "label": the place in `class_texts`}.
    """

    images: Dataset[Any]
    class_texts: Sequence[Sequence[str]]


class ContrastiveTrainer(Trainer):
    """Train a dual encoder on pairs of images and texts.

    Of several processes each compares its images with the texts of all, and the mean over them of losses and gradients
    is that of one process with the whole batch. Evaluation gives recall at 1, 5 and 10 in both directions over the
    whole evaluation set, and with `zero_shot` the accuracy of that task.
    """

    def __init__(self, *args: Any, zero_shot: ZeroShotTask | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self._dual_encoder, DualEncoderModel):
            raise TypeError(f"ContrastiveTrainer takes a twinlens DualEncoderModel, got a {type(self.model)}.")
        if self.is_fsdp_enabled:
            self._check_fsdp()
        self.zero_shot = zero_shot
        self.compute_metrics: Any = kwargs.get("compute_metrics") or _metrics_of_pairs
        self.add_callback(_EpochToCollator())
        self.add_callback(_ClampScale(self._dual_encoder))

    def _check_fsdp(self) -> None:
        if self.args.gradient_cache_size is not None:
            raise ValueError("gradient_cache_size works in one process or under DDP, not with FSDP: leave it out.")
        if scalars := [name for name, parameter in self.model.named_parameters() if parameter.ndim == 0]:
            raise ValueError(f"FSDP cannot shard {', '.join(scalars)}, which is a single number: train under DDP.")

    @property
    def _dual_encoder(self) -> DualEncoderModel:
        """The model without what distributes it or adapts it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _group(self) -> torch.distributed.ProcessGroup | None:
        return torch.distributed.group.WORLD if self.args.world_size > 1 else None

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
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The family's loss: in training over the pairs of all processes, in evaluation over those of the batch."""
        outputs = model(**_model_inputs(inputs), return_loss=True, group=self._group if model.training else None)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, Stream):  # which shares itself out between processes
            return DataLoader(
                self.train_dataset,
                self.args.per_device_train_batch_size,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                drop_last=True,
            )
        # A smaller last batch would have another loss, and another size in every process. Evaluations take all pairs.
        self.args.dataloader_drop_last = True
        try:
            dataloader = super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = False
        if self.args.gradient_cache_size is not None:
            dataloader.device = None  # the batch waits in memory; each slice of it goes to the device by itself
        return dataloader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        training: Any = self.data_collator  # type: ignore[has-type]
        # Whole images, and the same caption of several at any time.
        self.data_collator = training.for_evaluation() if hasattr(training, "for_evaluation") else training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        if self.args.gradient_cache_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._cached_step(model, inputs, self.args.gradient_cache_size)

    def _cached_step(self, model: nn.Module, inputs: Batch, size: int) -> Tensor:
        """Embed without a graph, take the loss's gradient at the embeddings, then embed again slice by slice with it.

        The gradients are those of the whole batch at once: attention dropout is drawn alike in both passes.
        """
        model.train()
        slices = list(_slices(_model_inputs(inputs), size))
        embeds, states = [], []
        for part in slices:
            states.append(_random_state(self.args.device))
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**self._prepare_inputs(part))
            embeds.append((outputs.image_embeds, outputs.text_embeds))
        images, texts = (torch.cat(parts).requires_grad_() for parts in zip(*embeds, strict=True))  # (batch, dim)
        own = self._dual_encoder
        scalars = [p for p in (own.logit_scale, getattr(own, "logit_bias", None)) if p is not None and p.requires_grad]
        loss = own.loss(images, texts, self._group)
        image_grads, text_grads, *scalar_grads = torch.autograd.grad(loss, [images, texts, *scalars])
        last = len(slices) - 1
        pieces = zip(slices, states, image_grads.split(size), text_grads.split(size), strict=True)
        for number, (part, state, image_grad, text_grad) in enumerate(pieces):
            # Gradients of several processes meet once, with the last slice.
            with (
                self.accelerator.no_sync(model) if number < last else nullcontext(),
                _Replayed(state, self.args.device),
            ):
                with self.compute_loss_context_manager():
                    outputs = model(**self._prepare_inputs(part))
                product = (outputs.image_embeds * image_grad).sum() + (outputs.text_embeds * text_grad).sum()
                if number == last:
                    product = product + sum((p * g).sum() for p, g in zip(scalars, scalar_grads, strict=True))
                self.accelerator.backward(product / self.current_gradient_accumulation_steps)
        return loss.detach() / self.current_gradient_accumulation_steps

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Loss, unit embeddings of both sides, and what tells images and texts apart."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        labels = {"text_ids": inputs["input_ids"]}
        if "image_ids" in inputs:
            labels["image_ids"] = inputs["image_ids"]
        return loss, (outputs.image_embeds, outputs.text_embeds), labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # transformers leaves embeddings out where it sees no `labels` among the inputs; here pairs are their own.
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if self.zero_shot is not None:
            output.metrics[f"{metric_key_prefix}_zero_shot_accuracy"] = self._zero_shot_accuracy(self.zero_shot)
        return output

    def _zero_shot_accuracy(self, task: ZeroShotTask) -> float:
        """The mean of a class's unit embeddings, normalised again, is its direction."""
        parts = self._dual_encoder.eval(), self.data_collator.processor
        size = self.args.per_device_eval_batch_size
        texts = [text for of_class in task.class_texts for text in of_class]
        means = embed_texts(*parts, texts, batch_size=size).split([len(of_class) for of_class in task.class_texts])
        classes = nn.functional.normalize(torch.stack([mean.mean(dim=0) for mean in means]), dim=-1)
        samples = [task.images[index] for index in range(len(task.images))]  # type: ignore[arg-type]
        images = embed_images(*parts, [sample["image"] for sample in samples], batch_size=size)
        return zero_shot_accuracy(images, classes, torch.tensor([sample["label"] for sample in samples]))


class _EpochToCollator(TrainerCallback):
    """Tell the collator which epoch it is, on which its augmentation depends."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(collator := train_dataloader.collate_fn, "set_epoch"):
            collator.set_epoch(int(state.epoch or 0))


class _ClampScale(TrainerCallback):
    """Keep the scale below the family's limit."""

    def __init__(self, model: DualEncoderModel) -> None:
        self.model = model

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (limit := self.model.config.max_logit_scale) is not None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=limit)


class _Replayed:
    """Within it, random numbers are those of an earlier moment; after it, those that would have come anyway."""

    def __init__(self, state: list[Tensor], device: torch.device) -> None:
        self.state, self.device = state, device

    def __enter__(self) -> None:
        self.present = _random_state(self.device)
        _set_random_state(self.state, self.device)

    def __exit__(self, *error: object) -> None:
        _set_random_state(self.present, self.device)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _model_inputs(inputs: Mapping[str, Any]) -> Batch:
    return {name: value for name, value in inputs.items() if name != "image_ids"}


def _slices(inputs: Batch, size: int) -> Iterator[Batch]:
    names = list(inputs)
    for parts in zip(*(inputs[name].split(size) for name in names), strict=True):
        yield dict(zip(names, parts, strict=True))


def _metrics_of_pairs(prediction: EvalPrediction) -> dict[str, float]:
    images, texts = (torch.from_numpy(embeds) for embeds in prediction.predictions)
    labels: Any = prediction.label_ids
    ids: dict[str, Any] = {name: torch.from_numpy(values) for name, values in labels.items()}
    return retrieval_metrics(images, texts, **ids)
