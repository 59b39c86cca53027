"""What the installed versions of PyTorch and transformers cannot do, for tests of all that are supported."""

import pytest
import torch
import transformers
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

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


def places_one_column() -> bool:
    """Whether transformers' positions of a single column are right: those of the row of the mirrored table."""
    resize = Siglip2VisionEmbeddings.resize_positional_embeddings
    table = torch.randn(4, 4, 2)
    column = resize(table, torch.tensor([[12, 1]]), 12)
    return torch.allclose(column, resize(table.transpose(0, 1), torch.tensor([[1, 12]]), 12), atol=1e-5)


def skip_old_peft() -> None:
    """Skip a test where `add_adapter` of this transformers refuses the installed peft."""
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
