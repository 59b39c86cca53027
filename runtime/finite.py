"""Rows of results that hold NaN or infinity: found where the values are on the CPU, and named."""

import math
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor
from transformers.utils.import_utils import is_tracing

_MOST_NAMES = 10  # in a message


def check_finite_rows(rows: Tensor, what: str, names: Sequence[object] = ()) -> Tensor:
    """Return the tensor (rows, columns), which is on the CPU. Raises ValueError where rows hold NaN or infinity.

    `what` is in the message what the rows are, such as "embeddings of images"; `names` are theirs, by default numbers.
    """
    if math.isfinite(rows.detach().sum().item()):  # one pass: a sum is finite only if all of it is
        return rows
    if bad := (~rows.detach().isfinite().all(dim=1)).nonzero()[:, 0].tolist():
        named = ", ".join(str(names[row]) if names else str(row) for row in bad[:_MOST_NAMES])
        more = f" and {len(bad) - _MOST_NAMES:,} more" if len(bad) > _MOST_NAMES else ""
        raise ValueError(
            f"{len(bad):,} of {len(rows):,} {what} hold NaN or infinity, at {named}{more}. Look for it in what goes in "
            "and in the weights, of which from_pretrained warns; float16 overflows where bfloat16 and float32 do not. "
            "check_finite=False returns the values as they are."
        )
    return rows


def check_finite_embeds(embeds: Tensor, kind: str, check_finite: bool | None) -> Tensor:
    """Return what `encode_image` or `encode_text` has computed. Raises the error of `check_finite_rows`.

    By default, for None, values are looked at where that waits for no device. They are not where a graph is traced.
    """
    if check_finite is False or (check_finite is None and embeds.device.type != "cpu") or is_tracing(embeds):
        return embeds
    with suppress(RuntimeError):  # inside torch.func.vmap there are no values to look at
        check_finite_rows(embeds.detach().cpu(), f"embeddings of {kind}s")
    return embeds
