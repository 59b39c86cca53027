"""The best rate of a matrix product on this machine, whichever library reaches it: the roofline of the towers."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import THREADS, Case, interleaved_times
from peers import openvino_settings
from torch import Tensor

# Rows, columns in and columns out: the MLPs of the towers, of batches of 8 images.
SHAPES = [
    (400, 768, 3072),
    (400, 3072, 768),
    (1568, 768, 3072),
    (1568, 3072, 768),
    (2056, 1024, 4096),
    (2056, 4096, 1024),
]
ROUNDS = 5

Product = Callable[[], object]


def torch_product(x: Tensor, weight: Tensor) -> Product:
    """PyTorch as it is."""
    return partial(torch.nn.functional.linear, x, weight)


def onednn_product(x: Tensor, weight: Tensor) -> Product:
    """oneDNN with weights that were packed for it once, as PyTorch's compiler calls it."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")


def numpy_product(x: Tensor, weight: Tensor) -> Product:
    """NumPy, with its own BLAS."""
    return partial(x.numpy().__matmul__, weight.T.numpy())


def onnx_runtime_product(x: Tensor, weight: Tensor) -> Product:
    """ONNX Runtime, with constant weights."""
    import onnx
    import onnxruntime

    rows, columns = len(x), len(weight)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [rows, x.shape[1]])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [rows, columns])],
        [onnx.numpy_helper.from_array(weight.T.contiguous().numpy(), "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"x": x.numpy()})


def openvino_product(x: Tensor, weight: Tensor) -> Product:
    """OpenVINO, with constant weights; it takes and returns float32."""
    import numpy as np
    import openvino
    from openvino import opset13

    given = opset13.parameter(list(x.shape), np.float32)
    product = opset13.matmul(given, opset13.constant(weight.float().numpy()), False, True)
    model = openvino.Model([product], [given], "product")
    compiled = openvino.Core().compile_model(model, "CPU", openvino_settings(x.dtype))
    return partial(compiled, x.float().numpy())


LIBRARIES = {  # and the dtypes that each computes in
    "PyTorch": (torch_product, ("float32", "bfloat16")),
    "oneDNN, packed": (onednn_product, ("float32", "bfloat16")),
    "NumPy": (numpy_product, ("float32",)),
    "ONNX Runtime": (onnx_runtime_product, ("float32",)),
    "OpenVINO": (openvino_product, ("float32", "bfloat16")),
}


@torch.no_grad()
def best_products(dtype: str, absent: dict[str, str]) -> list[Case]:
    """Return each library's best rate, in 10^9 operations a second, and the shape that reaches it, the fastest first.

    `absent` has the libraries that are not installed.
    """
    rates: dict[str, tuple[float, tuple[int, int, int]]] = {}
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        rows, columns_in, columns_out = shape
        x = torch.randn(rows, columns_in, generator=generator).to(getattr(torch, dtype))
        weight = torch.randn(columns_out, columns_in, generator=generator).to(x.dtype)
        products = {
            name: make(x, weight)
            for name, (make, dtypes) in LIBRARIES.items()
            if dtype in dtypes and name not in absent
        }
        for name, seconds in interleaved_times(products, ROUNDS).items():
            rate = 2 * rows * columns_in * columns_out / statistics.median(seconds) / 1e9
            rates[name] = max(rates.get(name, (0.0, shape)), (rate, shape))
    ranked = sorted(rates.items(), key=lambda item: -item[1][0])
    return [
        {"dtype": dtype, "library": name, "gflop_per_s": round(rate), "shape": list(shape)}
        for name, (rate, shape) in ranked
    ]
