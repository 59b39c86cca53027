"""What the installed versions of PyTorch and transformers cannot do, for tests of all that are supported."""

import pytest
import torch
import transformers

IS_OLDEST = transformers.__version__.startswith("5.12.")
NEEDS_AUTO_IMAGE_PROCESSOR = pytest.mark.skipif(
    bool(getattr(transformers.AutoImageProcessor, "_backends", None)),
    reason="AutoImageProcessor of this transformers needs torchvision",
)
GEMMA_3 = pytest.param(
    "Gemma3",
    marks=pytest.mark.skipif(
        IS_OLDEST, reason="the configuration of Gemma 3 in transformers 5.12 holds transformers' own classes only"
    ),
)


def interpolates_one_column() -> bool:
    """Whether PyTorch's antialiased `interpolate` is right for width 1: the row that the mirrored table has."""
    table, resize = torch.randn(1, 1, 4, 4), torch.nn.functional.interpolate
    column = resize(table, (12, 1), mode="bilinear", antialias=True)
    return torch.allclose(column.mT, resize(table.mT, (1, 12), mode="bilinear", antialias=True), atol=1e-5)
