"""The training loops of three libraries on one start and the same batches, and what is recorded of their updates.

- twinlens: `ContrastiveTrainer`.
- transformers: its `CLIPModel` and `Trainer`.
- open_clip: its model, `ClipLoss` and `train_one_epoch`, put together as its command does.
"""

import math
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler
from transformers import CLIPModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import twinlens
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]  # gives `pixel_values` and `input_ids`, and perhaps more

BETAS, EPSILON = (0.9, 0.98), 1e-6  # of AdamW: CLIP's, which open_clip has too
OPEN_CLIP_BATCH, OPEN_CLIP_WARMUP, OPEN_CLIP_DECAY = 64, 10_000, 0.2  # the defaults of its command


@dataclass(frozen=True)
class Settings:
    """How a library trains; without `learning_rate` with its own defaults, but for the epochs.

    With it all train alike: pairs in their order, AdamW at a constant rate without decay, gradients as they are.
    """

    epochs: int = 1
    learning_rate: float | None = None
    batch_size: int = 64  # of all processes together
    parts: int = 1  # in which a batch is embedded: each library's own way to a batch that does not fit
    recorded: bool = False  # the loss of every update, and the gradients of the first
    local_loss: bool = False  # open_clip's --local-loss and --gather-with-grad


class Record(TrainerCallback):
    """The end of each update in seconds; with `full` its loss too, and the gradients of the first one."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self.losses: list[float] = []
        self.ends: list[float] = []
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        if self.full and not self.ends:
            named = ((name.removeprefix("module."), parameter.grad) for name, parameter in model.named_parameters())
            self.gradients = {name: grad.clone() for name, grad in named if grad is not None}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **kwargs: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []

    def add_scalar(self, name: str, value: float, update: int) -> None:
        """Take what open_clip writes for TensorBoard."""
        self.losses += [value] if name == "train/loss" else []

    def pairs_per_second(self, batch_size: int) -> float:
        """Return the rate of all updates but the first."""
        return batch_size * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])


def stack(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all samples together."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def processes() -> int:
    """Return how many processes train together: the number that torchrun gives."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _arguments(settings: Settings, folder: str) -> dict[str, Any]:
    """Return the arguments of both Trainers."""
    given = {
        "output_dir": folder, "num_train_epochs": settings.epochs, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1 if settings.recorded else 1000,
        "remove_unused_columns": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    if settings.learning_rate is None:
        return given
    return given | {
        "learning_rate": settings.learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": EPSILON, "weight_decay": 0.0,
        "max_grad_norm": 0.0, "train_sampling_strategy": "sequential",
    }  # fmt: skip


def train_with_twinlens(start: Path, data: Dataset[Any], collate: Collate, settings: Settings) -> tuple[Any, Record]:
    """Train with `ContrastiveTrainer`; a batch in parts is one of `gradient_cache_size`."""
    batch_size = settings.batch_size // processes()
    slices = batch_size // settings.parts if settings.parts > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        arguments = ContrastiveTrainingArguments(
            **_arguments(settings, folder), per_device_train_batch_size=batch_size, gradient_cache_size=slices
        )
        model = twinlens.DualEncoderModel.from_pretrained(start)
        return _run(ContrastiveTrainer(model, arguments, train_dataset=data, data_collator=collate), settings)


def train_with_transformers(
    start: Path, data: Dataset[Any], collate: Collate, settings: Settings
) -> tuple[Any, Record]:
    """Train with `Trainer`; a batch in parts is `gradient_accumulation_steps`, each with a loss of its own."""
    size = settings.batch_size // processes() // settings.parts
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": settings.parts}
    with tempfile.TemporaryDirectory() as folder:
        given = _arguments(settings, folder) | (sizes if settings.learning_rate else {})
        return _run(
            Trainer(
                CLIPModel.from_pretrained(start), TrainingArguments(**given), train_dataset=data,
                data_collator=lambda samples: {**collate(samples), "return_loss": True},
            ),
            settings,
        )  # fmt: skip


def _run(trainer: Trainer, settings: Settings) -> tuple[Any, Record]:
    record = Record(settings.recorded)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(record)
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model), record


