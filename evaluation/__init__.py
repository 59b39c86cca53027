"""What a model is worth: retrieval metrics, zero-shot accuracy, and classifiers on frozen embeddings."""

from .metrics import retrieval_metrics, zero_shot_accuracy
from .probes import few_shot_logits, linear_probe

__all__ = ["few_shot_logits", "linear_probe", "retrieval_metrics", "zero_shot_accuracy"]
