"""Ring reduction: every block of texts visits every rank, and comes home with the sum of what was computed on the way.

Three ranks hold the blocks of texts A, B and C. `a`, `b` and `c` are their results so far, such as the gradients of the
texts; `f0`, `f1` and `f2` compare a block with the images of rank 0, 1 and 2:

              rank 0        rank 1        rank 2
    step 0    a  = f0(A)    b  = f1(B)    c  = f2(C)
    step 1    c += f0(C)    a += f1(A)    b += f2(B)
    step 2    b += f0(B)    c += f1(C)    a += f2(A)
    return    a             b             c

After each step, blocks and results move to the next rank, and from the last rank to the first. Communication overlaps
computation: while a rank compares one block, the next block and the result of the previous one are in flight. Each of
these two exchanges has two buffers to receive into, however many ranks there are.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Block = Sequence[Tensor]


def ring_reduce(
    block: Block,
    on_block: Callable[[Block, bool], Block],
    add: Callable[[Tensor, Tensor], Tensor],
    group: dist.ProcessGroup | None,
) -> Block:
    """Return the sum over all ranks of `on_block(block, is_local_block)`, for the block of this rank.

    `on_block` runs once on this rank for the block of every rank. `add(total, partial)` adds in place, to `total`. All
    ranks need blocks of the same shapes. Without a group, this process is the only rank.
    """
    world_size = 1 if group is None else dist.get_world_size(group)
    if group is None or world_size == 1:
        return on_block(block, True)
    blocks, totals = RingExchange(group), RingExchange(group)
    for step in range(world_size):
        is_last_step = step == world_size - 1
        if not is_last_step:
            blocks.start(block)
        total = on_block(block, step == 0)
        if step > 0:  # the sum of the ranks before this one, which has arrived meanwhile
            total = [add(before, partial) for before, partial in zip(totals.wait(), total, strict=True)]
        totals.start(total)
        if not is_last_step:
            block = blocks.wait()
    return totals.wait()


class RingExchange:
    """Sends tensors to the next rank and receives as many from the previous one, into two buffers that take turns.

    What `wait` returned may be sent by the next `start`, which receives into the other buffer.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        self.group = group
        self.next_rank, self.previous_rank = (rank + 1) % world_size, (rank - 1) % world_size
        self.received: Block = ()  # by the exchange that is under way, or by the last one
        self.free: Block = ()  # received by the exchange before, and sent since: free to receive into
        self.transfers: list[dist.Work] = []

    def start(self, outgoing: Block) -> None:
        """Start to send `outgoing` and to receive tensors of the same shapes."""
        buffers = self.free or [torch.empty_like(tensor) for tensor in outgoing]
        self.received, self.free = buffers, self.received
        sends = [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=self.next_rank) for tensor in outgoing]
        receives = [
            dist.P2POp(dist.irecv, buffer, group=self.group, group_peer=self.previous_rank) for buffer in buffers
        ]
        self.transfers = dist.batch_isend_irecv(sends + receives) if outgoing else []

    def wait(self) -> Block:
        """Wait for both directions, and return what was received."""
        for transfer in self.transfers:
            transfer.wait()
        self.transfers.clear()  # or they would keep what was sent in memory
        return self.received
