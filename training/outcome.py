"""Whether a run has trained at all: a run that changed nothing must not look like a success."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn


def digest_of_trained(model: nn.Module) -> bytes:
    """Return a digest of the trainable weights, of those parts of them that this process holds."""
    digest = hashlib.blake2b()
    for parameter in model.parameters():
        if parameter.requires_grad:
            values = _held_here(parameter).cpu() + 0.0  # -0.0 becomes 0.0, for an update of nothing can turn its sign
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def check_trained(model: nn.Module, before: bytes, folder: Path, *, updates: int, learning_rate: float) -> None:
    """Raise ValueError if the trainable weights still have the digest `before`, or are no numbers any more.

    `folder` has the checkpoints of the run, which are of no use then.
    """
    run = f"{updates} {'update' if updates == 1 else 'updates'} at a learning rate of at most {learning_rate:g}"
    if digest_of_trained(model) == before:
        raise ValueError(
            f"No weight has changed in {run}, so there is nothing to write: remove {folder}, and choose a higher "
            "learning rate or more updates."
        )
    if not all(_held_here(p).isfinite().all() for p in model.parameters() if p.requires_grad):
        raise ValueError(
            f"Weights became infinite or no numbers in {run}: remove {folder}, and choose a lower learning rate, a "
            "longer warm-up, or a max_grad_norm."
        )


def _held_here(parameter: Tensor) -> Tensor:
    """Return a parameter, or the part of it that FSDP keeps in this process."""
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
