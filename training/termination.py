"""SIGTERM, by which schedulers announce the end of a machine: the run writes a checkpoint and stops."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnTermination(TrainerCallback):
    """Stops the training after the update in which SIGTERM reached one of its processes, with a checkpoint.

    `stopped` says afterwards whether the training was stopped.
    """

    def __init__(self) -> None:
        self.asked = self.stopped = False
        self._earlier: Any = None
        self._training = torch.zeros((), dtype=torch.bool).share_memory_()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        train_dataloader: DataLoader[Any],
        **kwargs: Any,
    ) -> None:
        self._training.fill_(True)
        # A loader of accelerate's reads through another one, which starts the workers.
        for loader in {train_dataloader, getattr(train_dataloader, "base_dataloader", train_dataloader)}:
            loader.worker_init_fn = _SpareWorker(self._training, loader.worker_init_fn)
        if threading.current_thread() is threading.main_thread():  # no other can have handlers
            self._earlier = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True  # a launcher sends it on, so that it may arrive twice

    def restore(self) -> None:
        """Give SIGTERM back the effect that it had."""
        self._training.fill_(False)
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)
            self._earlier = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.stopped = _in_any_process(self.asked, args)
        if self.stopped:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be little time

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:
            control.should_save = control.should_evaluate = False  # the checkpoint is written

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()


class _SpareWorker:
    """Makes SIGTERM end a worker of a DataLoader only after the training: some schedulers send it to all processes."""

    def __init__(self, training: Tensor, initialize: Callable[[int], None] | None) -> None:
        self._training, self._initialize = training, initialize

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGTERM, self._end)
        if self._initialize is not None:
            self._initialize(worker)

    def _end(self, number: int, frame: object) -> None:
        if not self._training:
            os._exit(0)


def _in_any_process(asked: bool, args: TrainingArguments) -> bool:
    """Return whether any process was asked to stop; all have to do so after the same update."""
    if args.world_size == 1:
        return asked
    flag = torch.tensor(int(asked), device=args.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)
