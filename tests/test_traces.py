"""Models that `torch.jit.trace` and PyTorch's older ONNX exporter, which uses it, have seen with one example."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import families
from helpers.traces import OTHER_SIZES, Inputs, Tuples
from torch import Tensor

import twinlens
from twinlens.deployment.inputs import EXAMPLE
from twinlens.deployment.runtimes import open_file

# PyTorch and transformers warn of every number that a trace keeps; the tests find those that matter.
pytestmark = pytest.mark.filterwarnings("ignore")

RESNET = {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 32}
TEXT = {**families.TEXT, **families.IDS["CLIP"]}
OWN = (*families.FAMILIES, "CLIPResNet")
KINDS: dict[tuple[str, str], Any] = {
    **{(family, kind): "image" for family in OWN for kind in ("VisionModel", "ForImageClassification")},
    **{(family, "TextModel"): "text" for family in families.FAMILIES},
    **{(family, "Model"): "both" for family in OWN},
    ("CLIP", "VisionModelWithProjection"): "image",
    ("CLIP", "TextModelWithProjection"): "text",
}


def model_of(family: str, kind: str) -> Any:
    if family != "CLIPResNet":
        return families.model(family, kind)
    torch.manual_seed(0)
    config = twinlens.CLIPResNetConfig(vision_config=RESNET, text_config=TEXT, projection_dim=24)
    return getattr(twinlens, f"CLIPResNet{kind}")(config.vision_config if kind == "VisionModel" else config).eval()


TEXTS, IMAGES = {0: "texts", 1: "length"}, {0: "images", 1: "patches"}
AXES = {"input_ids": TEXTS, "attention_mask": TEXTS, "pixel_attention_mask": IMAGES, "spatial_shapes": {0: "images"}}


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def cases() -> list[Any]:
    """A family, a kind of model and whether texts have a mask; by day, those that hold most of the others."""
    found = [(family, kind, True) for family, kind in KINDS]
    found += [("CLIP", "TextModel", False), ("CLIP", "Model", False), ("CLIPResNet", "Model", False)]
    by_day = {("CLIP", "Model", True), ("CLIP", "Model", False), ("Siglip", "Model", True), ("Siglip2", "Model", True)}
    return [case if case in by_day else pytest.param(*case, marks=pytest.mark.thorough) for case in found]


@pytest.mark.parametrize(("family", "kind", "masked"), cases())
@torch.no_grad()
def test_a_trace_takes_other_sizes(family: str, kind: str, masked: bool) -> None:
    inputs = Inputs(model_of(family, "Model"), KINDS[family, kind], masked)
    module = Tuples(model_of(family, kind).requires_grad_(False), inputs.names)
    traced = torch.jit.trace(module, inputs(EXAMPLE), check_trace=False)
    for case in OTHER_SIZES:
        assert_close(traced(*inputs(case)), module(*inputs(case)))


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxruntime")), reason="needs onnx, onnxruntime (extra onnx)")
@pytest.mark.parametrize(("family", "kind", "masked"), cases())
@torch.no_grad()
def test_the_older_onnx_exporter(family: str, kind: str, masked: bool, tmp_path: Path) -> None:
    inputs = Inputs(model_of(family, "Model"), KINDS[family, kind], masked)
    module, file = Tuples(model_of(family, kind), inputs.names), tmp_path / "model.onnx"
    pixels = IMAGES if family == "Siglip2" else {0: "images"}
    axes = {name: {**AXES, "pixel_values": pixels}[name] for name in inputs.names}
    torch.onnx.export(module, inputs(EXAMPLE), file, dynamo=False, input_names=[*inputs.names], dynamic_axes=axes)
    run = open_file(file, "onnx")
    for case in OTHER_SIZES:
        found = run(dict(zip(inputs.names, inputs(case), strict=True)))
        assert_close(tuple(found.values()), module(*inputs(case)))
