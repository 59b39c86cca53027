"""Conversion as data: rows of names, shapes and reversible operations, and the engine that checks and applies them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class FormatError(ValueError):
    """A source that is not a checkpoint we can read; the message says what was expected, what was given, what to do."""


class Operation(NamedTuple):
    """A named change of values or shapes that can be undone bit by bit."""

    name: str
    forward: Callable[[list[Tensor]], list[Tensor]]
    reverse: Callable[[list[Tensor], list[Shape]], list[Tensor]]  # is also given the shapes that the sources had
    lossy: bool = False  # the sources have bits that `reverse` cannot know


def _one(name: str, forward: Callable[[Tensor], Tensor], reverse: Callable[[Tensor, Shape], Tensor]) -> Operation:
    return Operation(name, lambda given: [forward(given[0])], lambda given, shapes: [reverse(given[0], shapes[0])])


def join(operation: Operation) -> Operation:
    """Apply `operation` to query, key and value, and concatenate them: what `in_proj` holds."""
    return Operation(
        f"joined {operation.name}",
        lambda given: [torch.cat([operation.forward([part])[0] for part in given])],
        lambda given, shapes: [
            operation.reverse([part], [shape])[0] for part, shape in zip(given[0].chunk(3), shapes, strict=True)
        ],
    )


def stack(operation: Operation) -> Operation:
    """Apply `operation` to each entry of the leading axis: one array for all layers -> one tensor a layer."""
    return Operation(
        f"stacked {operation.name}",
        lambda given: [operation.forward([layer])[0] for layer in given[0]],
        lambda given, shapes: [torch.stack([operation.reverse([layer], [shapes[0][1:]])[0] for layer in given])],
    )


def _without_identity_head(given: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
    scale, bias, head_weight, head_bias = given
    if not torch.equal(head_weight, torch.eye(len(bias)).to(head_weight)) or head_bias.any():
        raise FormatError("this layout has no text head, so the head must be the identity without bias; it is not.")
    return [scale, bias]


KEEP = _one("keep", lambda tensor: tensor, lambda tensor, shape: tensor)
FLATTEN = _one("flatten", lambda tensor: tensor.flatten(), lambda tensor, shape: tensor.reshape(shape))
SQUEEZE = _one("squeeze", lambda tensor: tensor[0], lambda tensor, shape: tensor[None])
# flax kernels are (in, out), (in, heads, head_dim) or (heads, head_dim, out); torch weights are (out, in).
KERNEL = _one("kernel", lambda kernel: kernel.flatten(1).T, lambda weight, shape: weight.T.reshape(shape))
OUT_KERNEL = _one("out kernel", lambda kernel: kernel.flatten(0, 1).T, lambda weight, shape: weight.T.reshape(shape))
PATCHES = _one("patches", lambda hwio: hwio.permute(3, 2, 0, 1), lambda oihw, shape: oihw.permute(2, 3, 1, 0))
SPLIT = Operation("split", lambda given: list(given[0].chunk(3)), lambda given, shapes: [torch.cat(given)])
CONCATENATE = Operation(
    "concatenate",
    lambda given: [torch.cat(given)],
    lambda given, shapes: list(given[0].split([shape[0] for shape in shapes])),
)
# Adding -0.0 leaves every number as it is, the sign of zero included.
ADD = Operation(
    "add",
    lambda given: [(given[0] + given[1])[0]],
    lambda given, shapes: [given[0][None], torch.full_like(given[0][None], -0.0)],
    lossy=True,
)
# A second source that is zero, and that transformers has no place for.
DROP_ZERO = Operation(
    "drop zero", lambda given: given[:1], lambda given, shapes: [given[0], torch.zeros_like(given[0])]
)
IDENTITY_HEAD = Operation(
    "identity head",
    lambda given: [*given, torch.ones_like(given[0]).diag(), torch.zeros_like(given[1])],
    _without_identity_head,
)


class Row(NamedTuple):
    """Official names -> transformers' names. `shapes` are those of the sources, in numbers and named sizes."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    operation: Operation


def row(sources: str, targets: str, shape: str, operation: Operation = KEEP) -> Row:
    """A row from names separated by blanks. A size is `4`, `embed`, `.width` (of the tower at hand) or `3*.width`.

    Sources that differ in shape have theirs separated by `|`.
    """
    names, shapes = tuple(sources.split()), tuple(tuple(sizes.split()) for sizes in shape.split("|"))
    return Row(names, tuple(targets.split()), shapes if len(shapes) > 1 else shapes * len(names), operation)


