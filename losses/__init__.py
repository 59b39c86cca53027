"""Contrastive losses: exact, in memory that grows with the batch and not with its square, over one process or many."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .sigmoid import SigmoidLoss, sigmoid_loss
from .softmax import SoftmaxLoss, softmax_loss
from .strips import strip_size

LOSSES: dict[str, Callable[..., Tensor]] = {  # by the `loss` of a configuration
    "sigmoid": sigmoid_loss,
    "softmax": softmax_loss,
    "smoothed_softmax": partial(softmax_loss, label_smoothing=0.1),  # ALIGN's (arXiv:2102.05918, section 4.3)
}

__all__ = [
    "LOSSES",
    "SigmoidLoss",
    "SoftmaxLoss",
    "sigmoid_loss",
    "softmax_loss",
    "strip_size",
]
