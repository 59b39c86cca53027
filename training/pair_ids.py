"""Numbers by which equal captions and equal images of a batch are recognised, in any process."""

from collections.abc import Mapping

import torch
from torch import Tensor

_FACTOR = 6364136223846793005  # Knuth's, of MMIX


def pair_ids(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return ids (pairs, columns): a number for the tokens of each caption and, if `image_ids` are given, these.

    Captions whose tokens the model cannot tell apart have one number, whatever padding follows them.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    tokens = (ids.long() + 1) * (1 if mask is None else mask.long())
    # A polynomial hash modulo 2**64: two of a billion captions have one number by chance once in 37 such sets.
    powers = torch.full((ids.shape[1],), _FACTOR, device=ids.device).cumprod(0)
    columns = [(tokens * powers).sum(dim=1)]
    if "image_ids" in inputs:
        columns.append(inputs["image_ids"].to(ids.device))
    return torch.stack(columns, dim=1)
