"""An estimate of what a training run needs: parameters are counted, memory is measured on a few pairs and scaled."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..losses import strip_size

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """The number of parameters, and the bytes in one process at the peak of an update."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int  # the two moments of AdamW
    activations: int  # that autograd saves, for the pairs that are embedded at a time
    loss: int  # embeddings, their gradients, and strips of logits
    inputs: int  # pixels and tokens of the batch

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss + self.inputs

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}

    def describe(self) -> str:
        """Return a text with one line for each number."""
        lines = [f"{'parameters':<13}{self.parameters:,}, of which {self.trainable:,} are trained"]
        sizes = {name: size for name, size in self.to_dict().items() if name not in ("parameters", "trainable")}
        return "\n".join(lines + [f"{name:<13}{size / 1e6:,.1f} MB" for name, size in sizes.items()])


def estimate_memory(
    model: nn.Module, pair: dict[str, Tensor], *, batch_size: int, slice_size: int | None = None, bf16: bool = False
) -> MemoryEstimate:
    """Estimate the memory of training from `pair`, a batch of one.

    Activations are measured on copies of it and scaled to `slice_size` pairs, or to `batch_size` without slices. The
    temporary memory of operations, and what the allocator wastes, is not included.
    """
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    inputs = {name: value for name, value in pair.items() if name != "image_ids"}
    # Batches of two and three, because in a batch of one some tensors share memory that otherwise do not.
    two, dim = _saved_bytes(model, {name: torch.cat([value] * 2) for name, value in inputs.items()}, bf16)
    three, _ = _saved_bytes(model, {name: torch.cat([value] * 3) for name, value in inputs.items()}, bf16)
    pairs = min(slice_size or batch_size, batch_size)
    return MemoryEstimate(
        parameters=count,
        trainable=trainable,
        weights=FLOAT32_BYTES * count,
        gradients=FLOAT32_BYTES * trainable,
        optimizer=2 * FLOAT32_BYTES * trainable,
        activations=two + (three - two) * (pairs - 2),  # a part of `two` does not grow with the pairs
        loss=FLOAT32_BYTES * batch_size * (4 * dim + strip_size(batch_size)),
        inputs=batch_size * sum(value.nbytes for value in inputs.values()),
    )


def _saved_bytes(model: nn.Module, inputs: dict[str, Tensor], bf16: bool) -> tuple[int, int]:
    """Return the bytes that autograd saves in a forward pass, without parameters, and the size of an embedding."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}  # address -> bytes, because several operations save the same tensor
    alive: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # otherwise the next tensor could get its address
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        outputs = model(**inputs, return_loss=False)
    return sum(saved.values()), outputs.image_embeds.shape[-1]
