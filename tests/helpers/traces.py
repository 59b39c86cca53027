"""Models as functions of tensors, which traces and exporters take, and sizes that their example has not."""

from typing import Any

from torch import Tensor, nn

from twinlens.deployment.graphs import Graph, Tower
from twinlens.deployment.inputs import Case

# Numbers of images, texts, tokens and patches, all unlike those of `twinlens.deployment.inputs.EXAMPLE`.
OTHER_SIZES = [Case(1, 2, 5, 16), Case(4, 1, 12, 30), Case(2, 7, 9, 9)]


class Tuples(nn.Module):
    """A model that takes tensors by their places and gives the tensors among its outputs."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.train(model.training)  # exporters leave modules in the mode of the outermost one

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(value for value in outputs.values() if isinstance(value, Tensor))


class Inputs:
    """The inputs of a dual encoder, or of one of its towers, in any number."""

    def __init__(self, dual_encoder: Any, tower: Tower, masked: bool = True) -> None:
        self.dual_encoder = dual_encoder
        names = Graph.of(dual_encoder, tower).inputs
        self.names = tuple(name for name in names if masked or name != "attention_mask")

    def __call__(self, case: Case) -> tuple[Tensor, ...]:
        return tuple(case.inputs(self.dual_encoder, self.names).values())
