"""What a run is trained with where its plan says nothing: it follows from what is trained, on how much, and its size.

docs/training.md says on which worlds the rule was tried. Its sources: the learning rates of CLIP (arXiv:2103.00020,
table 20) and of open_clip from scratch, of FLYP (arXiv:2212.00638, 1e-5 for ViT-B/16) for fine-tuning, and of LoRA
(arXiv:2106.09685), ten times as high.
"""

import math
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from .plan import TrainingPlan

Mode: TypeAlias = Literal["fine-tuning", "LoRA", "from scratch"]

BATCH_SIZE = 64  # pairs, of many
SMALLEST_BATCH = 16  # of few: more updates teach more than more pairs to compare in each
BATCHES_OF_FEW = 6  # in a pass over few pairs
_REFERENCE_PARAMETERS = 150e6  # of ViT-B/32 and ViT-B/16, at which the literature has its learning rates


class _Recipe(NamedTuple):
    reference_rate: float  # of a model of `_REFERENCE_PARAMETERS`
    exponent: float  # a model with k times the parameters learns at k**-exponent times the rate
    highest_rate: float
    pair_passes: float  # the number of passes over n pairs is this / sqrt(n) ...
    fewest_epochs: int  # ... within these bounds
    most_epochs: int
    min_crop_area: float
    max_grad_norm: float


RECIPES: dict[Mode, _Recipe] = {
    "fine-tuning": _Recipe(1e-5, 0.75, 1e-3, 1000, 1, 200, 1.0, 0.0),
    "LoRA": _Recipe(1e-4, 0.69, 6e-3, 1000, 1, 200, 1.0, 1.0),  # at this rate some runs diverge without the limit
    "from scratch": _Recipe(5e-4, 0.12, 1e-3, 4000, 30, 200, 0.9, 0.0),
}


def mode_of(plan: TrainingPlan) -> Mode:
    """Return what a run trains, on which its defaults depend."""
    if plan.from_scratch:
        return "from scratch"
    return "LoRA" if plan.lora_rank else "fine-tuning"


def choose_settings(plan: TrainingPlan, *, parameters: int, pairs: int | None, processes: int = 1) -> TrainingPlan:
    """Return the plan with a value for every setting that it leaves open; a plan without open ones comes back as it is.

    `parameters` are those of the whole model; `pairs` is None for a stream, whose length is not known. A batch has no
    more pairs than there are.
    """
    recipe = RECIPES[mode_of(plan)]
    scaled = recipe.reference_rate * (_REFERENCE_PARAMETERS / parameters) ** recipe.exponent
    batch_size = plan.batch_size or BATCH_SIZE
    epochs = 1.0
    if pairs is not None:
        each = pairs // processes
        batch_size = plan.batch_size or min(BATCH_SIZE, max(SMALLEST_BATCH, each // BATCHES_OF_FEW))
        batch_size = max(1, min(batch_size, each))
        passes = round(recipe.pair_passes / math.sqrt(pairs))
        epochs = float(min(recipe.most_epochs, max(recipe.fewest_epochs, passes)))
    plan = replace(
        plan,
        learning_rate=float(f"{min(recipe.highest_rate, scaled):.1e}")
        if plan.learning_rate is None
        else plan.learning_rate,
        epochs=plan.epochs or epochs,  # a number is expected even where `steps` counts
        warmup=0.1 if plan.warmup is None else plan.warmup,
        batch_size=batch_size,
        min_crop_area=plan.min_crop_area or recipe.min_crop_area,
        max_grad_norm=recipe.max_grad_norm if plan.max_grad_norm is None else plan.max_grad_norm,
    )
    epoch = 0 if pairs is None else pairs // (batch_size * processes)  # updates
    interval = max(1, epoch, math.ceil((plan.steps or epoch * (plan.epochs or 1)) / 10))
    return replace(plan, eval_steps=plan.eval_steps or interval, save_steps=plan.save_steps or interval)


def describe_start(plan: TrainingPlan, *, trained: int, pairs: int | None) -> str:
    """Return what a complete plan is about to do, in one line."""
    counted = (plan.steps, "update") if plan.steps else (plan.epochs, "epoch")
    amount = f"{counted[0]:,.9g} {counted[1]}{'' if counted[0] == 1 else 's'}"
    data = "a stream" if pairs is None else f"{pairs:,} pairs"
    batch = f"{plan.batch_size:,}{' (all there are)' if plan.batch_size == pairs else ''}"
    warmup = plan.warmup or 0
    crops = "no crops" if plan.min_crop_area == 1 else f"crops of at least {plan.min_crop_area:.0%}"
    limit = f"gradients of norm {plan.max_grad_norm:g} at most" if plan.max_grad_norm else "no limit of the gradient"
    return (
        f"{mode_of(plan)[0].upper()}{mode_of(plan)[1:]} of {trained:,} weights on {data}: {amount} of batches of "
        f"{batch}, learning rate {plan.learning_rate:g} ({plan.schedule}), "
        f"warm-up of {f'{warmup:.0%} of the run' if warmup < 1 else f'{warmup:g} updates'}, "
        f"{crops}, {limit}."
    )
