"""What a training run takes: parameters counted, memory measured on one pair and multiplied."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import CHUNK_SIZE

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """Parameters, and bytes in one process at the peak of an update."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments
    activations: int  # what the graph of the pairs that are embedded at a time keeps
    loss: int  # embeddings, their gradients, and strips of logits
    inputs: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss + self.inputs

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}

    def describe(self) -> str:
        """A fact a line."""
        lines = [f"{'parameters':<13}{self.parameters:,}, of which {self.trainable:,} are trained"]
        sizes = {name: size for name, size in self.to_dict().items() if name not in ("parameters", "trainable")}
        return "\n".join(lines + [f"{name:<13}{size / 1e6:,.1f} MB" for name, size in sizes.items()])


def estimate_memory(
    model: nn.Module, pair: dict[str, Tensor], *, batch_size: int, slice_size: int | None = None, bf16: bool = False
) -> Estimate:
    """Run `pair`, a batch of one, and scale what it keeps to `slice_size` pairs, or to the batch without slices.

    What a kernel takes and gives back within an operation, and what an allocator wastes, is not in it.
    """
    parameters = list(model.parameters())
    sizes = {id(parameter): parameter.numel() for parameter in parameters}
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    kept: dict[int, int] = {}  # by place in memory: several operations keep the same tensor
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place would be given to the next one
        return tensor

    alive: list[Any] = []
    names = ("pixel_values", "input_ids", "attention_mask", "pixel_attention_mask", "spatial_shapes")
    inputs = {name: pair[name] for name in names if name in pair}
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        outputs = model(**inputs)
    dim = outputs.image_embeds.shape[-1]
    return Estimate(
        parameters=sum(sizes.values()),
        trainable=trainable,
        weights=FLOAT * sum(sizes.values()),
        gradients=FLOAT * trainable,
        optimizer=2 * FLOAT * trainable,
        activations=sum(kept.values()) * min(slice_size or batch_size, batch_size),
        loss=FLOAT * batch_size * (4 * dim + min(CHUNK_SIZE, batch_size)),
        inputs=batch_size * sum(value.nbytes for value in inputs.values()),
    )
