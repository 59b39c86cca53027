"""A transformers `Trainer` whose checkpoints are whole, are checked before they are used, and can go on otherwise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..formats import readable_errors
from ..messages import quoted
from .checkpoints import STATE, check_whole, complete_checkpoint

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # transformers' names
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
_CHOSEN = ("weight_decay", "betas", "eps", "initial_lr")  # of a group of parameters, as arguments say


class ResumableTrainer(Trainer):
    """Writes checkpoints that appear with all their files or not at all, and goes on from none that is not whole.

    Learning rate, schedule, decay and the intervals of logs, evaluations and checkpoints are those of the arguments,
    not those of the checkpoint. Nothing in a checkpoint is executed: transformers reads its pickles as weights only.
    """

    _hidden_folder: str | None = None  # in which a checkpoint is being written

    def _get_output_dir(self, trial: Any) -> str:
        return self._hidden_folder or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with complete_checkpoint(folder, self.accelerator) as hidden:
            self._hidden_folder = str(hidden)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._hidden_folder = None
            if self.state.best_model_checkpoint == str(hidden / folder.name):
                self.state.best_model_checkpoint = str(folder)
                if self.args.should_save:
                    self.state.save_to_json(str(hidden / folder.name / STATE))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate_checkpoints(str(run_folder), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._hidden_folder is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # transformers would train on after the last update
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._check_checkpoint(Path(resume_from_checkpoint))
        with readable_errors(resume_from_checkpoint):
            self._load_weights(resume_from_checkpoint, model)

    def _load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        super()._load_from_checkpoint(checkpoint, model)

    def _check_checkpoint(self, checkpoint: Path) -> None:
        """Raise ValueError for what transformers would leave out without a word."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # then the optimizer has files of other names
        check_whole(checkpoint, (STATE,) if sharded else (STATE, _OPTIMIZER, _SCHEDULER))
        written = len(list(checkpoint.glob("rng_state*.pth")))
        if written != self.args.world_size:
            raise ValueError(
                f"{checkpoint} has the random states of {written} processes, and this run has {self.args.world_size}. "
                f"Start {written}."
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable_errors(str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        groups, scheduler = self.optimizer.param_groups, self.lr_scheduler
        fresh = [scheduler.state_dict(), *groups]
        chosen = [{name: group[name] for name in _CHOSEN if name in group} for group in groups]
        with readable_errors(str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        _check_kinds(checkpoint, fresh, [scheduler.state_dict(), *self.optimizer.param_groups])
        _check_moments(checkpoint, getattr(self.optimizer, "optimizer", self.optimizer))  # in accelerate's wrapper
        for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(settings)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [settings["initial_lr"] for settings in chosen]
            scheduler._last_lr = [
                rate * share(scheduler.last_epoch)
                for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate
        self.state.compute_steps(self.args, self.state.max_steps)


def _check_kinds(checkpoint: str, fresh: Sequence[dict[str, Any]], loaded: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where settings of a schedule, or of groups of parameters, are of other kinds than fresh ones."""
    for expected, given in zip(fresh, loaded, strict=True):
        for name in sorted(expected.keys() & given.keys()):
            kind: Any = type(expected[name])
            if expected[name] is not None and not isinstance(given[name], (int, float) if kind is float else kind):
                raise ValueError(f"{checkpoint} has {quoted(given[name])} as {name} of its optimizer or schedule.")


def _check_moments(checkpoint: str, optimizer: Any) -> None:
    """Raise ValueError where what Adam remembers of a weight has another shape: its fused kernel would not look."""
    if not isinstance(optimizer, Adam):
        return
    for weight, state in optimizer.state.items():
        for name in sorted(state.keys() & _MOMENTS):
            shape = getattr(state[name], "shape", None)
            if shape != weight.shape:
                given = type(state[name]).__name__ if shape is None else f"a tensor {tuple(shape)}"
                raise ValueError(f"{checkpoint} has {given} as {name} of a weight {tuple(weight.shape)}.")
