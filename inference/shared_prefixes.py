"""Texts of a causal tower that begin alike: what they share goes through the layers once."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.attention import Kernel, Mask, Packing

WORTH_IT = 0.95  # of the tokens: to gather them for attention takes as long as what is spared of more
STEP = 32  # tokens: oneDNN prepares its products for each number of rows that it has not met


class SharedPrefixes(Packing):
    """The beginnings of texts in one sequence: a token is there once for all texts that agree up to it.

    A causal layer computes the same for it in each of them; only attention sees the texts themselves. What follows the
    end of a text is left out.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, ends: Tensor) -> None:
        """Take the tokens of `input_ids` (texts, length) up to `ends` (texts,), where `attention_mask` agrees too."""
        self.length = int(ends.max()) + 1
        used = torch.arange(self.length) <= ends[:, None]
        tokens = input_ids if attention_mask is None else 2 * input_ids + attention_mask.ne(0)
        tokens = tokens[:, : self.length].where(used, -1)
        distinct, number = torch.unique(tokens, dim=0, return_inverse=True)  # sorted: those that agree are neighbours
        is_new = distinct >= 0
        is_new[1:] &= distinct[1:].ne(distinct[:-1]).cummax(dim=1).values
        count = int(is_new.sum())
        self.share = count / max(1, int(used.sum()))
        # Which token of the sequence one of (texts, length) is: the last new one above it.
        place = (is_new.flatten().cumsum(0) - 1).view_as(is_new)
        self.place = place.where(is_new, 0).cummax(dim=0).values[number]
        # Where the tokens of the sequence are in (texts, length); the last one is there several times.
        row, column = is_new.nonzero()[torch.arange(-(-count // STEP) * STEP).clamp(max=count - 1)].unbind(1)
        numbers = torch.arange(len(tokens))
        first = numbers.new_zeros(len(distinct)).scatter_reduce(0, number, numbers, "amin", include_self=False)
        self.rows = (first[row], column)
        self.used = used
        self.mask: Mask = None  # of the texts themselves, as the kernel takes it

    def attend(
        self, kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Mask, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Return (1, tokens, heads, head_dim) for heads (1, heads, tokens, head_dim) of the sequence."""
        heads = [x[0].transpose(0, 1)[self.place].transpose(1, 2) for x in (query, key, value)]
        output, _ = kernel(module, *heads, self.mask, **kwargs)  # (texts, length, heads, head_dim)
        return output[self.rows][None], None


def begin_alike(x: Tensor, input_ids: Tensor, attention_mask: Tensor | None, ends: Tensor) -> bool:
    """Return whether there is much to spare in the tokens `x` (texts, length, width), which are equal where ids are."""
    with suppress(RuntimeError):  # inside torch.func.vmap there are no values to look at
        shared = SharedPrefixes(input_ids, attention_mask, ends)
        used = x[:, : shared.length][shared.used]
        return shared.share < WORTH_IT and torch.equal(x[shared.rows][shared.place][shared.used], used)
    return False
