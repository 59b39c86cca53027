"""Contrastive losses: exact, in memory that grows with the batch and not with its square, over one process or many."""

from .sigmoid import SigmoidLoss, sigmoid_loss
from .softmax import SoftmaxLoss, softmax_loss
from .strips import strip_size

LOSSES: dict = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