def train_with_open_clip(start: Path, data: Any, collate: Collate, settings: Settings) -> tuple[Any, Record]:
    """Train as open_clip's command; a batch in parts is its --accum-freq."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    if world := processes() - 1:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank() if world else 0), world + 1
    model, record = peers.to_open_clip(start, torch.float32), Record(settings.recorded)
    model.output_dict = True
    trained: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = _optimizer_of_open_clip(model, settings)
    optimizer.register_step_pre_hook(lambda *_: record.on_pre_optimizer_step(None, None, None, model=trained))
    optimizer.register_step_post_hook(lambda *_: record.on_optimizer_step(None, None, None))
    loader = _loader_of_open_clip(data, collate, settings, world)
    source = Namespace(dataloader=loader, set_epoch=lambda epoch: None)
    options = Namespace(
        device="cpu", precision="fp32", distill=False, accum_freq=settings.parts, horovod=False, grad_clip_norm=None,
        skip_scheduler=settings.learning_rate is not None, log_every_n_steps=1 if settings.recorded else 100,
        batch_size=loader.batch_size, wandb=False, rank=rank, local_rank=rank, world_size=world,
    )  # fmt: skip
    loss = ClipLoss(settings.local_loss, settings.local_loss, cache_labels=True, rank=rank, world_size=world)
    updates = settings.epochs * (len(loader) // settings.parts)
    schedule = cosine_lr(optimizer, optimizer.defaults["lr"], OPEN_CLIP_WARMUP, updates)
    for epoch in range(settings.epochs):
        train_one_epoch(trained, {"train": source}, loss, epoch, optimizer, None, schedule, None, options, record)
    return model, record


def _optimizer_of_open_clip(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    from open_clip_train.params import get_default_params

    defaults, decay = get_default_params("ViT-B-32"), OPEN_CLIP_DECAY if settings.learning_rate is None else 0.0
    kept, decaying = [], []
    for name, parameter in model.named_parameters():
        is_kept = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (kept if is_kept else decaying).append(parameter)
    return torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.0}, {"params": decaying, "weight_decay": decay}],
        lr=settings.learning_rate or defaults["lr"],
        betas=(defaults["beta1"], defaults["beta2"]),
        eps=defaults["eps"],
    )


def _loader_of_open_clip(data: Any, collate: Collate, settings: Settings, world: int) -> Any:
    alike = settings.learning_rate is not None
    sampler: Any = DistributedSampler(data, shuffle=not alike) if world > 1 else SequentialSampler(data)
    size = (settings.batch_size if alike else OPEN_CLIP_BATCH) // world // settings.parts

    def to_tuple(samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        batch = collate(samples)
        return batch["pixel_values"], batch["input_ids"]

    order = {"sampler": sampler} if alike or world > 1 else {"shuffle": True}
    loader: Any = DataLoader(data, size, drop_last=True, collate_fn=to_tuple, **order)
    loader.num_batches, loader.num_samples = len(loader), len(loader) * size
    return loader


LIBRARIES = {
    "twinlens": train_with_twinlens,
    "transformers": train_with_transformers,
    "open_clip": train_with_open_clip,
}


def to_twinlens(model: Any, start: Path, folder: Path) -> Any:
    """Return what one of the libraries has trained as a model of twinlens, by way of a file."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return twinlens.DualEncoderModel.from_pretrained(folder)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text((start / "open_clip" / "open_clip_config.json").read_text())
    return twinlens.DualEncoderModel.from_pretrained(folder / "open_clip_pytorch_model.bin")


def reference_losses(start: Path, batches: Sequence[dict[str, Tensor]], rate: float) -> list[float]:
    """Return the losses of a loop in float64, in which an image is not compared with an equal caption of another."""
    model = CLIPModel.from_pretrained(start, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    losses = []
    for batch in batches:
        ids = batch["input_ids"]
        outputs = model(pixel_values=batch["pixel_values"].double(), input_ids=ids)
        equal = (ids[:, None] == ids).all(dim=2).fill_diagonal_(False)
        logits, own = outputs.logits_per_image.masked_fill(equal, -torch.inf), torch.arange(len(ids))
        loss = (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.t(), own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
    return losses
