"""`twinlens average`: one model of the weights of several."""

from pathlib import Path
from typing import Annotated

import typer

from .models import check_model
from .options import AsJson, Overwrite
from .terminal import print_json, print_line, quiet_libraries


def average_command(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Models that began as one: a start and what became of it, or several of one start.",
            metavar="MODEL",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    weight: Annotated[
        list[float] | None,
        typer.Option(help="The weight of each model, in their order; 1 together. By default all have the same."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Average the weights of models: what a fine-tuned model has forgotten comes back from its start.

    For example `twinlens average START TUNED --weight 0.5 --weight 0.5 --out AVERAGED`. `twinlens evaluate` tells which
    weights are best for data of yours.
    """
    quiet_libraries()
    for model in models:
        check_model(model)
    from ..training.averaging import average

    folder = average(models, out, weight, overwrite=overwrite)
    if as_json:
        print_json({"folder": str(folder)})
    else:
        print_line(f"Wrote {folder}")
