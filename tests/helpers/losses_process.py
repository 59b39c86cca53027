"""One of several processes that compute losses together; `test_losses.py` starts them and compares what they found."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
import torch.distributed as dist
from helpers.released_files import released_module
from torch import Tensor, nn

from twinlens.losses import sigmoid_loss, softmax_loss
from twinlens.losses.ring import Block, RingExchange

LOCAL, DIM, WORLDS = 5, 6, (1, 2, 3, 4)
OPEN_CLIP = ("open_clip_torch==3.3.0", "open_clip/loss.py")
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def inputs(world: int) -> list[Tensor]:
    """Return images, texts, the logarithm of the scale, and the bias of all ranks."""
    generator = torch.Generator().manual_seed(world)
    images, texts = (torch.randn(LOCAL * world, DIM, dtype=torch.float64, generator=generator) for _ in range(2))
    scalars = [torch.tensor([value], dtype=torch.float64) for value in (2.0, -1.5)]
    return [nn.functional.normalize(images), nn.functional.normalize(texts), *scalars]


def differentiated(loss: Loss, values: list[Tensor]) -> list[Tensor | None]:
    """Return the loss and its gradients; a second backward pass must return the same."""
    leaves = [value.clone().requires_grad_() for value in values]
    result = loss(*leaves)
    first = torch.autograd.grad(result, leaves, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(2 * result, leaves, allow_unused=True)
    for one, other in zip(first, second, strict=True):
        assert one is other is None or torch.allclose(2 * one, other, rtol=1e-12, atol=1e-15)
    return [result.detach(), *first]


def refused(loss: Loss, values: list[Tensor]) -> str:
    try:
        loss(*values)
    except ValueError as error:
        return str(error)
    return ""


def own_losses(group: dist.ProcessGroup | None) -> dict[str, Loss]:
    return {
        "sigmoid": lambda *values: sigmoid_loss(*values, chunk_size=2, group=group),
        "softmax": lambda *values: softmax_loss(*values[:3], chunk_size=2, group=group),
    }


def equal_pairs(world: int) -> Tensor:
    """Return two ids of each pair of all ranks: every fourth one has the same caption, every second the same image."""
    numbers = torch.arange(LOCAL * world)
    return torch.stack([numbers % 4, numbers // 2], dim=1)


def losses_without_equals(group: dist.ProcessGroup | None, ids: Tensor) -> dict[str, Loss]:
    settings: dict = {"pair_ids": ids, "chunk_size": 2, "group": group}
    return {
        "sigmoid, equals": lambda *values: sigmoid_loss(*values, **settings),
        "softmax, equals": lambda *values: softmax_loss(*values[:3], **settings),
        "smoothed, equals": lambda *values: softmax_loss(*values[:3], label_smoothing=0.1, **settings),
    }


def open_clip_losses(module: ModuleType, rank: int, world: int) -> dict[str, Loss]:
    sides = {"rank": rank, "world_size": world}
    losses = {f"sigmoid, {way}": module.SigLipLoss(dist_impl=way, **sides) for way in ("bidir", "shift")}
    softmax = module.ClipLoss(local_loss=True, gather_with_grad=True, **sides)
    found = {name: lambda i, t, scale, bias, loss=loss: loss(i, t, scale.exp(), bias) for name, loss in losses.items()}
    return {**found, "softmax, local": lambda images, texts, scale, _: softmax(images, texts, scale.exp())}


def of_rank(rank: int, world: int) -> list[Tensor]:
    rows = slice(LOCAL * rank, LOCAL * (rank + 1))
    images, texts, *scalars = inputs(world)
    return [images[rows], texts[rows], *scalars]


def errors(rank: int, world: int, loss: Loss) -> dict[str, str]:
    """Return the errors of this rank when the last one has other or bad inputs."""
    images, texts, *scalars = of_rank(rank, world)
    is_last = rank == world - 1
    spoilt = images.clone()
    spoilt[3, 1] = torch.nan if is_last else spoilt[3, 1]
    return {
        "sizes": refused(loss, [images[is_last:], texts[is_last:], *scalars]),
        "values": refused(loss, [spoilt, texts, *scalars]),
        "shapes": refused(loss, [images[is_last:], texts, *scalars]),
        "gradients": refused(loss, [images.clone().requires_grad_(is_last), texts, *scalars]),
    }


def received_buffers(loss: Loss, values: list[Tensor]) -> list[int]:
    """Return the number of places in memory that each exchange of the loss received into."""
    places: dict[RingExchange, set[int]] = {}
    wait = RingExchange.wait

    def watched_wait(exchange: RingExchange) -> Block:
        received = wait(exchange)
        places.setdefault(exchange, set()).add(received[0].data_ptr())
        return received

    with patch.object(RingExchange, "wait", watched_wait):
        loss(*[value.clone().requires_grad_() for value in values])
    return [len(found) for found in places.values()]


def main(rank: int, folder: str) -> None:
    open_clip = released_module(*OPEN_CLIP)  # before any group is made, or it will stay with that one
    found: dict = {}
    for world in WORLDS:
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
            losses = own_losses(dist.group.WORLD)
            ids = equal_pairs(world)[LOCAL * rank : LOCAL * (rank + 1)]
            others = losses_without_equals(dist.group.WORLD, ids) | open_clip_losses(open_clip, rank, world)
            for name, loss in {**losses, **others}.items():
                found[world, name] = differentiated(loss, of_rank(rank, world))
            for name, loss in losses.items() if world > 1 else ():
                found[world, f"{name} errors"] = errors(rank, world, loss)
            for name, loss in losses.items() if world > 1 else ():
                found[world, f"{name} buffers"] = received_buffers(loss, of_rank(rank, world))
            if world == 4:  # the first and last rank as a group of two
                group = dist.new_group([0, 3])
                for name, loss in own_losses(group).items() if rank in (0, 3) else ():
                    found["group", name] = differentiated(loss, of_rank(rank // 3, 2))
            dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{rank}.pt")
