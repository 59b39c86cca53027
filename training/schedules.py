"""The learning rate over a run: how it rises, and along which curve it falls."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {  # from the share of the run after the warm-up, 0 to below 1
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
    "constant": lambda share: 1.0,
}


def rate_factor(schedule: str, updates: int, warmup: int, update: int) -> float:
    """Return the factor of the highest rate at an update, counted from 0: never 0 within a run, as in open_clip.

    It is (update + 1) / warmup in the warm-up. transformers' own schedules begin with an update at rate 0.
    """
    if update < warmup:
        return (update + 1) / warmup
    return SCHEDULES[schedule](min(1.0, (update - warmup) / max(1, updates - warmup)))
