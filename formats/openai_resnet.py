"""The ResNet of OpenAI's CLIP (openai/CLIP, clip/model.py, `ModifiedResNet`): rules of its names, and its geometry."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .layout import number_of_layers
from .operations import COUNT, NO_COUNT
from .table import Rule, expand, rule

_STATISTICS = ("weight", "bias", "running_mean")
POOLING = (
    rule("attnpool.positional_embedding", "head.position_embedding.weight", ".positions 64*.stem"),
    *(
        rule(f"attnpool.{source}.{part}", f"head.{target}.{part}", shape)
        for source, target, size in (
            ("q_proj", "q_proj", "64*.stem"),
            ("k_proj", "k_proj", "64*.stem"),
            ("v_proj", "v_proj", "64*.stem"),
            ("c_proj", "out_proj", "embed"),
        )
        for part, shape in (("weight", f"{size} 64*.stem"), ("bias", size))
    ),
)


def stages_of(names: Mapping[str, Tensor], source: str = "visual.") -> list[int]:
    """Return the number of blocks in each of the four stages, [] where the tower below `source` is no ResNet."""
    if not any(name.startswith(f"{source}layer1.") for name in names):
        return []
    return [number_of_layers(names, rf"{re.escape(source)}layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]


def counts_batches(names: Mapping[str, Tensor]) -> bool:
    """Return whether batch norms have their `num_batches_tracked`, which PyTorch before 0.4.1 did not have."""
    return any(name.endswith(".num_batches_tracked") for name in names)


def resnet_rules(stages: Sequence[int], batch_counts: bool, source: str) -> list[Rule]:
    """Return the rules of the image tower, whose official names begin with `source`."""
    return expand([*_convolution_rules(stages, batch_counts), *POOLING], "vision", source, "vision_model.")


def resnet_fields(sizes: Mapping[str, int], stages: Sequence[int], heads: int) -> dict[str, Any]:
    """Return the fields of the image tower's configuration that are not those of every CLIP."""
    return {"hidden_size": 64 * sizes["vision.stem"], "depths": list(stages), "num_attention_heads": heads}


def _convolution_rules(stages: Sequence[int], batch_counts: bool) -> Iterator[Rule]:
    """Yield the rules of convolutions and batch norms, whose widths are multiples of the stem's first convolution."""

    def convolution(conv: str, norm: str, target: str, width: int, into: int, kernel: int) -> Iterator[Rule]:
        size = f"{width}*.stem" if width > 1 else ".stem"
        channels = f"{into}*.stem" if into else "3"
        yield rule(f"{conv}.weight", f"{target}.conv.weight", f"{size} {channels} {kernel} {kernel}")
        for part in _STATISTICS:
            yield rule(f"{norm}.{part}", f"{target}.norm.{part}", size)
        variance, count = f"{target}.norm.running_var", f"{target}.norm.num_batches_tracked"
        if batch_counts:
            yield rule(f"{norm}.running_var", variance, size)
            yield rule(f"{norm}.num_batches_tracked", count, "", COUNT)
        else:
            yield rule(f"{norm}.running_var", f"{variance} {count}", size, NO_COUNT)

    for number, (width, into) in enumerate(((1, 0), (1, 1), (2, 1))):
        yield from convolution(f"conv{number + 1}", f"bn{number + 1}", f"embeddings.{number}", width, into, 3)
    into = 2
    for stage, blocks in enumerate(stages, 1):
        width = 2**stage
        for number in range(blocks):
            source, target = f"layer{stage}.{number}.", f"layers.{stage - 1}.{number}."
            convolutions = [("1", width, into, 1), ("2", width, width, 3), ("3", 4 * width, width, 1)]
            for name, *sizes in convolutions:
                yield from convolution(f"{source}conv{name}", f"{source}bn{name}", f"{target}conv{name}", *sizes)
            if number == 0:
                names = (f"{source}downsample.0", f"{source}downsample.1", f"{target}downsample")
                yield from convolution(*names, 4 * width, into, 1)
            into = 4 * width
