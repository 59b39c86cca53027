"""What a training run takes: parameters counted, memory measured on one pair and multiplied."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..losses import strip_size

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
    count = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    names = ("pixel_values", "input_ids", "attention_mask", "pixel_attention_mask", "spatial_shapes")
    inputs = {name: pair[name] for name in names if name in pair}
    # Two against three: a batch of one shares memory that larger ones do not.
    two, dim = _kept(model, {name: torch.cat([value] * 2) for name, value in inputs.items()}, bf16)
    three, _ = _kept(model, {name: torch.cat([value] * 3) for name, value in inputs.items()}, bf16)
    pairs = min(slice_size or batch_size, batch_size)
    return Estimate(
        parameters=count,
        trainable=trainable,
        weights=FLOAT * count,
        gradients=FLOAT * trainable,
        optimizer=2 * FLOAT * trainable,
        activations=two + (three - two) * (pairs - 2),  # part of `two` does not grow with the pairs
        loss=FLOAT * batch_size * (4 * dim + strip_size(batch_size)),
        inputs=batch_size * sum(value.nbytes for value in inputs.values()),
    )


def _kept(model: nn.Module, inputs: dict[str, Tensor], bf16: bool) -> tuple[int, int]:
    """Bytes that the graph of a forward pass keeps, parameters aside; and the size of an embedding."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}  # by place in memory: several operations keep the same tensor
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place would be given to the next one
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        outputs = model(**inputs, return_loss=False)
    return sum(kept.values()), outputs.image_embeds.shape[-1]
