"""What a run did, stage by stage, as its checkpoints keep it, and which settings `--resume` can change.

A stage is a part of a run with the same settings and versions, however often it was interrupted.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..formats import absolute_path, readable_errors
from ..messages import listed, quoted
from .checkpoints import STATE

# Settings on which the weights, the state of their optimizer or the place in the data depend. A run goes on with them;
# all others can be changed by `--resume`.
FIXED = (
    "model", "data", "split", "streaming", "image_column", "text_column", "tokenizer", "from_scratch", "freeze",
    "unlocked_layers", "lora_rank", "optimizer", "batch_size", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of a run."""

    settings: dict[str, Any]  # those of the plan
    changed: dict[str, Any]  # those of them that are no defaults, as a card shows them
    processes: int
    pairs: int | None  # to train on; None for a stream, whose length is not known
    versions: dict[str, str]
    first_update: int = 1
    last_update: int = 0
    seconds: float = 0.0  # of training, with the evaluations in between
    starts: int = 1  # how often it was begun and taken up again

    def changes(self, earlier: "Stage") -> dict[str, tuple[Any, Any]]:
        """Return the settings and versions that are not those of an earlier stage: the earlier value, and this one."""
        before, after = ({**stage.settings, **stage.versions} for stage in (earlier, self))
        return {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}


class StageRecord(TrainerCallback, ExportableState):
    """Measures the present stage, and writes all stages into the checkpoints: into the state of the trainer.

    `earlier` are those of the checkpoint that the run goes on from. Raises ValueError, when the training begins, where
    fewer updates are asked for than are done.
    """

    def __init__(self, present: Stage, earlier: Sequence[Stage] = ()) -> None:
        self._earlier, self._present = list(earlier), present
        if self._earlier:
            last = self._earlier[-1]
            self._present = replace(present, first_update=last.last_update + 1, last_update=last.last_update)
            if not present.changes(last):
                self._present = replace(self._earlier.pop(), starts=last.starts + 1)
        self._seconds, self._begin = self._present.seconds, time.perf_counter()

    @property
    def stages(self) -> list[Stage]:
        """The stages until the last update; none that made no update."""
        return [stage for stage in (*self._earlier, self._present) if stage.last_update >= stage.first_update]

    def state(self) -> dict[str, Any]:
        """Return what transformers writes into a checkpoint."""
        return {"args": {}, "attributes": {"stages": [asdict(stage) for stage in self.stages]}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin = time.perf_counter()
        if state.global_step > state.max_steps:
            raise ValueError(
                f"The run has made {state.global_step} updates, and {state.max_steps} are asked for: raise --steps or "
                "--epochs."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seconds = round(self._seconds + time.perf_counter() - self._begin, 3)
        self._present = replace(self._present, last_update=state.global_step, seconds=seconds)


def read_stages(checkpoint: Path) -> list[Stage]:
    """Return the stages that led to a checkpoint. Raises ValueError for one that does not say them."""
    file = checkpoint / STATE
    with readable_errors(file):
        state = TrainerState.load_from_json(str(file))
        described = state.stateful_callbacks[StageRecord.__name__]["attributes"]["stages"]
        stages = [Stage(**stage) for stage in described]
        if not stages or not all(map(_is_sound, stages)) or stages[-1].last_update != state.global_step:
            raise ValueError(f"{file} does not say what was trained until then; no run of `twinlens train` wrote it.")
    return stages


def _is_sound(stage: Stage) -> bool:
    numbers = (stage.processes, stage.first_update, stage.last_update, stage.starts)
    return (
        all(isinstance(values, dict) for values in (stage.settings, stage.changed, stage.versions))
        and all(type(number) is int for number in numbers)
        and type(stage.seconds) in (int, float)
    )


def check_resumption(present: Stage, earlier: Stage) -> None:
    """Raise ValueError, with both values of each, where a run cannot go on as this stage asks."""
    pairs = [(name, earlier.settings.get(name), present.settings[name]) for name in FIXED]
    pairs += [(name, getattr(earlier, name), getattr(present, name)) for name in ("pairs", "processes")]
    if differing := [
        f"{name} was {quoted(before)}, and is {quoted(after)} now"
        for name, before, after in pairs
        if not _is_same(before, after)
    ]:
        raise ValueError(
            f"--resume cannot change these: {listed(differing)}. Go on with what it was, or train into another folder."
        )


def _is_same(before: Any, after: Any) -> bool:
    """Return whether two settings are equal, or two spellings of one path."""
    if isinstance(before, str) and isinstance(after, str) and Path(after).exists():
        return absolute_path(before) == absolute_path(after)
    return bool(before == after)
