"""States of random generators, for computing a forward pass twice with the same dropout."""

import torch
from torch import Tensor


class ReplayRandomState:
    """Repeats, within a `with` block, the random numbers after an earlier state; then restores the present state."""

    def __init__(self, state: list[Tensor], device: torch.device) -> None:
        self.state, self.device = state, device

    def __enter__(self) -> None:
        self.present = random_state(self.device)
        _set_random_state(self.state, self.device)

    def __exit__(self, *error: object) -> None:
        _set_random_state(self.present, self.device)


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout draws from: the CPU's and, for a CUDA device, its own."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
