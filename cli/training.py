"""`twinlens train`: its options are the fields of `TrainingPlan`."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..training.plan import REQUIRED, TrainingPlan
from .models import check_model
from .options import AsJson, argument, option, with_parameters
from .terminal import print_json, print_line, quiet_libraries

_TYPES = get_type_hints(TrainingPlan)


@with_parameters(
    (argument if field.name in REQUIRED else option)(
        field.name, _TYPES[field.name], default=field.default, help=field.metadata["help"]
    )
    for field in fields(TrainingPlan)
)
def train_command(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file of settings, named like the options with _ for -. Options on the command line win."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the number of parameters and the memory needed, and write nothing.")
    ] = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train on pairs of images and captions, and write a Hub folder with a model card that shows the curves.

    It runs in one process, or in several with `accelerate launch -m twinlens train ...`.
    """
    on_command_line = {name: value for name, value in settings.items() if _is_given(context, name)}
    plan = TrainingPlan.read(config, on_command_line)
    quiet_libraries()
    check_model(plan.model)
    from .. import training

    if dry_run:
        estimate = training.dry_run(plan)
        if as_json:
            print_json(estimate.to_dict())
        else:
            print(estimate.describe())
        return
    result = training.train(plan)
    if not result.is_main_process:
        return
    if as_json:
        print_json(
            {"folder": plan.output, "updates": result.updates, "metrics": result.metrics, "skipped": result.skipped}
        )
        return
    for name, value in result.metrics.items():
        if "recall" in name or "accuracy" in name:
            print(f"{name.removeprefix('eval_').replace('_', ' '):<28}{value:7.1%}")
    if result.skipped:
        print(f"Skipped {result.skipped} {'pair' if result.skipped == 1 else 'pairs'} that could not be read.")
    print_line(f"Wrote {plan.output}")


def _is_given(context: typer.Context, name: str) -> bool:
    """Return whether a parameter has its value from the command line, and not from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
