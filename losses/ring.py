"""A ring of processes, along which blocks of texts visit every rank."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Block = Sequence[Tensor]


def travel(
    block: Block,
    visit: Callable[[Block, bool], Block],
    merge: Callable[[Tensor, Tensor], Tensor],
    group: dist.ProcessGroup | None,
) -> Block:
    """Take `block` once around the ring; what `visit(block, is_home)` finds on each rank, merged underway, comes home.

    `merge(so_far, found)` puts the result where `so_far` is. While a rank computes, the next block is on its way, and
    so is what was found on the last one, in memory that does not grow with the ring. Without a group this process is
    the ring.
    """
    size = 1 if group is None else dist.get_world_size(group)
    if group is None or size == 1:
        return visit(block, True)
    spare_block: Block | None = None
    spare_found: Block | None = None
    sent: Block | None = None
    arrive: Callable[[], Block] = list  # nothing is on its way yet
    for step in range(size):
        following = _pass_on(block, spare_block, group) if step + 1 < size else None
        found = visit(block, step == 0)
        if step > 0:
            found = [merge(*pair) for pair in zip(arrive(), found, strict=True)]
            spare_found = sent
        sent, arrive = found, _pass_on(found, spare_found, group)
        if following is not None:
            spare_block, block = block if step else None, following()  # the first one is the caller's
    return arrive()


def _pass_on(tensors: Block, arriving: Block | None, group: dist.ProcessGroup) -> Callable[[], Block]:
    """Start sending to the next rank and receiving from the one before; the result waits for both."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    arriving = [torch.empty_like(tensor) for tensor in tensors] if arriving is None else arriving
    sends = [dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + 1) % size) for tensor in tensors]
    receives = [dist.P2POp(dist.irecv, tensor, group=group, group_peer=(rank - 1) % size) for tensor in arriving]
    works = dist.batch_isend_irecv(sends + receives) if tensors else []

    def arrive() -> Block:
        for work in works:
            work.wait()
        return arriving

    return arrive
