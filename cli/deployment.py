"""`twinlens onnx`: a model for programs without PyTorch."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from .models import check_model
from .options import AsJson, Model, Overwrite
from .terminal import console, print_json, print_line, quiet_libraries, show_progress


class Tower(str, Enum):  # of which an option can be repeated, as a Literal cannot
    image = "image"
    text = "text"
    both = "both"


def onnx_command(
    model: Model,
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder to write: config.json, the files of the processor, and the graphs in onnx/ or openvino/.",
            metavar="OUT",
        ),
    ],
    tower: Annotated[
        list[Tower] | None,
        typer.Option(
            help="The part to export: image (onnx/vision_model.onnx), text (onnx/text_model.onnx), or both with their "
            "logits (onnx/model.onnx). Repeat the option for further files. By default both.",
        ),
    ] = None,
    format: Annotated[
        Literal["onnx", "openvino"],
        typer.Option(help="onnx: for ONNX Runtime, transformers.js and others. openvino: OpenVINO's IR."),
    ] = "onnx",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Run every graph in ONNX Runtime or OpenVINO and compare it with the model; write nothing if an error "
            "is above the tolerance.",
        ),
    ] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Export a model to ONNX or OpenVINO, for any number of images and texts, and prove that it computes the same."""
    from ..deployment.runtimes import check_installed

    check_installed(format, verify)
    check_model(model)
    quiet_libraries()
    from ..deployment import export_onnx
    from ..inference import load_exact_model, load_processor

    with show_progress(quiet=as_json) as progress:
        progress("reading the model")
        processor = load_processor(model, tokenizer, reads_texts=False)
        loaded = load_exact_model(model)
        checks = export_onnx(
            loaded,
            folder,
            processor,
            towers=[each.value for each in tower or [Tower.both]],
            format=format,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json({"folder": str(folder), "checks": [check.to_dict() for check in checks]})
        return
    for check in checks:
        console().print(check.table())
    print_line(f"Wrote {folder}")