def expand(rows: Sequence[Row], tower: str, source: str = "", target: str = "") -> list[Row]:
    """The rows of one tower, with prefixes."""
    return [
        Row(
            tuple(source + name for name in row.sources),
            tuple(target + name for name in row.targets),
            tuple(tuple(size.replace(".", f"{tower}.") for size in shape) for shape in row.shapes),
            row.operation,
        )
        for row in rows
    ]


def expand_layers(rows: Sequence[Row], tower: str, layers: int, source: str, target: str) -> list[Row]:
    """The rows of each layer; `{n}` is its number. A `source` without `{n}` holds all layers on a leading axis."""
    if "{n}" in source:
        return [row for n in range(layers) for row in expand(rows, tower, source.format(n=n), target.format(n=n))]
    return [
        Row(
            row.sources,
            tuple(row.targets[0].format(n=n) for n in range(layers)),
            tuple((f"{tower}.layers", *shape) for shape in row.shapes),
            stack(row.operation),
        )
        for row in expand(rows, tower, source, target)
    ]


def solve(table: Sequence[Row], tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], list[str]]:
    """The sizes that the shapes state, and everything in which `tensors` is not what `table` describes."""
    sizes: dict[str, int] = {}
    expected = {name: shape for row in table for name, shape in zip(row.sources, row.shapes, strict=True)}
    violations = _compare_names(expected, tensors)
    for name, shape in expected.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        given = tuple(tensor.shape)
        for symbol, size in zip(shape, given, strict=False):
            if "*" not in symbol and not symbol.isdigit():
                sizes.setdefault(symbol, size)
        if 0 in given or tuple(_size(symbol, sizes) for symbol in shape) != given:
            wanted = ", ".join(symbol if symbol.isdigit() else f"{symbol}={_size(symbol, sizes)}" for symbol in shape)
            violations.append(f"{name} has shape {given}, expected ({wanted})")
        if not tensor.is_floating_point():
            violations.append(f"{name} has dtype {tensor.dtype}, expected floating point")
        elif not is_finite(tensor):
            violations.append(f"{name} has NaN or infinite values")
    return sizes, violations


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the smallest and the largest tell, twenty times faster than a mask."""
    return not tensor.numel() or all(math.isfinite(value.item()) for value in tensor.aminmax())


def to_transformers(table: Sequence[Row], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that `solve` found no fault with, in transformers' names and shapes, one at a time."""
    for row in table:
        for name, tensor in zip(row.targets, row.operation.forward([tensors[n] for n in row.sources]), strict=True):
            yield name, tensor.contiguous()


def targets(table: Sequence[Row], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The names and shapes that `to_transformers` gives."""
    shapes: dict[str, Shape] = {}
    for row in table:
        models = row.operation.forward([torch.empty(shape, device="meta") for shape in _shapes(row, sizes)])
        shapes |= {name: tuple(model.shape) for name, model in zip(row.targets, models, strict=True)}
    return shapes


def to_official(table: Sequence[Row], state_dict: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The reverse of `to_transformers`. Raises FormatError with every name and shape that does not fit."""
    expected = targets(table, sizes)
    violations = _compare_names(expected, state_dict) + [
        f"{name} has shape {tuple(state_dict[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state_dict and state_dict[name].shape != shape
    ]
    if violations:
        raise FormatError(f"the weights do not fit the official layout: {'; '.join(violations)}.")
    official: dict[str, Tensor] = {}
    for row in table:
        sources = row.operation.reverse([state_dict[name] for name in row.targets], _shapes(row, sizes))
        official |= {name: own(tensor) for name, tensor in zip(row.sources, sources, strict=True)}
    return official


def _shapes(row: Row, sizes: Mapping[str, int]) -> list[Shape]:
    return [tuple(_size(symbol, sizes) or 0 for symbol in shape) for shape in row.shapes]


def _compare_names(expected: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in given]
    return missing + [f"{name} is not expected" for name in given if name not in expected]


def _size(symbol: str, sizes: Mapping[str, int]) -> int | None:
    factor, _, name = symbol.rpartition("*")
    size = int(name) if name.isdigit() else sizes.get(name)
    return None if size is None else size * int(factor or 1)


def own(tensor: Tensor) -> Tensor:
    """`tensor`, contiguous and alone in its memory: what safetensors and `torch.save` expect."""
    tensor = tensor.contiguous()
    aligned = tensor.data_ptr() % tensor.element_size() == 0  # nothing in a .npz file is
    return tensor if aligned and tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
