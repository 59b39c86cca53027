"""Operations on the arrays of one rule: changes of shape or value, each with its inverse.

In the examples an official array is on the left, transformers' on the right; `(4, 2, 3)` is a shape.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import FormatError

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """A named change of values or shapes that can be undone bit by bit."""

    name: str
    forward: Callable[[list[Tensor]], list[Tensor]]
    reverse: Callable[[list[Tensor], list[Shape]], list[Tensor]]  # also takes the shapes that the sources had
    lossy: bool = False  # the sources have bits that `reverse` cannot know


def _one_to_one(
    name: str, forward: Callable[[Tensor], Tensor], reverse: Callable[[Tensor, Shape], Tensor]
) -> Operation:
    """Return the operation of one array, from functions that take and return the array itself, not a list of one."""

    def forward_list(sources: list[Tensor]) -> list[Tensor]:
        (source,) = sources
        return [forward(source)]

    def reverse_list(targets: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        (target,), (shape,) = targets, shapes
        return [reverse(target, shape)]

    return Operation(name, forward_list, reverse_list)


def join(operation: Operation) -> Operation:
    """Apply `operation` to the query, key and value of a pooling head, and concatenate them, as torch stores them.

    query/kernel, key/kernel, value/kernel (width, heads, head_dim) each -> in_proj_weight (3 * width, width)
    """
    return Operation(
        f"joined {operation.name}",
        lambda sources: [torch.cat([operation.forward([part])[0] for part in sources])],
        lambda targets, shapes: [
            operation.reverse([part], [shape])[0] for part, shape in zip(targets[0].chunk(3), shapes, strict=True)
        ],
    )


def stack(operation: Operation) -> Operation:
    """Apply `operation` to each entry of the leading axis of a scanned tower, which has one array for all layers.

    encoderblock/LayerNorm_0/scale (layers, width) -> layers.0.layer_norm1.weight (width,), layers.1...., ...
    """
    return Operation(
        f"stacked {operation.name}",
        lambda sources: [operation.forward([layer])[0] for layer in sources[0]],
        lambda targets, shapes: [torch.stack([operation.reverse([layer], [shapes[0][1:]])[0] for layer in targets])],
    )


def _without_identity_head(targets: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
    scale, bias, head_weight, head_bias = targets
    if not torch.equal(head_weight, torch.eye(len(bias)).to(head_weight)) or head_bias.any():
        raise FormatError("this layout has no text head, so the head must be the identity without bias; it is not.")
    return [scale, bias]


KEEP = _one_to_one("keep", lambda tensor: tensor, lambda tensor, shape: tensor)
# num_batches_tracked () of a batch norm, the only whole number among weights: it keeps its dtype everywhere.
COUNT = KEEP._replace(name="count")
# Where a file has none: running_var (width,) -> running_var (width,), num_batches_tracked () = 0
NO_COUNT = Operation(
    "no count",
    lambda sources: [*sources, torch.zeros((), dtype=torch.int64, device=sources[0].device)],
    lambda targets, shapes: targets[:1],
)
# query/bias (heads, head_dim) -> q_proj.bias (width,)
FLATTEN = _one_to_one("flatten", lambda tensor: tensor.flatten(), lambda tensor, shape: tensor.reshape(shape))
# pos_embedding (1, positions, width) -> position_embedding.weight (positions, width)
SQUEEZE = _one_to_one("squeeze", lambda tensor: tensor[0], lambda tensor, shape: tensor[None])
# flax kernels are (in, out), (in, heads, head_dim) or (heads, head_dim, out); torch weights are (out, in).
KERNEL = _one_to_one("kernel", lambda kernel: kernel.flatten(1).T, lambda weight, shape: weight.T.reshape(shape))
OUT_KERNEL = _one_to_one(
    "out kernel", lambda kernel: kernel.flatten(0, 1).T, lambda weight, shape: weight.T.reshape(shape)
)
# embedding/kernel (height, width, 3, out) -> patch_embedding.weight (out, 3, height, width)
PATCHES = _one_to_one("patches", lambda hwio: hwio.permute(3, 2, 0, 1), lambda oihw, shape: oihw.permute(2, 3, 1, 0))
# pos_embedding (rows, columns, width) -> position_embedding.weight (rows * columns, width)
GRID = _one_to_one("grid", lambda grid: grid.flatten(0, 1), lambda table, shape: table.reshape(shape))
# attn.in_proj_weight (3 * width, width) -> q_proj.weight, k_proj.weight, v_proj.weight (width, width) each
SPLIT = Operation("split", lambda sources: list(sources[0].chunk(3)), lambda targets, shapes: [torch.cat(targets)])
# attn_pool.q.weight (width, width), attn_pool.kv.weight (2 * width, width) -> in_proj_weight (3 * width, width)
CONCATENATE = Operation(
    "concatenate",
    lambda sources: [torch.cat(sources)],
    lambda targets, shapes: list(targets[0].split([shape[0] for shape in shapes])),
)
# The oldest big_vision files have two tables of text positions, and the model adds both to the tokens:
#     txt/pos_embedding + txt/Encoder_0/pos_embedding (1, positions, width) -> position_embedding.weight
# A sum does not tell what was added. So the layout keeps both tables (`Layout.merged_sources`) for the way back; where
# the sum was trained on, all of it goes into the first table, and the second is filled with -0.0: x + -0.0 is x for
# every float, whereas -0.0 + 0.0 would be 0.0, another bit.
ADD = Operation(
    "add",
    lambda sources: [(sources[0] + sources[1])[0]],
    lambda targets, shapes: [targets[0][None], torch.full_like(targets[0][None], -0.0)],
    lossy=True,
)
# Long-CLIP has two tables of text positions. Of the first, trained for 77 positions, it keeps the best trained ones and
# takes the rest from the second, which was stretched to 248 positions:
#     positional_embedding (positions, width), positional_embedding_res (positions, width)
#     -> position_embedding.weight (positions, width)
# Rows that are not used come back only where the layout keeps both tables (`Layout.merged_sources`).
KEPT_POSITIONS = 20
KEPT_THEN_STRETCHED = Operation(
    "kept, then stretched",
    lambda sources: [torch.cat([sources[0][:KEPT_POSITIONS], sources[1][KEPT_POSITIONS:]])],
    lambda targets, shapes: [targets[0], targets[0].clone()],
    lossy=True,
)
# Some CLIPs of open_clip have a logit_bias, which is zero, and transformers' CLIP has no such parameter:
#     logit_scale (), logit_bias () = 0 -> logit_scale ()
# `OpenClipLayout.detect` has refused a bias that is not zero.
DROP_ZERO = Operation(
    "drop zero", lambda sources: sources[:1], lambda targets, shapes: [targets[0], torch.zeros_like(targets[0])]
)
# Some SigLIPs have no projection after the text tower, and transformers has no class without one:
#     encoder_norm/scale, encoder_norm/bias (width,)
#     -> final_layer_norm.weight, .bias (width,), head.weight (width, width) = identity, head.bias (width,) = 0
IDENTITY_HEAD = Operation(
    "identity head",
    lambda sources: [*sources, torch.ones_like(sources[0]).diag(), torch.zeros_like(sources[1])],
    _without_identity_head,
)
