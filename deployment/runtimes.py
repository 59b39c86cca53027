"""The runtimes: whether they are installed, and a function that runs a file in one of them."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Format = Literal["onnx", "openvino"]
Runner: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # inputs to outputs, both by their names

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
_WRITERS = ("onnx", "onnxscript")  # which torch.onnx needs


def check_installed(format: Format, verify: bool) -> None:
    """Raise ImportError, naming the extra, unless all is there that writes a format and, with `verify`, runs it."""
    needed = [*_WRITERS, *((RUNTIMES[format],) if verify or format == "openvino" else ())]
    if missing := [name for name in needed if find_spec(name) is None]:
        extra = "openvino" if format == "openvino" else "onnx"
        raise ImportError(
            f"Export to {format} needs {', '.join(missing)}: pip install '.[{extra}]' in the checkout of twinlens.",
            name=missing[0],
        )


def runtime_name(format: Format) -> str:
    """Return the runtime of a format and its version."""
    return f"{RUNTIMES[format]} {version(RUNTIMES[format])}"


def open_file(file: Path, format: Format) -> Runner:
    """Return what runs a file on the CPU, in float32."""
    return _open_onnx(file) if format == "onnx" else _open_openvino(file)


def _open_onnx(file: Path) -> Runner:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def _import_openvino() -> Any:
    """Import OpenVINO as where `openvino_telemetry` is not installed, which reports the use of it to Intel."""
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:  # the caller's own
        return import_module("openvino")
    blocked: Any = None
    sys.modules["openvino_telemetry"] = blocked
    try:
        return import_module("openvino")
    finally:
        del sys.modules["openvino_telemetry"]


def _open_openvino(file: Path) -> Runner:
    openvino = _import_openvino()
    precise = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors compute in bfloat16 by default
    compiled: Any = openvino.Core().compile_model(file, "CPU", precise)

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = compiled({name: value.numpy() for name, value in inputs.items()})
        return {output.any_name: torch.from_numpy(values[output].copy()) for output in compiled.outputs}

    return run
