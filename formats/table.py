"""Conversion as data: rules of names, shapes and operations, and the engine that checks and applies a table of them.

A rule of the table of SigLIP, for instance, reads

    rule("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", ".width .mlp", KERNEL)

which says that one official array, of shape (width, mlp), becomes the parameter on the right by the operation KERNEL.
`expand_layers` writes the rule out for every layer of a tower: for layer 3, the names become
`img/Transformer/encoderblock_3/MlpBlock_0/...` and `vision_model.encoder.layers.3.mlp...`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..messages import listed, shown
from .errors import FormatError
from .finite import is_finite
from .operations import COUNT, KEEP, Operation, Shape, stack

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of which all operations are known


class Rule(NamedTuple):
    """Official names -> transformers' names. `shapes` are the shapes of the sources, in numbers and named sizes."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    operation: Operation


def rule(sources: str, targets: str, shape: str, operation: Operation = KEEP) -> Rule:
    """Return a rule from names separated by blanks.

    A size is `4`, `embed`, `.width` (of the tower at hand) or `3*.width`. The shapes of sources that differ in shape
    are separated by `|`.
    """
    names, shapes = tuple(sources.split()), tuple(tuple(sizes.split()) for sizes in shape.split("|"))
    return Rule(names, tuple(targets.split()), shapes if len(shapes) > 1 else shapes * len(names), operation)


def prefixed(rules: Sequence[Rule], source: str, target: str = "") -> list[Rule]:
    """Return rules with prefixes before the names on both sides."""
    if not source and not target:
        return list(rules)
    return [
        rule._replace(
            sources=tuple(source + name for name in rule.sources), targets=tuple(target + name for name in rule.targets)
        )
        for rule in rules
    ]


def expand(rules: Sequence[Rule], tower: str, source: str = "", target: str = "") -> list[Rule]:
    """Return the rules of one tower, with prefixes before the names on both sides."""
    sized = [
        rule._replace(shapes=tuple(tuple(size.replace(".", f"{tower}.") for size in shape) for shape in rule.shapes))
        for rule in rules
    ]
    return prefixed(sized, source, target)


def expand_layers(rules: Sequence[Rule], tower: str, layers: int, source: str, target: str) -> list[Rule]:
    """Return the rules of every layer, whose number is `{n}`.

    A `source` without `{n}` holds all layers on a leading axis.
    """
    if "{n}" in source:
        sized = expand(rules, tower)
        return [rule for n in range(layers) for rule in prefixed(sized, source.format(n=n), target.format(n=n))]
    return [
        Rule(
            rule.sources,
            tuple(rule.targets[0].format(n=n) for n in range(layers)),
            tuple((f"{tower}.layers", *shape) for shape in rule.shapes),
            stack(rule.operation),
        )
        for rule in expand(rules, tower, source, target)
    ]


def solve(table: Sequence[Rule], tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], list[str]]:
    """Return the named sizes that the shapes state, and every way in which `tensors` is not what `table` describes."""
    sizes: dict[str, int] = {}
    expected = {name: shape for rule in table for name, shape in zip(rule.sources, rule.shapes, strict=True)}
    counts = {name for rule in table if rule.operation is COUNT for name in rule.sources}
    violations = _compare_names(expected, tensors)
    for name, shape in expected.items():
        if (tensor := tensors.get(name)) is None:
            continue
        actual = tuple(tensor.shape)
        for symbol, size in zip(shape, actual, strict=False):
            if "*" not in symbol and not symbol.isdigit():
                sizes.setdefault(symbol, size)
        if 0 in actual or tuple(_size(symbol, sizes) for symbol in shape) != actual:
            wording = ", ".join(symbol if symbol.isdigit() else f"{symbol}={_size(symbol, sizes)}" for symbol in shape)
            violations.append(f"{name} has shape {actual}, expected ({wording})")
        if name in counts:
            if tensor.dtype != torch.int64:
                violations.append(f"{name} has dtype {tensor.dtype}, expected torch.int64")
        elif tensor.dtype not in _FLOATING:
            violations.append(f"{name} has dtype {tensor.dtype}, expected floating point of 16, 32 or 64 bits")
        elif not is_finite(tensor):
            violations.append(f"{name} has NaN or infinite values")
    return sizes, violations


def to_transformers(table: Sequence[Rule], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that `solve` found no fault with in transformers' names and shapes, one at a time."""
    for rule in table:
        for name, tensor in zip(rule.targets, rule.operation.forward([tensors[n] for n in rule.sources]), strict=True):
            yield name, tensor.contiguous()


def targets(table: Sequence[Rule], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Return the names and shapes of what `to_transformers` yields."""
    shapes: dict[str, Shape] = {}
    for rule in table:
        outputs = sources = _shapes(rule, sizes)
        if rule.operation is not KEEP:
            results = rule.operation.forward([torch.empty(shape, device="meta") for shape in sources])
            outputs = [tuple(result.shape) for result in results]
        shapes |= zip(rule.targets, outputs, strict=True)
    return shapes


def to_official(table: Sequence[Rule], state_dict: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the official tensors: the reverse of `to_transformers`.

    Raises FormatError with every name and shape that does not fit.
    """
    expected = targets(table, sizes)
    violations = _compare_names(expected, state_dict) + [
        f"{name} has shape {tuple(state_dict[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state_dict and state_dict[name].shape != shape
    ]
    if violations:
        raise FormatError(f"the weights do not fit the official layout: {listed(violations)}.")
    official: dict[str, Tensor] = {}
    for rule in table:
        sources = rule.operation.reverse([state_dict[name] for name in rule.targets], _shapes(rule, sizes))
        official |= {name: contiguous_copy(tensor) for name, tensor in zip(rule.sources, sources, strict=True)}
    return official


def _shapes(rule: Rule, sizes: Mapping[str, int]) -> list[Shape]:
    return [tuple(_size(symbol, sizes) or 0 for symbol in shape) for shape in rule.shapes]


def _compare_names(expected: Mapping[str, object], actual: Mapping[str, object]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in actual]
    return missing + [f"{shown(name)} is not expected" for name in actual if name not in expected]


def _size(symbol: str, sizes: Mapping[str, int]) -> int | None:
    factor, _, name = symbol.rpartition("*")
    size = int(name) if name.isdigit() else sizes.get(name)
    return None if size is None else size * int(factor or 1)


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a weight in another dtype; itself for None, and if it is no weight but a count (`operations.COUNT`)."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def contiguous_copy(tensor: Tensor) -> Tensor:
    """Return `tensor` contiguous and alone in its memory, as safetensors and `torch.save` expect; itself if it is."""
    tensor = tensor.contiguous()
    aligned = tensor.data_ptr() % tensor.element_size() == 0  # nothing in a .npz file is
    return tensor if aligned and tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
