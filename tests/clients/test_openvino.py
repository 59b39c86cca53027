"""OpenVINO's own conversion from PyTorch, which traces a model, run at other sizes than the example's."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.traces import OTHER_SIZES, Inputs, Tuples

import twinlens
from twinlens.deployment.inputs import EXAMPLE

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["clip-shapes", "siglip-shapes"])
@torch.no_grad()
def test_conversion(
    name: str, folders: dict[str, Path], record: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For SigLIP, also rows of texts that are not padded to the full length."""
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)  # which reports the use of it
    import openvino

    inputs = Inputs(twinlens.DualEncoderModel.from_pretrained(folders[name]).eval(), "both")
    differences = []
    for registered in (False, True):
        with twinlens.register() if registered else nullcontext():
            model = transformers.AutoModel.from_pretrained(folders[name]).eval()
        module: Any = Tuples(model, inputs.names)
        converted = openvino.convert_model(module, example_input=inputs(EXAMPLE))
        run = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for case in OTHER_SIZES:
            found = [*run([value.numpy() for value in inputs(case)]).values()]
            expected = module(*inputs(case))
            assert [value.shape for value in found] == [tuple(value.shape) for value in expected]
            distances = [np.abs(one - other.numpy()).max() for one, other in zip(found, expected, strict=True)]
            assert max(distances) < 1e-4
            differences += distances if registered else []
    record("openvino", f"convert_model, then other numbers of images, texts and tokens, {name}", max(differences))
