"""What big_vision itself computed: inputs and outputs of the small models in `fixtures`."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
FIXED_SIZE, NAFLEX = ("siglip_v1", "siglip_v2_scanned"), "siglip_v2_naflex"


def official_outputs(fixture: str) -> tuple[dict[str, Tensor], Tensor, dict[str, npt.NDArray[Any]]]:
    """Return the inputs of the image tower by transformers' names, the ids of texts, and the recorded outputs."""
    arrays = _arrays(fixture, "inputs")
    inputs = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "image_names"}
    if fixture == NAFLEX:
        mask = inputs["type"]
        grids = torch.stack([(inputs[name] * mask).amax(1) + 1 for name in ("yidx", "xidx")], 1)
        images = {"pixel_values": inputs["patches"], "pixel_attention_mask": mask, "spatial_shapes": grids.long()}
    else:
        images = {"pixel_values": inputs["pixel_values_nhwc"].permute(0, 3, 1, 2)}
    return images, inputs["input_ids"], _arrays(fixture, "expected")


def official_weights(fixture: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the checkpoint under their official names."""
    return _arrays(fixture, "checkpoint")


def _arrays(fixture: str, part: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(FIXTURES / fixture / f"{part}.npz") as arrays:
        return dict(arrays)
