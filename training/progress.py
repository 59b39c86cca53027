"""What a run says while it trains, on stderr: one live line in a terminal, elsewhere a line now and then."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal
SECONDS_BETWEEN_REDRAWS = 0.1
_ERASE_LINE = "\r\x1b[K"


class ShowProgress(TrainerCallback):
    """Shows update, loss, learning rate, scale, pairs per second and the time left; evaluations are lines of their own.

    Without a terminal a line is written at the first update, then at most every ten seconds, and at the last one.
    """

    def __init__(self) -> None:
        self.is_live = sys.stderr.isatty()
        self.numbers: Mapping[str, float] = {}  # the last ones logged
        self.shown = -float("inf")  # when the last line was
        self.began, self.updates = 0.0, 0  # the stretch that the speed is measured over, without evaluations

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began, self.updates = time.perf_counter(), 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.updates += 1
        control.should_log |= state.global_step >= state.max_steps  # the last update, whatever `log_steps` is
        if self.is_live and state.is_world_process_zero and self._is_due(SECONDS_BETWEEN_REDRAWS):
            self._draw(self._line(args, state))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.is_live and state.is_world_process_zero and self._is_due(SECONDS_BETWEEN_REDRAWS):
            self._draw(f"{_count(state)}  evaluating")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or not state.is_world_process_zero:
            return
        if "eval_runtime" in logs:
            self._write(f"{_count(state)}  {describe_evaluation(logs)}")
            self.began, self.updates = time.perf_counter(), 0
        elif "loss" in logs:
            self.numbers = logs
            is_last = state.global_step >= state.max_steps
            if is_last or (not self.is_live and self._is_due(SECONDS_BETWEEN_LINES)):
                self._write(self._line(args, state))

    def _is_due(self, seconds: float) -> bool:
        if is_due := time.perf_counter() - self.shown >= seconds:
            self.shown = time.perf_counter()
        return is_due

    def _line(self, args: TrainingArguments, state: TrainerState) -> str:
        parts = [_count(state)]
        for name, label, form in (("loss", "loss", ".3f"), ("learning_rate", "rate", ".1e"), ("scale", "scale", ".1f")):
            if name in self.numbers:
                parts.append(f"{label} {self.numbers[name]:{form}}")
        if self.updates:
            speed = self.updates / (time.perf_counter() - self.began)  # updates per second
            left = timedelta(seconds=round((state.max_steps - state.global_step) / speed))
            parts += [f"{speed * args.per_device_train_batch_size * args.world_size:.3g} pairs/s", f"{left} left"]
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        """Write over the live line; a terminal that is too narrow gets the first of its numbers, each of them whole."""
        width = shutil.get_terminal_size().columns - 1
        if len(line) > width:
            line = line[: width + 2].rpartition("  ")[0] or line[:width]
        print(f"{_ERASE_LINE}{line}", end="", file=sys.stderr, flush=True)

    def _write(self, line: str) -> None:
        """Write a line that stays."""
        print(f"{_ERASE_LINE if self.is_live else ''}{line}", file=sys.stderr, flush=True)


def describe_evaluation(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation in a line: the loss, recall at 1 in both directions, zero-shot accuracy."""
    labels = {
        "eval_image_to_text_recall_at_1": "image to text",
        "eval_text_to_image_recall_at_1": "text to image",
        "eval_zero_shot_accuracy": "zero-shot",
    }
    loss = [f"evaluation loss {metrics['eval_loss']:.3f}"] if "eval_loss" in metrics else ["evaluation"]
    return "  ".join(loss + [f"{label} {metrics[name]:.1%}" for name, label in labels.items() if name in metrics])


def say(line: str) -> None:
    """Write a line about a run to stderr, because stdout is for its result; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        if sys.stderr.isatty():  # it would divide words at the end of a row
            line = textwrap.fill(line, shutil.get_terminal_size().columns, break_on_hyphens=False)
        print(line, file=sys.stderr, flush=True)


def _count(state: TrainerState) -> str:
    return f"update {state.global_step}/{state.max_steps}"
