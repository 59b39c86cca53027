"""Contrastive training: a trainer, its data, and what it measures. Names are imported when they are first used."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "ContrastiveCollator": "collator",
    "ContrastiveTrainer": "trainer",
    "ContrastiveTrainingArguments": "trainer",
    "RandomResizedCrop": "augmentation",
    "TrainingPlan": "plan",
    "ZeroShotTask": "trainer",
    "add_lora": "optimization",
    "dry_run": "run",
    "embed_images": "embedding",
    "embed_texts": "embedding",
    "estimate_memory": "memory",
    "few_shot_logits": "probes",
    "freeze": "optimization",
    "linear_probe": "probes",
    "load_pairs": "sources",
    "parameter_groups": "optimization",
    "retrieval_metrics": "metrics",
    "train": "run",
    "zero_shot_accuracy": "metrics",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
