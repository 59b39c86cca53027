"""Export of a model as graphs for programs without PyTorch, each compared with the model before it appears."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch

from ..catalogue.download import Progress
from ..conversion.convert import check_destination
from ..formats import absolute_path
from ..formats.atomic import complete_or_absent
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .check import GraphCheck, GraphError, check_graph
from .files import write_onnx, write_openvino
from .graphs import FILES, Graph, Tower
from .runtimes import Format, check_installed, open_file, runtime_name
from .web_files import save_files


def export_onnx(
    model: DualEncoderModel,
    folder: str | Path,
    processor: DualEncoderProcessor | None = None,
    *,
    towers: Sequence[Tower] = ("both",),
    format: Format = "onnx",
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> list[GraphCheck]:
    """Write a model as ONNX, or as OpenVINO's IR, in float32; return the measured errors, none without `verify`.

    `folder` gets config.json, the files of the processor, and `onnx/model.onnx` for both towers,
    `onnx/vision_model.onnx` for images, `onnx/text_model.onnx` for texts; with `format="openvino"` it is
    `openvino/openvino_model.xml` with its `.bin`, and so on. Graphs take any number of images and of texts. Those of
    this package's families take texts of any length, which they pad and cut as the checkpoint needs.

    The folder appears complete or not at all. Raises GraphError where an output of a graph, in the runtime that will
    run it, is further from the model than the tolerance, ImportError naming the extra to install, FileExistsError where
    the folder is not empty, ExportError for a model that a format cannot express, ValueError for one that is optimised
    for inference.
    """
    check_choices(towers, format)
    check_installed(format, verify)
    if "optimization" in vars(model):
        raise ValueError(
            "Expected a model in its plain form, got one after optimize_for_inference(), whose weights are not in its "
            "parameters. Call model.restore() first."
        )
    folder = absolute_path(folder)
    check_destination(Path(model.name_or_path), folder, overwrite)
    checks = []
    with plain_form(model) as plain, complete_or_absent(folder, overwrite=overwrite) as (partial,):
        for tower in dict.fromkeys(towers):
            name = file_name(tower, format)
            progress(f"writing {name}")
            graph = Graph.of(plain, tower)
            file = partial / name
            write_graph(plain, graph, file, format)
            if verify:
                progress(f"checking {name}")
                checks.append(check_graph(plain, graph, open_file(file, format), name, runtime_name(format)))
                if not checks[-1].passed:
                    raise GraphError(checks[-1])
        save_files(plain, processor, partial)
    return checks


def check_choices(towers: Sequence[str], format: str) -> None:
    """Raise ValueError for unknown towers or formats, or for no tower."""
    if isinstance(towers, str) or not towers or (wrong := set(towers) - set(FILES)):
        shown = towers if isinstance(towers, str) or not towers else sorted(wrong)
        raise ValueError(f"towers must be a list of {', '.join(FILES)}, at least one of them, got {shown!r}.")
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}.")


def file_name(tower: Tower, format: Format) -> str:
    """Return where transformers.js and optimum look for a graph."""
    return f"onnx/{FILES[tower]}.onnx" if format == "onnx" else f"openvino/openvino_{FILES[tower]}.xml"


def write_graph(model: DualEncoderModel, graph: Graph, file: Path, format: Format) -> None:
    """Write one graph in a format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        write_onnx(model, graph, file)
        return
    stage = file.with_suffix(".onnx")
    write_onnx(model, graph, stage)
    write_openvino(stage, file)
    for left in file.parent.glob(f"{stage.name}*"):
        left.unlink()


@contextmanager
def plain_form(model: DualEncoderModel) -> Iterator[DualEncoderModel]:
    """Yield the model as it is exported: in evaluation mode, in float32 on the CPU, with PyTorch's own attention.

    That is the model itself where it is so already, else a copy.
    """
    weights = [*model.parameters(), *model.buffers()]
    is_plain = all(x.device.type == "cpu" and x.dtype in (torch.float32, torch.int64) for x in weights)
    if not is_plain or model.config._attn_implementation not in ("sdpa", "eager"):
        model = copy.deepcopy(model).to("cpu", torch.float32)
        model.set_attn_implementation("sdpa")
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training
