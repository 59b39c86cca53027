"""The command `twinlens train`, whose options are the fields of `TrainingPlan`."""

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..training.plan import TrainingPlan

_ARGUMENTS = ("model", "data", "output")


def with_plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the signature that typer is to read: the plan's fields, then options of the command itself."""
    hints = get_type_hints(TrainingPlan)
    parameters = []
    for item in fields(TrainingPlan):
        kind = typer.Argument if item.name in _ARGUMENTS else typer.Option
        shown = item.default not in (None, "", False)
        text = item.metadata["help"] + (f" \\[default: {item.default}]" if shown else "")
        hint = hints[item.name]
        annotation: Any = Annotated[hint if item.default is None else hint | None, kind(help=text, show_default=False)]
        if hint is bool:
            annotation = Annotated[bool, kind(f"--{item.name.replace('_', '-')}", help=text, show_default=False)]
        default = False if hint is bool else None
        parameters.append(
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    own: dict[str, Any] = {
        "config": (Annotated[Path | None, typer.Option(help="Settings in YAML; options given here win.")], None),
        "dry_run": (
            Annotated[bool, typer.Option("--dry-run", help="Count parameters and memory; train and write nothing.")],
            False,
        ),
        "as_json": (Annotated[bool, typer.Option("--json", help="Print JSON for programs.")], False),
    }
    for name, (annotation, default) in own.items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@with_plan_options
def train_command(config: Path | None, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Train on pairs of images and captions and write a Hub folder with a card that has the curves.

    Runs in one process, or in several under `accelerate launch -m twinlens train ...`.
    """
    from ..training import dry_run as estimate
    from ..training import train as run

    plan = TrainingPlan.read(config, {name: value for name, value in given.items() if value not in (None, False)})
    if dry_run:
        result = estimate(plan)
        print(json.dumps(result.to_dict(), indent=2) if as_json else result.describe())
        return
    outcome = run(plan)
    if not outcome.is_main_process:
        return
    if as_json:
        print(
            json.dumps(
                {"folder": str(outcome.folder), "updates": outcome.updates, "metrics": outcome.metrics}, indent=2
            )
        )
        return
    for name, value in outcome.metrics.items():
        if "recall" in name or "accuracy" in name:
            print(f"{name.removeprefix('eval_').replace('_', ' '):<28}{value:7.1%}")
    print(f"Wrote {outcome.folder}")
