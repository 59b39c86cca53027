"""The arguments of the trainer: transformers' own, with the defaults of contrastive learning and a few more."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """The arguments of transformers, with defaults for contrastive learning.

    `per_device_train_batch_size` is the number of pairs of one process. The loss compares the images of each process
    with the texts of all processes.
    """

    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    adam_beta2: float = 0.98  # as CLIP's Vision Transformers (arXiv:2103.00020, table 18)
    adam_epsilon: float = 1e-6
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    max_grad_norm: float = 0.0  # none, as CLIP and open_clip train
    logging_nan_inf_filter: bool = False  # which would show other numbers in place of these
    per_device_train_batch_size: int = 64
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)
    ddp_find_unused_parameters: bool | None = False  # there are none, and searching takes time
    report_to: None | str | list[str] = "none"  # noqa: RUF036 (HfArgumentParser reads no other order)
    gradient_cache_size: int | None = field(
        default=None,
        metadata={
            "help": "The number of pairs to embed at a time; the memory needed then depends on it, not on the batch "
            "size (GradCache, arXiv:2101.06983)."
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "The factor by which the learning rate falls from each layer to the layer below it."},
    )

    duplicates_as_negatives: bool = field(
        default=False,
        metadata={
            "help": "Count an image and an equal caption of another image as a pair that does not match; otherwise "
            "they are not compared."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_accumulation_steps > 1:
            size, parts = self.per_device_train_batch_size, self.gradient_accumulation_steps
            raise ValueError(
                f"gradient_accumulation_steps={parts} would compare the pairs of each part alone, another loss than "
                f"that of one batch: pass per_device_train_batch_size={size * parts} with "
                f"gradient_cache_size={size}, which needs as little memory."
            )
        if self.gradient_cache_size is not None and self.gradient_cache_size < 1:
            raise ValueError(f"gradient_cache_size must be at least 1 or None, got {self.gradient_cache_size}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}.")
