"""Files of one graph: ONNX by PyTorch's exporter, and OpenVINO's IR from it."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..modeling import DualEncoderModel
from .graphs import Graph
from .inputs import EXAMPLE

LARGEST_FILE = 2**31 - 2**24  # bytes of weights: a protobuf has less than 2 GiB, and some of it describes the graph


# In a process of its own: where OpenVINO's reader does not know a graph, it may end its process.
_READ_AND_SAVE = """
import sys
sys.modules["openvino_telemetry"] = None  # as where it is not installed: nothing is reported to anybody
import openvino
openvino.save_model(openvino.Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)
"""


class ExportError(ValueError):
    """A model that a format, or its writer, cannot express."""


def write_onnx(model: DualEncoderModel, graph: Graph, file: Path) -> None:
    """Write a graph to `file`; weights that are too many for one file go to `<file>_data`, as transformers.js reads it.

    Raises ExportError where the exporter cannot express the model.
    """
    import onnx_ir

    inputs = EXAMPLE.inputs(model, graph.inputs)
    try:
        with quiet_exporter(), torch.no_grad():
            program: Any = torch.onnx.export(
                graph.module,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=(tuple(graph.dynamic_shapes(inputs)),),
                input_names=graph.inputs,
                output_names=graph.outputs,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"PyTorch's exporter cannot express this {type(model).__name__}: {reason}.") from error
    remove_traces(program.model)
    size = sum(weight.const_value.nbytes for weight in program.model.graph.initializers.values())
    external_data = f"{file.name}_data" if size > LARGEST_FILE else None
    onnx_ir.save(program.model, file, external_data=external_data)


def remove_traces(model: Any) -> None:
    """Remove what the exporter notes at every node: the source that made it, with the paths of this machine."""
    for function in (model, *model.functions.values()):
        function.metadata_props.clear()
        for node in model.graph.all_nodes() if function is model else function.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def write_openvino(onnx_file: Path, file: Path) -> None:
    """Write the graph of an ONNX file as OpenVINO's IR, `file` (.xml) and its weights (.bin), in float32.

    Raises ExportError where OpenVINO cannot read the graph.
    """
    command = [sys.executable, "-c", _READ_AND_SAVE, str(onnx_file), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["without a message"]
        reason = f"signal {-done.returncode}" if done.returncode < 0 else said[-1]
        raise ExportError(f"OpenVINO cannot read the graph for {file.name}: its reader ended with {reason}.")


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence reports of the exporter about packages that it does without, and warnings about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
