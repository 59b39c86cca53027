"""Losses that compute their gradients together with their value, so that autograd keeps no logits in memory."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import check_inputs

Gradients = list[Tensor | None]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it writes over views
def analytic_loss(
    compute: Callable[..., tuple[Tensor, Gradients]],
    image_embeds: Tensor,
    text_embeds: Tensor,
    scalars: dict[str, Tensor],
    chunk_size: int,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Return the loss that `compute` returns together with the gradients of all inputs.

    It is computed in float32 or float64, also under autocast. Raises ValueError for inputs that no loss can take.
    """
    device = text_embeds.device
    inputs = [value.to(device) for value in (image_embeds, text_embeds, *scalars.values())]
    needs_grad = tuple(torch.is_grad_enabled() and value.requires_grad for value in inputs)
    embeds = {"image_embeds": inputs[0], "text_embeds": inputs[1]}
    check_inputs(embeds, dict(zip(scalars, inputs[2:], strict=True)), chunk_size, needs_grad, group)
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)

    def compute_in_dtype(*inputs: Tensor) -> tuple[Tensor, Gradients]:
        with torch.autocast(device.type, enabled=False):
            converted = (value.to(dtype).contiguous() for value in inputs)
            return compute(*converted, needs_grad=needs_grad, chunk_size=chunk_size, group=group)

    return _AnalyticLoss.apply(compute_in_dtype, *inputs)


class _AnalyticLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, Gradients]], *inputs: Tensor) -> Tensor:
        loss, ctx.gradients = compute(*inputs)
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        # Scaled in place instead of copied; a second call, under `retain_graph=True`, computes them again.
        gradients, ctx.gradients = ctx.gradients or ctx.compute(*inputs)[1], None
        return None, *(
            None if gradient is None else gradient.mul_(upstream).to(value.dtype).view_as(value)
            for gradient, value in zip(gradients, inputs, strict=True)
        )
